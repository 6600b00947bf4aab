"""The neighbour index against exact search: what it finds, what it promises, and that nothing else has a say in it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.graphs.execution import Execution
from pipeline.graphs.index import SAMPLE, SEED, Index, build, cluster
from pipeline.graphs.knn import Neighbours, nearest, similarity_graph
from pipeline.graphs.omp import subspace_graph
from pipeline.graphs.products import memory_left, search, unit_rows
from pipeline.settings import IndexSettings

TINY = 1e-9  # memory_gb: one byte, so a block has one row
INDEXED = IndexSettings(above=1, recall=0.9)


def planted(rows: int, seed: int, dimensions: int = 24) -> np.ndarray:
    """Rows around 40 centres that all sets share, in no order."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    centres = shared.standard_normal((40, dimensions)) + 2 * shared.standard_normal(dimensions)
    noise = 0.4 * rng.standard_normal((rows, dimensions))
    return (centres[rng.integers(0, 40, rows)] + noise).astype(np.float32)


def share_found(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([np.isin(row, ids).mean() for row, ids in zip(true, found, strict=True)]))


def pair(same: bool) -> tuple[np.ndarray, np.ndarray | None]:
    return planted(3000, 0), None if same else planted(2000, 1)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("recall", [0.7, 0.95])
def test_finds_the_share_that_is_asked_for_with_few_comparisons(same: bool, recall: float) -> None:
    shown: dict[str, Any] = {}
    queries, candidates = pair(same)
    found = nearest(
        queries, candidates, 20, Execution(index=IndexSettings(above=1000, recall=recall), report=shown.update)
    )
    true = nearest(queries, candidates, 20)
    assert share_found(found.ids, true.ids) >= recall
    assert shown["compared_share"] < 0.3
    assert shown["recall_asked"] == recall
    sample = np.sort(np.random.default_rng(SEED).permutation(3000)[: 2 * SAMPLE])[1::2]
    assert shown["recall"] == pytest.approx(share_found(found.ids[sample], true.ids[sample]))
    assert shown["recall_sample"] == SAMPLE


@pytest.mark.parametrize("same", [True, False])
def test_what_is_found_has_the_exact_similarity_and_order(same: bool) -> None:
    queries, candidates = pair(same)
    found, everyone = nearest(queries, candidates, 20, Execution(index=INDEXED)), nearest(queries, candidates, 1999)
    table = np.zeros((3000, 3000), np.float32)
    np.put_along_axis(table, everyone.ids.astype(int), everyone.similarities, axis=1)
    np.testing.assert_array_equal(found.similarities, np.take_along_axis(table, found.ids.astype(int), axis=1))
    assert (np.diff(found.similarities, axis=1) <= 0).all()
    assert not (same and (found.ids == np.arange(3000)[:, None]).any())


@pytest.mark.parametrize("same", [True, False])
def test_equals_the_exact_search_when_every_cluster_is_probed(same: bool) -> None:
    queries, candidates = pair(same)
    left = unit_rows(queries, "queries").units
    right = left if candidates is None else unit_rows(candidates, "candidates").units
    index = build(left, right, 15, INDEXED, 1e8, None)
    whole = replace(index, probes=np.full_like(index.probes, len(index.clusters.centroids)))
    assert whole.compared_share == 1
    assert 0 < index.compared_share < 0.5
    true = nearest(queries, candidates, 15)
    np.testing.assert_array_equal(searched(whole, left, right, 15).ids, true.ids)
    np.testing.assert_array_equal(searched(whole, left, right, 15).similarities, true.similarities)


def searched(index: Index, left: np.ndarray, right: np.ndarray, k: int) -> Neighbours:
    ids, similarities = np.full((len(left), k), -1, np.int32), np.zeros((len(left), k), np.float32)
    for rows, chosen, values in search(left, right, k, False, index.comparisons(), 1e8):
        ids[rows], similarities[rows] = chosen, values
    return Neighbours(ids, similarities)


@pytest.mark.parametrize("same", [True, False])
def test_memory_and_threads_leave_every_bit_as_it_is(same: bool) -> None:
    queries, candidates = planted(900, 0), None if same else planted(700, 1)
    whole = nearest(queries, candidates, 20, Execution(index=INDEXED))
    for memory_gb, threads in ((TINY, 1), (0.0005, 2), (4.0, 1)):
        parts = nearest(queries, candidates, 20, Execution(memory_gb=memory_gb, threads=threads, index=INDEXED))
        np.testing.assert_array_equal(whole.ids, parts.ids)
        np.testing.assert_array_equal(whole.similarities, parts.similarities)
    graph = subspace_graph(queries, candidates, 20, 5, Execution(index=INDEXED))
    assert (
        graph != subspace_graph(queries, candidates, 20, 5, Execution(memory_gb=TINY, threads=1, index=INDEXED))
    ).nnz == 0


