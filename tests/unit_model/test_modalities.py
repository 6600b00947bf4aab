from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.base import DataError, RecData
from model.modalities import MultimodalConfig, item_features, item_graph, nearest_items, neighbour_graph


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


def test_item_graph_weighs_the_normalised_graphs() -> None:
    generator = torch.Generator().manual_seed(2)
    features = {"text": torch.randn(30, 4, generator=generator), "visual": torch.randn(30, 6, generator=generator)}
    text, visual = (neighbour_graph(part, 5).toarray() / 5 for part in features.values())  # every degree is 5
    np.testing.assert_allclose(item_graph(features, 5, 0.1).toarray(), 0.9 * text + 0.1 * visual, rtol=1e-6)
    for modality, expected in (("text", text), ("visual", visual)):
        alone = item_graph({modality: features[modality]}, 5, 0.1)
        np.testing.assert_allclose(alone.toarray(), expected, rtol=1e-6)
