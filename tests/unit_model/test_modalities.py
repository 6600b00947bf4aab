from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.base import DataError, RecData
from model.modalities import (
    MultimodalConfig,
    Projections,
    item_features,
    item_graph,
    nearest_items,
    neighbour_graph,
    similarity_graph,
)


def test_default_is_every_modality_of_the_dataset(checkerboard: RecData) -> None:
    assert list(item_features(MultimodalConfig(), checkerboard)) == ["text", "visual"]
    assert list(item_features(MultimodalConfig(), replace(checkerboard, visual=None))) == ["text"]


def test_modalities_can_be_chosen(checkerboard: RecData) -> None:
    features = item_features(MultimodalConfig(modalities=("visual",)), checkerboard)
    assert list(features) == ["visual"]
    np.testing.assert_array_equal(features["visual"].numpy(), checkerboard.visual)
    assert list(item_features(MultimodalConfig(modalities=("visual", "text")), checkerboard)) == ["text", "visual"]


def test_a_modality_that_is_missing_is_named(checkerboard: RecData) -> None:
    with pytest.raises(DataError, match="checkerboard has no visual features; take visual out"):
        item_features(MultimodalConfig(modalities=("text", "visual")), replace(checkerboard, visual=None))


@pytest.mark.parametrize("wrong", [(), ("text", "text"), ("sound",)])
def test_wrong_modalities_are_refused(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        MultimodalConfig(modalities=wrong)


def test_nearest_items_equal_brute_force_and_hold_the_item_itself() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    ids, cosines = nearest_items(features, 5)
    units = features / features.norm(dim=1, keepdim=True)
    expected = (units @ units.T).sort(dim=1, descending=True)
    torch.testing.assert_close(cosines, expected.values[:, :5])
    assert torch.equal(ids, expected.indices[:, :5])
    assert torch.equal(ids[:, 0], torch.arange(40))


def test_neighbour_graph_has_k_edges_an_item() -> None:
    graph = neighbour_graph(torch.randn(30, 4, generator=torch.Generator().manual_seed(1)), 7)
    assert graph.shape == (30, 30)
    assert graph.has_canonical_format
    assert (np.diff(graph.indptr) == 7).all()
    assert (graph.data == 1).all()
    assert (graph.diagonal() == 1).all()
    assert neighbour_graph(torch.ones(3, 2), 10).nnz == 9


def test_neighbours_of_items_without_features_are_none() -> None:
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(3))
    whole = neighbour_graph(features, 12).toarray()
    with_gaps = torch.zeros(23, 3)
    described = np.delete(np.arange(23), [0, 7, 22])
    with_gaps[described] = features
    graph = neighbour_graph(with_gaps, 12)
    assert graph.has_canonical_format
    np.testing.assert_array_equal(graph.toarray()[np.ix_(described, described)], whole)
    assert graph.nnz == whole.sum()  # nothing to or from the others
    assert neighbour_graph(torch.zeros(4, 3), 12).nnz == 0


def test_similarity_graph_equals_brute_force() -> None:
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
    features[4] = 0
    units = torch.nn.functional.normalize(features)
    cosines = (units @ units.T).numpy()
    expected = np.zeros_like(cosines)
    for item, row in enumerate(cosines):
        nearest = np.argsort(-row)[:12]  # so many that some are negative
        expected[item, nearest] = row[nearest].clip(min=0)
    degree = expected.sum(1)
    assert degree[4] == 0
    degree[4] = 1
    graph = similarity_graph(features, 12)
    assert graph.has_sorted_indices
    np.testing.assert_allclose(graph.toarray(), expected / np.sqrt(degree[:, None] * degree), rtol=1e-5, atol=1e-7)


def test_projections_of_some_items_are_rows_of_all(checkerboard: RecData) -> None:
    features = item_features(MultimodalConfig(), checkerboard)
    model = Projections(features, 4, torch.Generator().manual_seed(0), bias=True)
    torch.nn.init.ones_(model.biases["text"])
    whole, some = model(), model(torch.tensor([3, 1]))
    for modality, table in whole.items():
        expected = features[modality] @ model.weights[modality] + model.biases[modality]
        torch.testing.assert_close(table, expected)
        torch.testing.assert_close(some[modality], expected[[3, 1]])
    assert set(model.state_dict()) == {f"{kind}.{name}" for kind in ("weights", "biases") for name in features}


def test_item_graph_weighs_the_normalised_graphs() -> None:
    generator = torch.Generator().manual_seed(2)
    features = {"text": torch.randn(30, 4, generator=generator), "visual": torch.randn(30, 6, generator=generator)}
    text, visual = (neighbour_graph(part, 5).toarray() / 5 for part in features.values())  # every degree is 5
    np.testing.assert_allclose(item_graph(features, 5, 0.1).toarray(), 0.9 * text + 0.1 * visual, rtol=1e-6)
    for modality, expected in (("text", text), ("visual", visual)):
        alone = item_graph({modality: features[modality]}, 5, 0.1)
        np.testing.assert_allclose(alone.toarray(), expected, rtol=1e-6)
