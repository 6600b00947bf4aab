"""RLMRec on LightGCN and SGL, and SGL, beside RLMRec's code: one step, and a training (`tests/parity/rlmrec.py`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch

from model import kernels
from model.base import Batch, Recommender
from model.config import Kernels
from model.registry import load
from tests.parity import golden, rlmrec


@pytest.mark.parametrize("name", rlmrec.VARIANTS)
@pytest.mark.parametrize("form", ["fast", "reference"])
def test_one_step_is_that_of_the_authors_code(name: str, form: Kernels) -> None:
    stored, made = rlmrec.AUTHORS.stored(name), rlmrec.dataset()
    assert stored["data"] == golden.description(made)
    model, batch, weights = _start(name)
    gradients = rlmrec.VARIANTS[name].weights(golden.gradients(stored), 1 / (rlmrec.LAYERS + 1))
    with kernels.use(form), _drawn():
        model.before_epoch(1)
        golden.assert_same_step(model, batch, weights, gradients, stored)


@pytest.mark.parametrize("name", rlmrec.VARIANTS)
def test_a_training_has_the_losses_of_the_authors_code(name: str) -> None:
    model, batch, weights = _start(name)
    golden.set_weights(dict(model.named_parameters()), weights)

    def loss(epoch: int) -> torch.Tensor:
        with _drawn(epoch):
            model.before_epoch(epoch)
            return torch.stack(list(model.loss(batch).values())).sum()

    ours = golden.losses(torch.optim.Adam(model.parameters(), golden.RATE), loss)
    np.testing.assert_allclose(ours, rlmrec.AUTHORS.stored(name)["losses"], rtol=1e-4)


def _start(name: str) -> tuple[Recommender, Batch, dict[str, np.ndarray]]:
    """Our model, the batch, and the weights of both codes, by our names."""
    variant, stored, made = rlmrec.VARIANTS[name], rlmrec.AUTHORS.stored(name), rlmrec.dataset()
    kind = load(variant.model)
    config = kind.Config(embedding_size=rlmrec.SIZE, layers=rlmrec.LAYERS, l2=0.0, **variant.ours)
    model = kind(config, made, torch.Generator())
    weights = variant.weights(golden.fixed_weights(stored["weights"]), rlmrec.LAYERS + 1)  # sums there, means here
    return model, Batch(*torch.from_numpy(rlmrec.triplets(made.train))), weights


@contextmanager
def _drawn(epoch: int = 1) -> Iterator[None]:
    """Views and masked nodes are theirs."""
    views, masked = rlmrec.views(rlmrec.dataset().train, epoch), torch.from_numpy(rlmrec.MASKED)
    with (
        patch("model.baselines.sgl.drop_edges", side_effect=views),
        patch("torch.randperm", lambda *_, **__: masked),
    ):
        yield
