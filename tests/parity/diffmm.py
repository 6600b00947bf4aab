"""What DiffMM's own code computes in one epoch and in a training, as numbers in files that the tests hold ours against.

    SCALE_DIFFMM=CHECKOUT python tests/parity/diffmm.py PART [--out tests/golden]

The checkout is a clone of https://github.com/HKUDS/DiffMM (Jiang et al., *DiffMM: Multi-Modal Diffusion Model for
Recommendation*, ACM MM 2024). PART is `epoch` or `training`.

In `epoch` the denoisers generate rows from fixed weights, and an epoch runs with one batch of users for the denoisers
and one of triplets: losses and gradients of the denoisers, a step of each, graphs that they generate then, loss and
gradients of the recommender on these, and its scores. `training` is many such epochs, each of which goes on from the
weights of the one before: losses of both denoisers and of the recommender, and its scores in the end. Steps of noise,
the noise itself and what dropout hides are drawn: both codes get the same. No edge of a generated graph is dropped, and
features are projected without a bias, as in ours.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.sparse import coo_matrix

from model.base import RecData
from tests.parity import data, golden
from tests.parity.authors import Authors

SIZE = 8
HIDDEN = 6
STEPS = 4
SCORED = 10  # first users, whose scores after a training are kept
MODALITIES = {"text": "text", "visual": "image"}  # ours -> theirs
OURS = {
    "embedding_size": SIZE,
    "layers": 2,
    "generated_weight": 0.4,
    "residual_weight": 0.7,
    "contrast_weight": 0.3,
    "temperature": 0.4,
    "l2": 1e-2,
    "generated_items": 3,
    "steps": STEPS,
    "noise_scale": 0.8,
    "noise_min": 0.05,
    "noise_max": 0.6,
    "hidden_size": HIDDEN,
    "denoising_dropout": 0.5,
    "feature_weight": 3.0,
    "denoising_batch": data.STEP.users,
    "denoising_rate": 1e-2,
}
THEIRS = {
    "latdim": SIZE,
    "gnn_layer": 2,
    "ris_adj_lambda": 0.4,
    "ris_lambda": 0.7,
    "ssl_reg": 0.3,
    "temp": 0.4,
    "reg": 1e-2,
    "rebuild_k": 3,
    "steps": STEPS,
    "noise_scale": 0.8,
    "noise_min": 0.05,
    "noise_max": 0.6,
    "dims": f"[{HIDDEN}]",
    "sampling_steps": 0,
    "e_loss": 3.0,
    "lr": 1e-2,
    "keepRate": 1,
    "trans": 0,
    "cl_method": 0,
    "batch": data.STEP_BATCH,
}


def steps(modality: str) -> torch.Tensor:
    """Each user's step of noise (M,). The second weighs 10,000 times as much as any other: images do without it."""
    met = range(STEPS) if modality == "text" else (0, 2, 3)
    return torch.from_numpy(np.resize(met, data.STEP.users))


def noise() -> torch.Tensor:
    """What is added to the users' rows (M, N)."""
    return torch.from_numpy(3 * golden.fixed_weight(100, (data.STEP.users, data.STEP.items)).astype(np.float32))


def mask() -> torch.Tensor:
    """What dropout of one half multiplies noisy rows by (M, N)."""
    kept = golden.fixed_weight(101, (data.STEP.users, data.STEP.items)) > 0
    return torch.from_numpy(2 * kept.astype(np.float32))


