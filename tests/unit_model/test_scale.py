from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from model.base import Batch, DataError, RecData, SemanticGraphs
from model.sampling import TripletSampler
from model.scale import Scale, ScaleConfig


def build(data: RecData, seed: int = 0, **settings: object) -> Scale:
    return Scale(ScaleConfig(embedding_size=8, **settings), data, torch.Generator().manual_seed(seed))


def batch(data: RecData, size: int = 64) -> Batch:
    return next(TripletSampler(data.train, size).epoch(torch.Generator().manual_seed(0)))


def dense_representations(model: Scale, data: RecData, layers: int, semantic_layers: int) -> tuple[torch.Tensor, ...]:
    """Eq. 7 with dense matrices, written out."""
    assert data.semantic is not None
    users, items = data.train.shape
    whole = np.zeros((users + items, users + items))
    whole[:users, users:] = data.train.toarray()
    whole += whole.T
    fused = data.semantic.fused.toarray()
    normalised = []
    for graph in (whole, fused):
        root = np.sqrt(graph.sum(1))
        scale = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
        normalised.append(torch.tensor(scale[:, None] * graph * scale, dtype=torch.float32))
    outputs = [model.embeddings.detach()]
    for _ in range(layers):
        outputs.append(normalised[0] @ outputs[-1])
    semantic = outputs[0]
    for _ in range(semantic_layers):
        semantic = normalised[1] @ semantic
    return torch.stack(outputs).mean(0), semantic


@pytest.mark.parametrize(("layers", "semantic_layers"), [(2, 1), (3, 2)])
def test_embeddings_equal_the_equations(layers: int, semantic_layers: int, checkerboard: RecData) -> None:
    model = build(checkerboard, interaction_layers=layers, semantic_layers=semantic_layers)
    interaction, semantic = dense_representations(model, checkerboard, layers, semantic_layers)
    model.eval()
    torch.testing.assert_close(torch.cat(model.embed()), interaction + semantic, rtol=1e-4, atol=1e-6)


def test_loss_terms_equal_the_equations(checkerboard: RecData) -> None:
    model = build(checkerboard, pruning=0, relation_weight=0, l2=0.5)
    interaction, semantic = dense_representations(model, checkerboard, layers=2, semantic_layers=1)
    step = batch(checkerboard)
    terms = model.loss(step)
    hidden, first_item = interaction + semantic, checkerboard.user_count

    users, positives, negatives = step.users, step.positives + first_item, step.negatives + first_item
    margin = (hidden[users] * (hidden[positives] - hidden[negatives])).sum(1)
    torch.testing.assert_close(terms["bpr"], -torch.sigmoid(margin).log().mean())

    alignment = torch.zeros(())
    for nodes in (users.unique(), positives.unique()):
        cosines = F.normalize(interaction[nodes], dim=1) @ F.normalize(semantic[nodes], dim=1).T
        alignment += F.cross_entropy(cosines / 0.6, torch.arange(len(nodes)))
    torch.testing.assert_close(terms["semantic_alignment"], 1e-2 * alignment)

    norm = sum(model.embeddings[nodes].square().sum() for nodes in (users, positives, negatives))
    torch.testing.assert_close(terms["l2"], 0.5 * norm / (2 * len(users)))


def test_relation_samples_come_from_the_supports_and_from_outside_them(checkerboard: RecData) -> None:
    semantic = checkerboard.semantic
    assert semantic is not None
    users = semantic.users.copy().tolil()
    users[4] = 0  # user 4 has an empty support
    data = replace(checkerboard, semantic=replace(semantic, users=csr_array(users)))
    model, first_item = build(data, negatives=3), data.user_count
    drawn = model._draw_relations(torch.arange(data.user_count), first_item + torch.arange(data.item_count))
    supports = (
        (data.semantic.users, 0, 0),
        (semantic.items, first_item, first_item),
        (semantic.users_to_items, 0, first_item),
    )
    assert 4 not in drawn[0][0]
    for (targets, positives, negatives), (support, rows, columns) in zip(drawn, supports, strict=True):
        related = support.toarray() > 0
        assert len(targets) == np.count_nonzero(related.any(1))
        assert related[targets - rows, positives - columns].all()
        outside = negatives.reshape(len(targets), 3)
        assert not related[(targets - rows)[:, None], outside - columns].any()
        assert not (outside == targets[:, None]).any()  # never the target itself


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({}, {"bpr", "semantic_alignment", "relation_alignment"}),
        ({"semantic_weight": 0}, {"bpr", "relation_alignment"}),
        ({"relation_weight": 0}, {"bpr", "semantic_alignment"}),
    ],
)
def test_a_weight_of_zero_is_the_ablation(settings: dict[str, float], terms: set[str], checkerboard: RecData) -> None:
    assert set(build(checkerboard, **settings).loss(batch(checkerboard))) == terms


def test_pruned_graph_serves_training_and_the_whole_one_evaluation(checkerboard: RecData) -> None:
    model = build(checkerboard)
    model.eval()
    whole = model.embed()[0]
    graphs = []
    for epoch in (1, 2):
        model.train()
        model.before_epoch(epoch)
        graphs.append(model.training_graph)
        assert not torch.allclose(model.embed()[0], whole)
        model.eval()
        torch.testing.assert_close(model.embed()[0], whole)
    kept = 2 * int(checkerboard.train.nnz * (1 - 0.6))
    assert [len(graph.values) for graph in graphs] == [kept, kept]
    assert not torch.equal(graphs[0].indices, graphs[1].indices)


def test_contrast_size_limits_the_semantic_alignment(checkerboard: RecData) -> None:
    # With n targets the loss of an untrained model is near log(n), for users and items each.
    weight = {"semantic_weight": 1.0, "relation_weight": 0}
    sampled = build(checkerboard, contrast_size=4, **weight).loss(batch(checkerboard))["semantic_alignment"].item()
    whole = build(checkerboard, **weight).loss(batch(checkerboard))["semantic_alignment"].item()
    assert sampled < 2 * np.log(4) + 0.5 < whole


def test_relation_weight_without_any_support_is_an_error(checkerboard: RecData) -> None:
    semantic = checkerboard.semantic
    assert semantic is not None
    users, items = checkerboard.train.shape
    empty = [csr_array(shape, dtype=np.float32) for shape in ((users, users), (items, items), (users, items))]
    data = replace(checkerboard, semantic=SemanticGraphs(semantic.fused, *empty))
    with pytest.raises(DataError, match="all OMP supports are empty"):
        build(data)
    build(data, relation_weight=0)


def test_one_empty_support_leaves_the_other_relations(checkerboard: RecData) -> None:
    semantic = checkerboard.semantic
    assert semantic is not None
    nothing = csr_array(semantic.users_to_items.shape, dtype=np.float32)
    model = build(replace(checkerboard, semantic=replace(semantic, users_to_items=nothing)))
    assert len(model._draw_relations(torch.arange(5), checkerboard.user_count + torch.arange(5))) == 2
    assert model.loss(batch(checkerboard))["relation_alignment"] > 0
