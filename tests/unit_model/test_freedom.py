from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.base import Batch, RecData
from model.baselines.freedom import Freedom, FreedomConfig
from model.sampling import TripletSampler


def build(data: RecData, **settings: object) -> Freedom:
    return Freedom(FreedomConfig(embedding_size=8, **settings), data, torch.Generator().manual_seed(0))


def batch(data: RecData) -> Batch:
    return next(TripletSampler(data.train, 16).epoch(torch.Generator().manual_seed(0)))


def dense_neighbours(features: np.ndarray, k: int) -> np.ndarray:
    """Binary edges to the k nearest by cosine, divided by the root of both row degrees."""
    cosines = features @ features.T  # of unit rows
    graph = np.zeros_like(cosines)
    for item, row in enumerate(cosines):
        graph[item, np.argsort(-row)[:k]] = 1
    degree = graph.sum(1)
    return graph / np.sqrt(degree[:, None] * degree)


def dense(graph: torch.nn.Module) -> np.ndarray:
    return graph(torch.eye(graph.shape[1])).numpy()


def dense_interactions(interactions: np.ndarray) -> np.ndarray:
    users, items = interactions.shape
    whole = np.zeros((users + items, users + items), dtype=np.float32)
    whole[:users, users:], whole[users:, :users] = interactions, interactions.T
    degree = whole.sum(1).clip(min=1)
    return whole / np.sqrt(degree[:, None] * degree)


def test_item_graph_equals_its_formula(checkerboard: RecData) -> None:
    text, visual = (dense_neighbours(part, 10) for part in (checkerboard.text, checkerboard.visual))
    np.testing.assert_allclose(dense(build(checkerboard).item_graph), 0.1 * visual + 0.9 * text, rtol=1e-6)
    assert (text.diagonal() > 0).all()  # an item is its own neighbour
    assert not np.array_equal(text > 0, text.T > 0)  # nobody makes the edges mutual


@pytest.mark.parametrize("modality", ["text", "visual"])
def test_one_modality_alone_has_weight_1(modality: str, checkerboard: RecData) -> None:
    expected = dense_neighbours(getattr(checkerboard, modality), 10)
    other = {"text": "visual", "visual": "text"}[modality]
    np.testing.assert_allclose(dense(build(checkerboard, modalities=(modality,)).item_graph), expected, rtol=1e-6)
    without = replace(checkerboard, **{other: None})
    np.testing.assert_allclose(dense(build(without).item_graph), expected, rtol=1e-6)


def test_items_without_features_are_no_neighbours(checkerboard: RecData) -> None:
    text = checkerboard.text.copy()
    text[3] = 0
    # 15: so many that some cosines of an item are negative, and 0 is nearer.
    model = build(replace(checkerboard, text=text, visual=None), neighbours=15)
    graph = dense(model.item_graph)
    assert not graph[3].any()
    assert not graph[:, 3].any()
    assert ((graph > 0).sum(1) == np.where(np.arange(22) == 3, 0, 15)).all()
    interactions = dense(model.whole_graph)
    own = model.embeddings.detach().numpy()
    alone = (own + interactions @ own + interactions @ interactions @ own) / 3
    np.testing.assert_allclose(model.eval().embed()[1][3].detach(), alone[30 + 3], rtol=1e-4, atol=1e-6)


def test_item_graph_is_frozen(checkerboard: RecData) -> None:
    model = build(checkerboard)
    before = dense(model.item_graph)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for epoch in (1, 2):
        model.before_epoch(epoch)
        sum(model.loss(batch(checkerboard)).values()).backward()
        optimizer.step()
    assert np.array_equal(dense(model.item_graph), before)


def test_training_prunes_by_degree_and_evaluation_does_not(checkerboard: RecData) -> None:
    # Half of the users keep two items each: their edges weigh more than those of the others.
    bought = checkerboard.train.toarray()
    for user in range(0, 30, 2):
        bought[user, np.flatnonzero(bought[user])[2:]] = 0
    data = replace(checkerboard, train=type(checkerboard.train)(bought))
    model = build(data, pruning=0.5)
    users, items = data.train.nonzero()
    weight = 1 / np.sqrt(bought.sum(1)[users] * bought.sum(0)[items])
    share, draws = np.zeros(len(users)), 300
    whole = dense(model.whole_graph)
    for epoch in range(draws):
        model.before_epoch(epoch)
        graph = dense(model.training_graph)
        kept = graph[users, 30 + items] > 0
        assert kept.sum() == len(users) // 2
        share += kept / draws
    # Of draws without replacement in proportion to the weights, one by one: the reference.
    rng, expected = np.random.default_rng(0), np.zeros(len(users))
    for _ in range(draws):
        expected[rng.choice(len(users), size=len(users) // 2, replace=False, p=weight / weight.sum())] += 1 / draws
    few = bought.sum(1)[users] == 2
    assert share[few].mean() == pytest.approx(expected[few].mean(), abs=0.02)
    assert share[~few].mean() == pytest.approx(expected[~few].mean(), abs=0.02)
    assert share[few].mean() > share[~few].mean() + 0.2
    # The last graph is normalised by its own degrees; evaluation takes the whole one.
    left = np.zeros_like(bought)
    left[users[kept], items[kept]] = 1
    np.testing.assert_allclose(graph, dense_interactions(left), rtol=1e-6)
    training = model.embed()[0].detach()
    evaluation = model.eval().embed()[0].detach()
    assert not torch.allclose(training, evaluation)
    own = model.embeddings.detach().numpy()
    np.testing.assert_allclose(evaluation, ((own + whole @ own + whole @ whole @ own) / 3)[:30], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("item_layers", [1, 2])
def test_embeddings_and_loss_terms_equal_brute_force(item_layers: int, checkerboard: RecData) -> None:
    model = build(checkerboard, pruning=0, modality_weight=0.3, item_layers=item_layers)
    whole = torch.from_numpy(dense_interactions(checkerboard.train.toarray()))
    near = torch.linalg.matrix_power(torch.from_numpy(dense(model.item_graph)), item_layers)
    own = model.embeddings.detach()
    users, items = ((own + whole @ own + whole @ whole @ own) / 3).split([30, 22])
    items = items + near @ own[30:]
    torch.testing.assert_close(torch.cat(model.embed()), torch.cat([users, items]), rtol=1e-4, atol=1e-6)

    step = batch(checkerboard)
    terms = model.loss(step)

    def ranking(table: torch.Tensor) -> torch.Tensor:
        difference = table[step.positives] - table[step.negatives]
        return -F.logsigmoid((users[step.users] * difference).sum(1)).mean()

    torch.testing.assert_close(terms["bpr"], ranking(items), rtol=1e-5, atol=0)
    features = (torch.from_numpy(part) for part in (checkerboard.text, checkerboard.visual))
    weights = (model.projections.weights[modality] for modality in ("text", "visual"))
    projected = sum(ranking(part @ weight) for part, weight in zip(features, weights, strict=True))
    torch.testing.assert_close(terms["modality_bpr"], 0.3 * projected, rtol=1e-5, atol=0)
