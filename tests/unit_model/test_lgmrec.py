from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from model.base import Batch, RecData
from model.baselines.lgmrec import LGMRec, LGMRecConfig
from model.sampling import TripletSampler

GUMBEL_VARIANCE = np.pi**2 / 6


def build(data: RecData, **settings: object) -> LGMRec:
    return LGMRec(LGMRecConfig(embedding_size=8, **settings), data, torch.Generator().manual_seed(0))


def three_items() -> RecData:
    """Users 0 with items 0 and 1, 1 with item 2, 2 with nothing."""
    train = csr_array(np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.float32))
    text = np.array([[1, 0], [0, 1], [0, -1]], dtype=np.float32)
    return RecData("three", train, train, train, text=text)


def test_hyperedge_dependencies_by_hand() -> None:
    model = build(three_items(), hyperedges=2, temperature=0.5)
    weights = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    logits = torch.tensor([[3.0, 3.0], [-2.0, 0.0], [0.0, 0.0], [1.0, 3.0], [2.0, 0.0], [-2.0, 0.0]])
    assigned = model.eval()._assign(model.get_buffer("text_features") @ weights)
    torch.testing.assert_close(assigned, F.softmax(2 * logits, dim=1))  # users sum the logits of their items
    torch.testing.assert_close(assigned[0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("layers", [1, 2])
def test_what_goes_over_hyperedges_by_hand(layers: int) -> None:
    model = build(three_items(), hypergraph_layers=layers)
    # Both items 0 and 1 belong to the first hyperedge, item 2 to the second; user 2 half to each.
    assignment = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    given = torch.tensor([[1.0], [2.0], [10.0]])
    first = 3.0 if layers == 1 else 6.0  # two members, each of which holds their sum after the first pass
    expected = torch.tensor([[first], [10.0], [(first + 10) / 2], [first], [first], [10.0]])
    torch.testing.assert_close(model._pass_over(assignment, given), expected)


def test_training_adds_gumbel_noise_and_drops_assignments() -> None:
    model = build(three_items(), hyperedges=2, keep_rate=1.0, temperature=1.0)
    differences = []
    for _ in range(2000):
        drawn = model._assign(torch.zeros(3, 2))
        torch.testing.assert_close(drawn.sum(1), torch.ones(6))
        differences.append(drawn.logit()[:, 0])  # the difference of two Gumbel draws
    values = torch.cat(differences)
    assert values.mean().abs() < 0.05
    assert abs(values.var() - 2 * GUMBEL_VARIANCE) < 0.15
    dropping = build(three_items(), hyperedges=2, keep_rate=0.25)
    kept = torch.stack([dropping._assign(torch.zeros(3, 2)) != 0 for _ in range(500)])
    assert abs(kept.float().mean() - 0.25) < 0.03


def test_evaluation_is_free_of_noise(checkerboard: RecData) -> None:
    model = build(checkerboard)
    noisy = [model.embed()[0] for _ in range(2)]
    assert not torch.allclose(*noisy)
    model.eval()
    assert torch.equal(model.embed()[0], model.embed()[0])


def test_embeddings_equal_dense_matrices(checkerboard: RecData) -> None:
    model = build(checkerboard, layers=2, modality_layers=2).eval()
    users = checkerboard.user_count
    interactions = torch.from_numpy(checkerboard.train.toarray())
    adjacency = torch.zeros(users + checkerboard.item_count, users + checkerboard.item_count)
    adjacency[:users, users:], adjacency[users:, :users] = interactions, interactions.T
    scale = adjacency.sum(1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    ids = model.embeddings.detach()
    collaborative = (ids + adjacency @ ids + adjacency @ adjacency @ ids) / 3
    expected, total = collaborative, torch.zeros_like(collaborative)
    for modality, features in (("text", checkerboard.text), ("visual", checkerboard.visual)):
        items = torch.from_numpy(features) @ model.projections[modality].detach()
        nodes = torch.cat([interactions @ items / interactions.sum(1, keepdim=True), items])
        expected = expected + F.normalize(adjacency @ adjacency @ nodes)
        logits = torch.from_numpy(features) @ model.hyperedges[modality].detach()
        of_items, of_users = (F.softmax(part / 0.2, dim=1) for part in (logits, interactions @ logits))
        given = of_items.T @ collaborative[users:]
        total = total + torch.cat([of_users @ given, of_items @ given])
    torch.testing.assert_close(torch.cat(model.embed()), expected + 0.3 * F.normalize(total), rtol=1e-4, atol=1e-6)


def test_contrast_by_brute_force(checkerboard: RecData) -> None:
    model = build(checkerboard)
    generator = torch.Generator().manual_seed(1)
    nodes = checkerboard.user_count + checkerboard.item_count
    text, visual = (torch.randn(nodes, 8, generator=generator) for _ in range(2))
    step = Batch(torch.tensor([3, 7, 3]), torch.tensor([0, 5, 9]), torch.tensor([1, 1, 1]))
    expected = 0.0
    for first, count, chosen in ((0, 30, step.users), (30, 22, step.positives)):
        for node in chosen.tolist():
            cosines = F.cosine_similarity(visual[first + node], text[first : first + count]) / 0.2
            expected += (cosines.logsumexp(0) - cosines[node]).item() / 3
    assert model._contrast([text, visual], step).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("missing", ["text", "visual"])
def test_one_modality_has_no_contrast(missing: str, checkerboard: RecData) -> None:
    data = replace(checkerboard, **{missing: None})
    step = next(TripletSampler(data.train, 64).epoch(torch.Generator().manual_seed(0)))
    assert set(build(data).loss(step)) == {"bpr", "l2"}
    assert set(build(checkerboard).loss(step)) == {"bpr", "contrast", "l2"}