def denoiser(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From arrays by their names to arrays by ours."""
    encode, from_time = np.split(theirs["in_layers.0.weight"].T, [data.STEP.items])
    return {
        "encode": encode,
        "from_time": from_time,
        "hidden_bias": theirs["in_layers.0.bias"],
        "decode": theirs["out_layers.0.weight"],
        "item_bias": theirs["out_layers.0.bias"],
        "time_weight": theirs["emb_layer.weight"].T,
        "time_bias": theirs["emb_layer.bias"],
    }


def recommender(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From arrays by their names to arrays by ours."""
    return {
        "embeddings": np.concatenate([theirs["uEmbeds"], theirs["iEmbeds"]]),
        "modality_weights": theirs["modal_weight"][::-1],
        **{f"projections.{ours}": theirs[f"{name}_trans"] for ours, name in MODALITIES.items()},
    }


def epoch() -> dict[str, Any]:
    """Of each denoiser: rows that it generates, loss and gradients; of the recommender: loss, gradients, scores."""
    made, coach, denoisers, weights = _start()
    scored, rows = np.arange(0, made.user_count, 5), torch.from_numpy(made.train.toarray())
    with torch.no_grad():
        generated = {
            ours: golden.plain(coach.diffusion_model.p_sample(module, rows[scored], THEIRS["sampling_steps"]))
            for ours, module in denoisers.items()
        }
    with patch.object(coach.opt, "step"), _drawn(denoisers):  # scores are those of the fixed weights
        losses = {name: torch.tensor(loss) for name, loss in coach.trainEpoch().items()}
    graphs = coach.handler.torchBiAdj, coach.image_UI_matrix, coach.text_UI_matrix
    users, items = coach.model.forward_MM(*graphs)
    return {
        "data": golden.description(made),
        "settings": THEIRS,
        "generated": generated,
        "denoising": {
            ours: golden.descent(weights[ours], losses[f"Di {name} loss"]) for ours, name in MODALITIES.items()
        },
        "recommending": golden.step(weights[""], losses["Loss"] + losses["CL loss"], scored, users[scored] @ items.T),
    }


def training() -> dict[str, Any]:
    """By epoch the losses of each denoiser and of the recommender; its scores after the last."""
    made, coach, denoisers, _ = _start()
    losses: dict[str, list[float]] = {"text": [], "visual": [], "recommending": []}
    for _ in range(golden.EPOCHS):
        with _drawn(denoisers):
            found = coach.trainEpoch()
        for ours, name in MODALITIES.items():
            losses[ours].append(found[f"Di {name} loss"])
        losses["recommending"].append(found["Loss"] + found["CL loss"])
    with torch.no_grad():
        users, items = coach.model.forward_MM(coach.handler.torchBiAdj, coach.image_UI_matrix, coach.text_UI_matrix)
    return {
        "data": golden.description(made),
        "settings": THEIRS,
        "losses": losses,
        "scores": golden.plain(users[:SCORED] @ items.T),
    }


def _start() -> tuple[RecData, Any, dict[str, torch.nn.Module], dict[str, dict[str, torch.nn.Parameter]]]:
    """Data, their training, denoisers by our names, and all weights by part, which hold fixed numbers."""
    made = data.step_data(twins=False)
    coach = _coach(made)
    denoisers = {ours: getattr(coach, f"denoise_model_{name}") for ours, name in MODALITIES.items()}
    weights = {part: dict(module.named_parameters()) for part, module in (("", coach.model), *denoisers.items())}
    for own in weights.values():
        golden.set_weights(own, golden.fixed_weights({name: weight.shape for name, weight in own.items()}))
    return made, coach, denoisers, weights


@contextmanager
def _drawn(denoisers: Mapping[str, Any]) -> Iterator[None]:
    """Steps, noise and dropout are those of ours."""
    with ExitStack() as stack:
        for module in denoisers.values():
            stack.enter_context(patch.object(module.drop, "forward", lambda rows: rows * mask()))
        stack.enter_context(patch("torch.randint", side_effect=[steps("visual"), steps("text")]))
        stack.enter_context(patch("torch.randn_like", lambda _: noise()))
        yield


def _coach(made: RecData) -> Any:
    """Their training, with one batch of everything."""
    sys.modules["setproctitle"] = ModuleType("setproctitle")  # imported, never called
    with patch("sys.argv", sys.argv[:1]):
        arguments = import_module("Params").args
    widths = {f"{name}_feat_dim": width for name, width in zip(("text", "image"), data.STEP_WIDTHS, strict=True)}
    vars(arguments).update(THEIRS, **widths, user=made.user_count, item=made.item_count)
    # An epoch's losses are divided by the number of whole batches in what they call the dataset.
    batches = SimpleNamespace(negSampling=lambda: None, __len__=lambda: data.STEP_BATCH)
    handler = object.__new__(import_module("DataHandler").DataHandler)
    handler.torchBiAdj = handler.makeTorchAdj(coo_matrix(made.train))
    handler.image_feats, handler.text_feats = torch.from_numpy(made.visual), torch.from_numpy(made.text)
    handler.trnLoader = _Loader(batches, list(torch.from_numpy(data.triplets(made.train, distinct=False))))
    handler.diffusionLoader = _Loader(batches, (torch.from_numpy(made.train.toarray()), torch.arange(made.user_count)))
    coach = import_module("Main").Coach(handler)
    coach.prepareModel()
    return coach


class _Loader(list[Any]):
    """Batches, and what their code asks about where they come from."""

    def __init__(self, dataset: SimpleNamespace, *batches: Any) -> None:
        super().__init__(batches)
        self.dataset = dataset


PARTS = {"epoch": ("DiffMM", epoch), "training": ("DiffMM", training)}
AUTHORS = Authors("diffmm", "https://github.com/HKUDS/DiffMM", ".", PARTS)

if __name__ == "__main__":
    AUTHORS.main(__doc__)
