"""Fusion (eq. 6): tiny graphs to whole expected matrices, both readings, and every ablation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pipeline.graphs.fusion import fuse, graph_summary
from pipeline.settings import FusionSettings

GRAPHS = {
    "user_subspace": [[0, 1], [0, 0]],
    "item_subspace": [[0, 1, 1], [0, 0, 0], [1, 0, 0]],
    "user_item_subspace": [[1, 1, 0], [0, 0, 1]],
    "user_similarity": [[0, 1], [1, 0]],
    "item_text_similarity": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "item_visual_similarity": [[0, 1, 0], [1, 0, 0], [0, 1, 0]],
    "user_item_similarity": [[1, 0, 0], [0, 1, 1]],
}
NO_IMAGES = csr_array((0, 0), dtype=np.float32)


def graph(rows: Any) -> csr_array:
    return csr_array(np.array(rows, np.float32))


def fused(settings: dict[str, Any], **replaced: csr_array) -> np.ndarray:
    result = fuse(
        **({name: graph(rows) for name, rows in GRAPHS.items()} | replaced), settings=FusionSettings(**settings)
    )
    assert result.dtype == np.float32
    assert result.has_canonical_format
    assert (result.data == 1).all()
    return result.toarray().astype(int)


def test_union() -> None:
    assert fused({}).tolist() == [
        [0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1],
        [1, 0, 0, 1, 1],
        [1, 1, 1, 0, 1],
        [0, 1, 1, 1, 0],
    ]


def test_intersection_as_printed() -> None:
    assert fused({"operator": "intersection", "modality_operator": "intersection"}).tolist() == [
        [0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
    ]


def test_operators_are_apart() -> None:
    """C^I ∧ (G^v ∨ G^t), and C^I ∨ (G^v ∧ G^t)."""
    assert fused({"operator": "intersection"})[2:, 2:].tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert fused({"modality_operator": "intersection"})[2:, 2:].tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("operator", ["union", "intersection"])
def test_without_images_the_text_graph_stands_alone(operator: str) -> None:
    settings = {"operator": "union", "modality_operator": operator, "graphs": "similarity"}
    assert fused(settings, item_visual_similarity=NO_IMAGES)[2:, 2:].tolist() == GRAPHS["item_text_similarity"]


def test_without_either_kind_of_graph() -> None:
    subspace = fused({"graphs": "subspace", "operator": "intersection"})
    assert subspace[:2, :2].tolist() == GRAPHS["user_subspace"]
    assert subspace[:2, 2:].tolist() == GRAPHS["user_item_subspace"]
    assert subspace[2:, 2:].tolist() == GRAPHS["item_subspace"]
    similarity = fused({"graphs": "similarity", "operator": "intersection"})
    assert similarity[:2, :2].tolist() == GRAPHS["user_similarity"]
    assert similarity[:2, 2:].tolist() == GRAPHS["user_item_similarity"]
    assert similarity[2:, 2:].tolist() == [[0, 1, 0], [1, 0, 1], [1, 1, 0]]


def test_without_either_kind_of_block() -> None:
    whole, inter, intra = fused({}), fused({"blocks": "inter"}), fused({"blocks": "intra"})
    assert not inter[:2, :2].any()
    assert not inter[2:, 2:].any()
    assert not intra[:2, 2:].any()
    assert not intra[2:, :2].any()
    np.testing.assert_array_equal(inter + intra, whole)


@pytest.mark.parametrize("blocks", ["all", "intra"])
def test_symmetric_takes_the_maximum_with_the_transpose(blocks: str) -> None:
    directed = fused({"graphs": "subspace", "blocks": blocks})
    symmetric = fused({"graphs": "subspace", "blocks": blocks, "symmetric": True})
    assert (directed != directed.T).any()
    np.testing.assert_array_equal(symmetric, np.maximum(directed, directed.T))


@pytest.mark.parametrize(("name", "message"), [
    ("user_subspace", r"user_subspace has shape \(4, 4\), expected \(2, 2\)"),
    ("item_text_similarity", r"item_text_similarity has shape \(4, 4\), expected \(3, 3\)"),
    ("item_visual_similarity", r"item_visual_similarity has shape \(4, 4\), expected \(3, 3\) or \(0, 0\)"),
])  # fmt: skip
def test_graph_of_another_dataset_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused({}, **{name: csr_array((4, 4), dtype=np.float32)})


@given(seed=st.integers(0, 10**6), operator=st.sampled_from(["union", "intersection"]))
def test_equals_the_dense_formula(seed: int, operator: str) -> None:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(1, 8, 2)
    shapes = {"user": (users, users), "item": (items, items), "user_item": (users, items)}
    dense = {
        name: rng.random(shapes[name.split("_su")[0].split("_text")[0].split("_visual")[0].split("_sim")[0]]) < 0.4
        for name in GRAPHS
    }
    meet = np.logical_or if operator == "union" else np.logical_and
    visual_or_text = dense["item_visual_similarity"] | dense["item_text_similarity"]
    user_item = meet(dense["user_item_subspace"], dense["user_item_similarity"])
    expected = np.block([
        [meet(dense["user_subspace"], dense["user_similarity"]), user_item],
        [user_item.T, meet(dense["item_subspace"], visual_or_text)],
    ])  # fmt: skip
    found = fused({"operator": operator}, **{name: graph(rows) for name, rows in dense.items()})
    np.testing.assert_array_equal(found, expected)


def test_summary_counts_blocks_isolated_nodes_and_degrees() -> None:
    edges = np.zeros((5, 5))
    edges[0, [1, 2, 3]] = edges[1, 4] = edges[2, [0, 1, 3, 4]] = edges[4, 4] = 1
    assert graph_summary(graph(edges), blocks=(2, 3)) == {
        "nodes": 5,
        "edges": 9,
        "isolated": 1,
        "isolated_share": 0.2,
        "density": 9 / 25,
        "degrees": [[0, 1], [1, 2], [2, 1], [4, 1]],
        "edges_uu": 1,
        "edges_ui": 3,
        "edges_iu": 2,
        "edges_ii": 3,
    }


def test_summary_of_a_rectangle_and_of_nothing() -> None:
    assert graph_summary(graph([[1, 1, 1], [0, 0, 0]]))["degrees"] == [[0, 1], [1, 0], [2, 1]]
    assert graph_summary(NO_IMAGES) == {
        "nodes": 0, "edges": 0, "isolated": 0, "isolated_share": 0.0, "density": 0.0, "degrees": []
    }  # fmt: skip
    with pytest.raises(ValueError, match="no blocks of 2 users and 2 items"):
        graph_summary(graph(np.ones((3, 3))), blocks=(2, 2))
