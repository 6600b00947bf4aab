from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from model.base import RecData
from model.baselines.layergcn import LayerGCN, LayerGCNConfig


def build(data: RecData, **settings: object) -> LayerGCN:
    return LayerGCN(LayerGCNConfig(**settings), data, torch.Generator().manual_seed(0))


def test_refinement_by_hand(checkerboard: RecData) -> None:
    # One user and one item: A swaps them. With X_0 = (u, i) and cosine 0.6 between them, X_1 = 0.6 (i, u); then
    # A X_1 = 0.6 (u, i) has cosine 1 to X_0, so X_2 = 0.6 (u, i), and H = 0.6 (u + i, u + i).
    pair = csr_array(np.ones((1, 1), dtype=np.float32))
    data = replace(checkerboard, train=pair, valid=pair, test=pair, text=None, user_text=None, visual=None,
                   semantic=None)  # fmt: skip
    model = build(data, embedding_size=2, layers=2)
    user, item = torch.tensor([2.0, 0.0]), torch.tensor([0.3, 0.4])
    model.embeddings.data = torch.stack([user, item])
    expected = 0.6 * (user + item)
    torch.testing.assert_close(torch.cat(model.eval().embed()), torch.stack([expected, expected]))


@pytest.mark.parametrize("layers", [1, 3])
def test_embeddings_equal_the_dense_recursion(layers: int, checkerboard: RecData) -> None:
    model = build(checkerboard, embedding_size=8, layers=layers).eval()
    users, items = checkerboard.train.shape
    adjacency = np.zeros((users + items, users + items), dtype=np.float32)
    adjacency[:users, users:] = checkerboard.train.toarray()
    adjacency += adjacency.T
    root = np.sqrt(adjacency.sum(1))
    normalised = torch.from_numpy(adjacency / root[:, None] / root)
    own = layer = model.embeddings.detach()
    total = torch.zeros_like(own)
    for _ in range(layers):
        layer = normalised @ layer
        layer = torch.cosine_similarity(layer, own)[:, None] * layer
        total += layer
    torch.testing.assert_close(torch.cat(model.embed()), total)


def test_pruning_goes_by_degree_in_odd_epochs_and_uniformly_in_even_ones(checkerboard: RecData) -> None:
    # One edge is kept of five: (0, 0..3), each of weight 1/sqrt(4), and (1, 4) of weight 1.
    dense = np.zeros(checkerboard.train.shape, dtype=np.float32)
    dense[0, :4] = dense[1, 4] = 1
    model = build(replace(checkerboard, train=csr_array(dense)), pruning=0.8 - 1e-9)
    kept = []
    for epoch in range(1, 1201):
        model.before_epoch(epoch)
        assert len(model.training_graph.values) == 2  # one edge, both ways
        kept.append(model.training_graph.indptr[2] > model.training_graph.indptr[1])  # user 1 has it
    assert np.mean(kept[0::2]) == pytest.approx(1 / 3, abs=0.06)
    assert np.mean(kept[1::2]) == pytest.approx(1 / 5, abs=0.06)


def test_pruned_graph_serves_training_and_the_whole_one_evaluation(checkerboard: RecData) -> None:
    model = build(checkerboard, pruning=0.3)
    whole = model.eval().embed()[0]
    model.train().before_epoch(1)
    assert not torch.allclose(model.embed()[0], whole)
    assert torch.equal(model.eval().embed()[0], whole)


def test_no_pruning_leaves_the_whole_graph(checkerboard: RecData) -> None:
    model = build(checkerboard, pruning=0)
    model.before_epoch(1)
    assert model.training_graph is model.whole_graph
