"""Edge lists and neighbour tables to graphs and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pipeline.graphs.csr import _index_type, edges, from_edges, from_neighbours


def test_neighbours_become_sorted_edges_and_minus_one_none() -> None:
    graph = from_neighbours(np.array([[3, 1], [-1, -1], [-1, 0]], np.int32), 4)
    np.testing.assert_array_equal(graph.toarray(), [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(graph.indices, [1, 3, 0])
    assert graph.dtype == np.float32
    assert from_neighbours(np.empty((3, 0), np.int32), 5).shape == (3, 5)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1000),
    density=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_round_trip(shape: tuple[int, int], seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    graph = csr_array((rng.random(shape) < density).astype(np.float32))
    rows, columns = edges(graph)
    assert rows.dtype == columns.dtype == np.int32
    order = rng.permutation(rows.size)
    back = from_edges(rows[order], columns[order], shape)
    np.testing.assert_array_equal(back.indptr, graph.indptr)
    np.testing.assert_array_equal(back.indices, graph.indices)
    np.testing.assert_array_equal(back.data, graph.data)


def test_unsorted_graph_gives_sorted_edges_and_stays_as_it_is() -> None:
    graph = csr_array((np.ones(2, np.float32), np.array([2, 0]), np.array([0, 2])), shape=(1, 3))
    np.testing.assert_array_equal(edges(graph)[1], [0, 2])
    np.testing.assert_array_equal(graph.indices, [2, 0])


@pytest.mark.parametrize(("rows", "columns", "message"), [
    ([0, 1], [0], "two equal lengths"),
    ([0, 3], [0, 0], "edge 1: row 3 is outside"),
    ([0, -1], [0, 0], "edge 1: row -1 is outside"),
    ([0, 1], [0, 9], "edge 1: column 9 is outside"),
    ([0, 1, 0], [2, 2, 2], r"edge 2: \(0, 2\) is given twice"),
])  # fmt: skip
def test_damaged_edge_list_names_the_edge(rows: list[int], columns: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_edges(np.array(rows), np.array(columns), (3, 4))


def test_more_edges_than_32_bits_count_get_wider_pointers() -> None:
    assert _index_type(1_000_000 * 800) is np.int32
    assert _index_type(2**31 - 1) is np.int32
    assert _index_type(3_000_000 * 800) is np.int64
