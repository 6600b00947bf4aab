"""Graphs made from what is left of the last build equal full builds, bit for bit, and compute few rows."""

from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pipeline.graphs import knn, omp, reuse

COMMON = dict(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def memory(folder: Path, code: str = "code") -> reuse.Memory:
    def fail(text: str) -> None:
        raise AssertionError(text)

    return reuse.Memory(folder / "graph.parquet", code, fail)


def assert_equal(found: csr_array, expected: csr_array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)


def edit(features: np.ndarray, rng: np.random.Generator, kinds: list[str], fresh) -> np.ndarray:
    """Some edits of rows, one after the other; `fresh` makes a row."""
    rows = list(features)
    for kind in kinds:
        place = int(rng.integers(0, len(rows)))
        other = int(rng.integers(0, len(rows)))
        match kind:
            case "change":
                rows[place] = fresh()
            case "zero":
                rows[place] = np.zeros_like(rows[place])
            case "add":
                rows.insert(place, fresh())
            case "remove" if len(rows) > 3:
                del rows[place]
            case "duplicate":
                rows.insert(place, rows[other].copy())
            case "move":
                rows.insert(place, rows.pop(other))
            case "swap":
                rows[place], rows[other] = rows[other], rows[place]
    return np.array(rows)


KINDS = st.lists(
    st.sampled_from(["change", "zero", "add", "remove", "duplicate", "move", "swap"]), min_size=0, max_size=5
)


@settings(**COMMON)
@given(data=st.data(), seed=st.integers(0, 10**6), ties=st.booleans(), same=st.booleans())
def test_equals_a_full_build_after_any_edits(tmp_path_factory, data, seed: int, ties: bool, same: bool) -> None:
    """Three edits on end of targets and candidates, from one memory; with ties: few values, many duplicates."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("memory")
    dimensions = int(rng.integers(2, 24))

    def fresh(rows: int | None = None) -> np.ndarray:
        shape = (dimensions,) if rows is None else (rows, dimensions)
        return rng.integers(-1, 2, shape).astype(np.float32) if ties else rng.standard_normal(shape, np.float32)

    targets = fresh(int(rng.integers(3, 120)))
    candidates = None if same else fresh(int(rng.integers(3, 120)))
    k, size, sparsity = int(rng.integers(1, 8)), int(rng.integers(1, 60)), int(rng.integers(1, 8))
    for _ in range(4):
        found = reuse.similarity_graph(targets, candidates, k, memory(folder / "knn"))
        assert_equal(found.graph, knn.similarity_graph(targets, candidates, k))
        assert found.computed + found.reused == len(targets)
        found = reuse.subspace_graph(targets, candidates, size, sparsity, memory(folder / "omp"))
        assert_equal(found.graph, omp.subspace_graph(targets, candidates, size, sparsity))
        assert found.computed + found.reused == len(targets)
        targets = edit(targets, rng, data.draw(KINDS), fresh)
        candidates = None if candidates is None else edit(candidates, rng, data.draw(KINDS), fresh)
