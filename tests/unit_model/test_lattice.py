from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.lattice import Lattice, LatticeConfig
from model.sampling import TripletSampler

USERS, ITEMS = 30, 22


def build(data: RecData, **settings: object) -> Lattice:
    model = Lattice(LatticeConfig(embedding_size=8, **settings), data, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.importance.copy_(torch.tensor([0.7, -0.4])[: len(model.importance)])
        for bias in model.projections.biases.values():
            bias.normal_(0, 0.1, generator=model.generator)
    return model


def batch(data: RecData) -> Batch:
    return next(TripletSampler(data.train, 16).epoch(torch.Generator().manual_seed(0)))


def normalised_neighbours(features: torch.Tensor, k: int) -> torch.Tensor:
    """D^-1/2 S D^-1/2 of the k largest cosines of each row, those below 0 left out."""
    units = features / features.norm(dim=1, keepdim=True)
    cosines = units @ units.T
    kept = torch.zeros_like(cosines)
    for item, row in enumerate(cosines):
        nearest = row.argsort(descending=True)[:k]
        kept[item, nearest] = row[nearest].clamp(min=0)
    root = kept.sum(1).rsqrt()
    return root[:, None] * kept * root


def dense_item_graph(model: Lattice, data: RecData, k: int, initial_weight: float) -> torch.Tensor:
    """The paper's graph with dense matrices, differentiable in all that is learned."""
    total = torch.zeros(ITEMS, ITEMS)
    shares = model.importance.exp() / model.importance.exp().sum()
    for share, modality in zip(shares, model.projections.weights, strict=True):
        features = torch.from_numpy(getattr(data, modality))
        projected = features @ model.projections.weights[modality] + model.projections.biases[modality]
        initial, learned = normalised_neighbours(features, k), normalised_neighbours(projected, k)
        total = total + share * (initial_weight * initial + (1 - initial_weight) * learned)
    return total


def dense_embeddings(model: Lattice, data: RecData, graph: torch.Tensor, layers: int) -> tuple[torch.Tensor, ...]:
    bought = torch.from_numpy(data.train.toarray())
    whole = torch.zeros(USERS + ITEMS, USERS + ITEMS)
    whole[:USERS, USERS:], whole[USERS:, :USERS] = bought, bought.T
    root = whole.sum(1).rsqrt()
    whole = root[:, None] * whole * root
    own = model.embeddings
    users, items = ((own + whole @ own + whole @ whole @ own) / 3).split([USERS, ITEMS])
    latent = torch.linalg.matrix_power(graph, layers) @ own[USERS:]
    return users, items + latent / latent.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("modalities", [("text",), ("visual",), ("text", "visual")])
@pytest.mark.parametrize(("neighbours", "item_layers"), [(4, 1), (15, 2)])  # 15: some cosines are negative
def test_embeddings_equal_the_formula(
    modalities: tuple[str, ...], neighbours: int, item_layers: int, checkerboard: RecData
) -> None:
    model = build(checkerboard, modalities=modalities, neighbours=neighbours, item_layers=item_layers)
    graph = dense_item_graph(model, checkerboard, neighbours, 0.9)
    expected = dense_embeddings(model, checkerboard, graph, item_layers)
    torch.testing.assert_close(model.eval().embed(), expected, rtol=1e-4, atol=1e-5)


def test_first_step_equals_the_formula_with_its_gradients(checkerboard: RecData) -> None:
    model, dense = build(checkerboard, neighbours=5, l2=0.1), build(checkerboard)
    step = batch(checkerboard)
    model.before_epoch(1)
    terms = model.loss(step)
    sum(terms.values()).backward()

    graph = dense_item_graph(dense, checkerboard, 5, 0.9)
    users, items = dense_embeddings(dense, checkerboard, graph, 1)
    users, positives, negatives = users[step.users], items[step.positives], items[step.negatives]
    ranking = -F.logsigmoid((users * (positives - negatives)).sum(1)).mean()
    l2 = 0.1 * sum(part.square().sum() for part in (users, positives, negatives)) / (2 * len(users))
    torch.testing.assert_close(terms, {"bpr": ranking, "l2": l2})
    (ranking + l2).backward()
    for parameter, other in zip(model.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_first_step_of_an_epoch_teaches_the_projections(checkerboard: RecData) -> None:
    model = build(checkerboard)
    taught = []
    for epoch in (1, 2):
        model.before_epoch(epoch)
        for _ in range(3):
            model.zero_grad()
            sum(model.loss(batch(checkerboard)).values()).backward()
            taught.append([parameter.grad is not None for parameter in model.projections.parameters()])
            assert model.importance.grad.any()
    assert taught == 2 * [[True] * 4, [False] * 4, [False] * 4]


def test_learned_graph_follows_the_projections(checkerboard: RecData) -> None:
    model = build(checkerboard, neighbours=4)
    step = batch(checkerboard)
    before = model.learned_neighbours()
    model.before_epoch(1)
    first = model.loss(step)["bpr"].item()
    with torch.no_grad():
        for weight in model.projections.weights.values():
            weight.normal_(generator=model.generator)
    after = model.learned_neighbours()
    for modality, (ids, weights) in before.items():
        assert not torch.equal(ids, after[modality][0])
        assert not torch.allclose(weights, after[modality][1])
    assert model.loss(step)["bpr"].item() == first  # an epoch keeps its graphs
    model.before_epoch(2)
    assert model.loss(step)["bpr"].item() != first


def test_items_without_features_are_no_neighbours(checkerboard: RecData) -> None:
    text = checkerboard.text.copy()
    text[3] = 0
    model = build(replace(checkerboard, text=text, visual=None), neighbours=5)
    model.projections.biases["text"].data.zero_()
    assert all(torch.isfinite(part).all() for part in model.eval().embed())
    model.train()
    model.before_epoch(1)
    sum(model.loss(batch(checkerboard)).values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