@pytest.mark.parametrize("k", [60, 299])
def test_more_neighbours_than_a_cluster_has_members(k: int) -> None:
    features = planted(300, 2)
    assert cluster(unit_rows(features, "features").units, 1e8).sizes.max() < 60
    found = nearest(features, None, k, Execution(index=INDEXED)).ids
    assert (np.sort(found, axis=1) >= 0).all()
    assert all(np.unique(row).size == k and own not in row for own, row in enumerate(found))
    across = nearest(features[:50], features[50:], 250, Execution(index=INDEXED)).ids  # as many as there are
    np.testing.assert_array_equal(np.sort(across, axis=1), np.tile(np.arange(250), (50, 1)))


def test_duplicates_tie_exactly_and_go_to_the_lower_index() -> None:
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 30, 1500)
    found = nearest(rng.standard_normal((30, 31))[groups], None, 100, Execution(index=INDEXED))
    tied = found.similarities[:, :-1] == found.similarities[:, 1:]
    assert (found.ids[:, :-1] < found.ids[:, 1:])[tied].all()
    for row in range(0, 1500, 50):
        twins = np.flatnonzero(groups == groups[row])
        twins = twins[twins != row][:100]
        np.testing.assert_array_equal(found.ids[row, : twins.size], twins)
    ones = nearest(np.ones((2000, 5)), None, 3, Execution(index=INDEXED))
    np.testing.assert_array_equal(ones.ids[[0, 1, 1999]], [[1, 2, 3], [0, 2, 3], [0, 1, 2]])


def test_zero_rows_have_no_neighbours_and_are_nobodys() -> None:
    features = planted(400, 4)
    features[::4] = 0.0
    found = nearest(features, None, 10, Execution(index=INDEXED))
    assert (found.ids[::4] == -1).all()
    others = np.setdiff1d(np.arange(400), np.arange(0, 400, 4))
    assert (found.ids[others] % 4 != 0).all()
    assert subspace_graph(features, None, 30, 4, Execution(index=INDEXED)).sum(axis=1)[::4].sum() == 0


@pytest.mark.parametrize("above", [400, 399])
def test_few_candidates_are_searched_exactly(above: int) -> None:
    features, shown = planted(400, 5), {}
    settings = IndexSettings(above=above, recall=0.05)
    found = nearest(features, None, 50, Execution(index=settings, report=shown.update))
    assert bool(shown) == (above < 400)
    assert (found.ids == nearest(features, None, 50).ids).all() == (above == 400)
    assert similarity_graph(features, None, 50, Execution(index=settings)).nnz == 400 * 50


def test_one_query() -> None:
    candidates = planted(500, 6)
    found = nearest(candidates[:1], candidates, 5, Execution(index=INDEXED))
    assert found.ids[0, 0] == 0


@pytest.mark.parametrize("same", [True, False])
def test_a_dictionary_is_what_the_index_finds(same: bool) -> None:
    queries, candidates = pair(same)
    shown: dict[str, Any] = {}
    graph = subspace_graph(queries, candidates, 40, 6, Execution(index=INDEXED, report=shown.update))
    found, true = (nearest(queries, candidates, 40, Execution(index=index)).ids for index in (INDEXED, None))
    exact = subspace_graph(queries, candidates, 40, 6)
    complete = 0
    for row in range(0, 3000, 7):
        support = graph.indices[graph.indptr[row] : graph.indptr[row + 1]]
        assert np.isin(support, found[row]).all()
        if np.array_equal(found[row], true[row]):
            complete += 1
            np.testing.assert_array_equal(support, exact.indices[exact.indptr[row] : exact.indptr[row + 1]])
    assert complete > 50
    assert shown["recall"] >= 0.9


def test_memory_left_is_what_the_process_has_not_taken() -> None:
    said: list[str] = []
    left = memory_left(1000.0, 0, said.append)
    assert 900 < left < 1000
    assert not said
    assert memory_left(0.001, 10**9, said.append) == pytest.approx(1.25)
    assert len(said) == 1
    assert "resources.memory_gb = 0.001 is too little" in said[0]
