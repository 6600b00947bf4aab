from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.base import Batch, DataError, RecData
from model.baselines.lightgcn import LightGCN, LightGCNConfig
from model.baselines.rlmrec import Contrastive, ContrastiveConfig, Generative, GenerativeConfig
from model.baselines.sgl import SGL, SGLConfig
from model.sampling import TripletSampler


def contrastive(data: RecData, **settings: object) -> Contrastive:
    return Contrastive(ContrastiveConfig(embedding_size=6, **settings), data, torch.Generator().manual_seed(0))


def generative(data: RecData, **settings: object) -> Generative:
    return Generative(GenerativeConfig(embedding_size=6, **settings), data, torch.Generator().manual_seed(0))


def batch(data: RecData, size: int = 16) -> Batch:
    return next(TripletSampler(data.train, size).epoch(torch.Generator().manual_seed(0)))


def text(data: RecData) -> Tensor:
    assert data.text is not None
    assert data.user_text is not None
    return torch.from_numpy(np.concatenate([data.user_text, data.text]))


def mapped(network: torch.nn.Sequential, rows: Tensor) -> Tensor:
    first, second = network[0], network[2]
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(second, torch.nn.Linear)
    hidden = rows @ first.weight.T + first.bias
    return torch.where(hidden > 0, hidden, 0.01 * hidden) @ second.weight.T + second.bias


def contrast(anchors: Tensor, views: Tensor, temperature: float) -> Tensor:
    """-log of the share of its own view, anchor by anchor."""
    weights = torch.exp(F.normalize(anchors, dim=1) @ F.normalize(views, dim=1).T / temperature)
    return -torch.log(weights.diagonal() / weights.sum(1)).mean()


@pytest.mark.parametrize("kind", ["lightgcn", "sgl"])
def test_contrastive_alignment_equals_the_formula(kind: str, checkerboard: RecData) -> None:
    model = contrastive(checkerboard, backbone=kind, alignment_weight=0.5, alignment_temperature=0.3)
    model.before_epoch(1)
    step, first_item = batch(checkerboard), checkerboard.user_count
    final, vectors = torch.cat(model.embed()), mapped(model.encoder, text(checkerboard))
    parts = [step.users.unique(), (step.positives + first_item).unique(), (step.negatives + first_item).unique()]
    expected = sum(contrast(final[nodes], vectors[nodes], 0.3) for nodes in parts)
    torch.testing.assert_close(model.loss(step)["alignment"], 0.5 * expected)


@pytest.mark.parametrize("kind", ["lightgcn", "sgl"])
def test_generative_alignment_equals_the_formula_with_its_nodes_masked(kind: str, checkerboard: RecData) -> None:
    settings = {"backbone": kind, "masking": 0.2, "alignment_weight": 0.5, "alignment_temperature": 0.3, "l2": 0.0}
    model, same = generative(checkerboard, **settings), generative(checkerboard, **settings)
    token = torch.arange(1.0, 7.0)
    model.mask_token.data = token
    state = model.generator.get_state()
    for made in (model, same):
        made.before_epoch(1)
        made.generator.set_state(state)
    nodes = checkerboard.user_count + checkerboard.item_count
    masked = torch.randperm(nodes, generator=same.generator)[: int(nodes * 0.2)]
    assert len(masked) == 10
    same.backbone.embeddings.data[masked] = token

    step = batch(checkerboard)
    terms = model.loss(step)
    rebuilt = mapped(model.decoder, torch.cat(same.embed())[masked])
    torch.testing.assert_close(terms["alignment"], 0.5 * contrast(rebuilt, text(checkerboard)[masked], 0.3))
    for name, term in same.backbone.loss(step).items():  # the backbone's own loss sees the masks too
        torch.testing.assert_close(terms[name], term)


def test_masks_change_from_step_to_step_and_leave_the_scores_alone(checkerboard: RecData) -> None:
    model = generative(checkerboard)
    model.mask_token.data.fill_(3.0)
    plain = LightGCN(LightGCNConfig(embedding_size=6, layers=3), checkerboard, torch.Generator().manual_seed(0))
    assert torch.equal(model.eval().embed()[0], plain.eval().embed()[0])
    model.train()
    step = batch(checkerboard)
    assert model.loss(step)["bpr"] != model.loss(step)["bpr"]


@pytest.mark.parametrize("make", [contrastive, generative])
def test_text_moves_the_embeddings(make: type, checkerboard: RecData) -> None:
    assert checkerboard.text is not None
    gradients = []
    for data in (checkerboard, replace(checkerboard, text=np.roll(checkerboard.text, 1, axis=0))):
        model = make(data)
        model.loss(batch(data))["alignment"].backward()
        gradients.append(model.backbone.embeddings.grad)
    assert gradients[0].any()
    assert not torch.allclose(gradients[0], gradients[1])


def test_backbone_takes_its_own_settings(checkerboard: RecData) -> None:
    on_sgl = contrastive(checkerboard, backbone="sgl", dropping=0.4, layers=1, l2=0.5).backbone
    assert type(on_sgl) is SGL
    assert on_sgl.config == SGLConfig(embedding_size=6, dropping=0.4, layers=1, l2=0.5)
    assert type(contrastive(checkerboard).backbone) is LightGCN


def test_texts_of_two_encoders_are_an_error(checkerboard: RecData) -> None:
    data = replace(checkerboard, user_text=np.ones((checkerboard.user_count, 3), dtype=np.float32))
    with pytest.raises(DataError, match="user_text has 3 numbers per row and text 8"):
        contrastive(data)
