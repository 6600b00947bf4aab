"""DiffMM beside its authors' code, an epoch and many, of one batch, at equal weights (`tests/parity/diffmm.py`)."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from model import kernels
from model.base import Batch
from model.baselines.diffmm import DiffMM, DiffMMConfig
from model.config import Kernels
from tests.parity import data, diffmm, golden


@pytest.fixture(autouse=True)
def _drawn_as_theirs() -> Iterator[None]:
    with (
        patch("torch.randn", lambda *_, **__: diffmm.noise()),
        patch("torch.randperm", lambda count, **_: torch.arange(count)),
        patch("model.baselines.diffmm.dropout", lambda rows, *_: rows * diffmm.mask()),
    ):
        yield


@pytest.fixture
def model() -> DiffMM:
    """With the weights that theirs starts from."""
    stored, made = diffmm.AUTHORS.stored("epoch"), data.step_data(twins=False)
    assert stored["data"] == golden.description(made)
    model = DiffMM(DiffMMConfig(**diffmm.OURS), made, torch.Generator())
    weights = golden.fixed_weights(stored["recommending"]["weights"])
    golden.set_weights(dict(model.named_parameters()), diffmm.recommender(weights))
    for modality, part in stored["denoising"].items():
        weights = diffmm.denoiser(golden.fixed_weights(part["weights"]))
        golden.set_weights(model._denoiser(modality).leaves(), weights)
    return model


@pytest.mark.parametrize("modality", diffmm.MODALITIES)
def test_denoising_is_that_of_the_authors_code(modality: str, model: DiffMM) -> None:
    stored = diffmm.AUTHORS.stored("epoch")["denoising"][modality]
    leaves, features = model._denoiser(modality).leaves(), model._project(modality).detach()
    ids = model.embeddings.detach()[model.user_count :]
    with patch("torch.randint", return_value=diffmm.steps(modality)):
        loss = model._denoising_loss(model._denoiser(modality), leaves, torch.arange(model.user_count), features, ids)
    loss.backward()
    golden.assert_same_descent(leaves, loss, diffmm.denoiser(golden.gradients(stored)), stored)


@pytest.mark.parametrize("modality", diffmm.MODALITIES)
def test_generated_rows_are_those_of_the_authors_code(modality: str, model: DiffMM) -> None:
    stored = diffmm.AUTHORS.stored("epoch")
    denoiser = model._denoiser(modality)
    rows = denoiser.generate(model.interactions(denoiser.encode), model._schedule)
    users = stored["recommending"]["scored_users"]
    np.testing.assert_allclose(rows[users], stored["generated"][modality], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["fast", "reference"])
def test_a_step_on_generated_graphs_is_that_of_the_authors_code(form: Kernels, model: DiffMM) -> None:
    stored = diffmm.AUTHORS.stored("epoch")["recommending"]
    batch = Batch(*torch.from_numpy(data.triplets(data.step_data(twins=False).train, distinct=False)))
    weights = diffmm.recommender(golden.fixed_weights(stored["weights"]))
    with patch("torch.randint", side_effect=[diffmm.steps(modality) for modality in diffmm.MODALITIES]):
        model.before_epoch(1)
    with kernels.use(form):
        golden.assert_same_step(model, batch, weights, diffmm.recommender(golden.gradients(stored)), stored)


def test_a_training_has_the_losses_and_scores_of_the_authors_code(model: DiffMM) -> None:
    stored, made = diffmm.AUTHORS.stored("training"), data.step_data(twins=False)
    assert stored["data"] == golden.description(made)
    weights = golden.fixed_weights(diffmm.AUTHORS.stored("epoch")["recommending"]["weights"])
    golden.set_weights(dict(model.named_parameters()), diffmm.recommender(weights))
    batch = Batch(*torch.from_numpy(data.triplets(made.train, distinct=False)))
    compute, denoising = model._denoising_loss, []

    def noted(*arguments: Any) -> torch.Tensor:
        loss = compute(*arguments)
        denoising.append(loss.item())
        return loss

    def loss(epoch: int) -> torch.Tensor:
        with patch("torch.randint", side_effect=[diffmm.steps(modality) for modality in diffmm.MODALITIES]):
            model.before_epoch(epoch)
        return torch.stack(list(model.loss(batch).values())).sum()

    with patch.object(model, "_denoising_loss", noted):
        recommending = golden.losses(torch.optim.Adam(model.parameters(), golden.RATE), loss)
    for place, modality in enumerate(diffmm.MODALITIES):
        np.testing.assert_allclose(denoising[place::2], stored["losses"][modality], rtol=1e-4)
    np.testing.assert_allclose(recommending, stored["losses"]["recommending"], rtol=1e-4)
    model.eval()
    scores = model.scores(torch.arange(diffmm.SCORED))
    np.testing.assert_allclose(scores.detach(), stored["scores"], rtol=1e-3, atol=1e-3)
