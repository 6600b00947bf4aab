"""MENTOR beside its authors' code: one step from the same weights (`tests/parity/mentor.py`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch

from model import kernels
from model.base import Batch
from model.baselines.mentor import MENTOR, MENTORConfig
from model.config import Kernels
from tests.parity import data, golden, mentor


@pytest.mark.parametrize("part", mentor.PARTS)
@pytest.mark.parametrize("form", ["fast", "reference"])
def test_one_step_is_that_of_the_authors_code(part: str, form: Kernels) -> None:
    stored, made = mentor.AUTHORS.stored(part), data.step_data(twins=False)
    assert stored["data"] == golden.description(made)
    model, batch, weights = _start(part)
    gradients = mentor.weights(golden.gradients(stored))
    with kernels.use(form), _drawn():
        golden.assert_same_step(model, batch, weights, gradients, stored, factor=1 / mentor.SCALE)


@pytest.mark.parametrize("part", mentor.PARTS)
def test_a_training_has_the_losses_of_the_authors_code(part: str) -> None:
    model, batch, weights = _start(part)
    golden.set_weights(dict(model.named_parameters()), weights)

    def loss(_: int) -> torch.Tensor:
        with _drawn():
            return torch.stack(list(model.loss(batch).values())).sum() / mentor.SCALE

    ours = golden.losses(torch.optim.Adam(model.parameters(), golden.RATE), loss)
    np.testing.assert_allclose(ours, mentor.AUTHORS.stored(part)["losses"], rtol=1e-4)


def _start(part: str) -> tuple[MENTOR, Batch, dict[str, np.ndarray]]:
    """Our model, the batch, and the weights of both codes, by our names."""
    made = data.step_data(twins=False)
    model = MENTOR(MENTORConfig(**mentor.PARTS[part][0]), made, torch.Generator())
    weights = mentor.weights(golden.fixed_weights(mentor.AUTHORS.stored(part)["weights"]))
    return model, Batch(*torch.from_numpy(mentor.triplets(part, made))), weights


@contextmanager
def _drawn() -> Iterator[None]:
    """Noise and masks are theirs."""
    uniform = iter(mentor.noise().flatten(0, 1).flatten(2))
    masks = iter(mentor.kept().flatten(1).split([data.STEP.users, data.STEP.items]))
    with (
        patch("torch.rand", lambda *_, **__: next(uniform)),
        patch("model.baselines.mentor.dropout", lambda rows, rate, _: rows * next(masks) / (1 - rate)),
    ):
        yield
