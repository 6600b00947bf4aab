import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pipeline.graphs.fusion import combine, fuse, graph_summary
from pipeline.settings import FusionSettings

M, N = 5, 4


def graphs(seed: int, visual: bool = True) -> list[np.ndarray]:
    """C^U, C^I, C^UI, G_U, G_I^t, G_I^v, G_UI as dense 0/1 arrays."""
    rng = np.random.default_rng(seed)
    shapes = [(M, M), (N, N), (M, N), (M, M), (N, N), (N, N) if visual else (0, 0), (M, N)]
    return [(rng.random(shape) < 0.4).astype(np.float32) for shape in shapes]


def fused(dense: list[np.ndarray], **choices: object) -> np.ndarray:
    return fuse(*(csr_array(part) for part in dense), FusionSettings(**choices)).toarray()


@pytest.mark.parametrize("operator", ["union", "intersection"])
@pytest.mark.parametrize("modality", ["union", "intersection"])
@pytest.mark.parametrize("visual", [True, False])
def test_equation_6(operator: str, modality: str, visual: bool):
    for seed in range(20):
        cu, ci, cui, gu, gt, gv, gui = dense = graphs(seed, visual)
        meet = {"union": np.maximum, "intersection": np.minimum}
        items = meet[modality](gv, gt) if visual else gt
        c = np.block([[cu, cui], [cui.T, ci]])
        g = np.block([[gu, gui], [gui.T, items]])
        result = fused(dense, operator=operator, modality_operator=modality)
        assert np.array_equal(result, meet[operator](c, g))


def test_ablations_take_away_what_they_name():
    cu, ci, cui, gu, gt, gv, gui = dense = graphs(3)
    assert np.array_equal(fused(dense, graphs="subspace"), np.block([[cu, cui], [cui.T, ci]]))
    similar = np.block([[gu, gui], [gui.T, np.maximum(gt, gv)]])
    assert np.array_equal(fused(dense, graphs="similarity"), similar)
    whole, inter, intra = (fused(dense, blocks=blocks) for blocks in ("all", "inter", "intra"))
    assert np.array_equal(inter + intra, whole)
    assert inter[:M, :M].sum() == inter[M:, M:].sum() == intra[:M, M:].sum() == intra[M:, :M].sum() == 0


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_intersection_within_union_and_symmetry(seed: int):
    dense = graphs(seed)
    both, either = fused(dense, operator="intersection"), fused(dense)
    assert (both <= either).all()
    symmetric = fused(dense, symmetric=True)
    assert np.array_equal(symmetric, np.maximum(either, either.T))
    assert set(np.unique(symmetric)) <= {0, 1}


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 3\)"):
        combine(csr_array((2, 2)), csr_array((3, 3)), "union")


def test_summary_counts():
    graph = csr_array(np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=np.float32))
    summary = graph_summary(graph, (2, 1))
    assert (summary["edges"], summary["isolated"], summary["max_degree"]) == (5, 1, 3)
    assert summary["degree_histogram"] == {"0": 1, "2-3": 2}
    assert [summary[f"edges_{block}"] for block in ("uu", "ui", "iu", "ii")] == [1, 1, 2, 1]
    assert graph_summary(csr_array((0, 0), dtype=np.float32))["edges"] == 0
