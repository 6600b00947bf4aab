"""The fast form against plain torch: the same losses, gradients and curves.

What the fast form is on a GPU is tried on a CPU's tensors too, and on a GPU where there is one.
"""

import numpy as np
import pytest
import torch

from model import kernels
from model.base import RecData, Recommender
from model.config import Kernels, TrainingConfig
from model.registry import MODELS, load
from model.sampling import TripletSampler
from model.training import train

FORMS: tuple[Kernels, Kernels] = ("fast", "reference")
# Every model as it comes, and depths that take other paths through the products.
CASES: list[tuple[str, dict[str, int | str]]] = [(name, {}) for name in sorted(MODELS)]
CASES += [("lightgcn", {"layers": 1}), ("scale", {"interaction_layers": 0}), ("scale", {"semantic_layers": 2})]
CASES += [("scale", {"negatives": 5}), ("scale", {"contrast_size": 10})]
CASES += [("slmrec", {"augmentation": "FD"}), ("slmrec", {"augmentation": "FM"})]
PLACES = ["cpu", "as on a GPU", *(["cuda"] if torch.cuda.is_available() else [])]
# Gradients may differ by so much in any case: Adam, which adds 1e-8 to their size, sees nothing of it. MGCN's attention
# has one of 2.5e-9 beside others of 6e-3, and on a processor without AVX-512 its two forms differ there by 1.1e-12.
NEGLIGIBLE = dict.fromkeys(MODELS, 1e-12) | {"mgcn": 1e-11}
# Gradients may differ by so much of their largest entry, and losses over 20 epochs by 100 times as much. What teaches
# some models is a difference of nearly equal numbers, and LGMRec divides sums of logits by a small temperature: that
# magnifies how they were rounded, in another way on every kind of processor.
EXACT = 1e-6
ROUNDING = (
    dict.fromkeys(MODELS, 1e-5) | {"lgmrec": 1e-4} | dict.fromkeys(("bpr", "freedom", "lightgcn", "scale"), EXACT)
)
every_case = pytest.mark.parametrize(("name", "settings"), CASES)


def built(name: str, settings: dict[str, int | str], data: RecData) -> Recommender:
    model_class = load(name)
    return model_class(model_class.Config(**MODELS[name].preset, **settings), data, torch.Generator().manual_seed(0))


def losses_and_gradients(
    model: Recommender, data: RecData, form: Kernels, device: str = "cpu"
) -> tuple[np.ndarray, list[np.ndarray]]:
    generator = torch.Generator().manual_seed(1)
    batch = next(TripletSampler(data.train, 16).epoch(generator))  # leaves nodes out
    with kernels.use(form):
        model.to(device).train()
        model.before_epoch(1)
        terms = model.loss(batch)
        torch.stack(list(terms.values())).sum().backward()
    gradients = [part.grad.cpu().numpy() for part in model.parameters() if part.grad is not None]
    return np.array([term.item() for term in terms.values()]), gradients


@pytest.mark.parametrize("place", PLACES)
@every_case
def test_losses_and_gradients_agree(
    name: str, settings: dict[str, int | str], place: str, checkerboard: RecData, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "as on a GPU":
        monkeypatch.setattr(kernels, "are_compiled", lambda values: False)
    rounding, device = ROUNDING[name], "cuda" if place == "cuda" else "cpu"
    (losses, gradients), (expected, expected_gradients) = (
        losses_and_gradients(built(name, settings, checkerboard), checkerboard, form, on)
        for form, on in zip(FORMS, (device, "cpu"), strict=True)
    )
    np.testing.assert_allclose(losses, expected, rtol=rounding)
    assert len(gradients) == len(expected_gradients) > 0
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        largest = np.abs(other).max()
        np.testing.assert_allclose(gradient, other, rtol=rounding, atol=max(rounding * largest, NEGLIGIBLE[name]))
        assert largest > 0


@every_case
def test_curves_agree_over_20_epochs(name: str, settings: dict[str, int | str], checkerboard: RecData) -> None:
    config = TrainingConfig(
        epochs=20, patience=20, batch_size=64, learning_rate=0.01, top_k=(5,), selection_metric="recall_at_5"
    )
    histories = [
        train(built(name, settings, checkerboard), checkerboard, config.model_copy(update={"kernels": form})).history
        for form in FORMS
    ]
    rounding = ROUNDING[name]
    users = 0 if rounding == EXACT else 2  # of 30, who may change places where losses differ by more
    for fast, reference in zip(*histories, strict=True):
        assert fast.losses == pytest.approx(reference.losses, rel=100 * rounding)
        assert fast.validation == pytest.approx(reference.validation, abs=users / 30 + 1e-9)
