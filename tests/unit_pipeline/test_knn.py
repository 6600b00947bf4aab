"""Exact neighbours against brute force, and the promise that a graph depends on its features alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.graphs.execution import Execution
from pipeline.graphs.knn import nearest, similarity_graph
from pipeline.graphs.products import nearest_by_sweep, unit_rows

TINY = 1e-9  # memory_gb: one byte, so a block has one row


def unit(features: np.ndarray) -> np.ndarray:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def brute_force(queries: np.ndarray, candidates: np.ndarray, k: int, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Float64 cosines sorted by (similarity descending, id ascending)."""
    cosines = unit(queries).astype(np.float64) @ unit(candidates).astype(np.float64).T
    if same:
        np.fill_diagonal(cosines, -np.inf)
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(cosines, ids, axis=1)


@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(7, 5, 3, 4), (97, 1201, 64, 40), (500, 481, 33, 1), (13, 3000, 17, 2999)]
)
def test_equals_brute_force(n: int, m: int, d: int, k: int) -> None:
    rng = np.random.default_rng(n)
    queries, candidates = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    found = nearest(queries, candidates, k)
    ids, cosines = brute_force(queries, candidates, k, same=False)
    # Two float64 cosines closer than float32 rounding may swap places: compare ids where neighbours are apart.
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)
    apart = np.ones_like(ids, bool)
    close = np.diff(cosines, axis=1) > -2e-6
    apart[:, 1:] &= ~close
    apart[:, :-1] &= ~close
    apart[:, -1] = False
    np.testing.assert_array_equal(found.ids[apart], ids[apart])
    assert found.ids.dtype == np.int32
    assert found.similarities.dtype == np.float32


def test_same_set_equals_brute_force_and_leaves_self_out() -> None:
    features = np.random.default_rng(0).standard_normal((1100, 24))
    found = nearest(features, None, 12)
    ids, cosines = brute_force(features, features, 12, same=True)
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)
    assert np.mean(found.ids == ids) > 0.999
    assert not (found.ids == np.arange(1100)[:, None]).any()


@pytest.mark.parametrize("memory_gb", [TINY, 0.002, 0.004])
@pytest.mark.parametrize("same", [True, False])
def test_memory_and_threads_leave_every_bit_as_it_is(memory_gb: float, same: bool) -> None:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((1030, 70)).astype(np.float32)
    candidates = None if same else rng.standard_normal((970, 70)).astype(np.float32)
    whole, parts = (
        nearest(features, candidates, 50),
        nearest(features, candidates, 50, Execution(memory_gb=memory_gb, threads=1)),
    )
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_array_equal(whole.similarities, parts.similarities)


def test_similarity_is_symmetric_to_the_bit() -> None:
    features = np.random.default_rng(2).standard_normal((530, 50))
    one, other = features[:200], features[200:]
    there, back = nearest(one, other, 330), nearest(other, one, 200)
    table, mirror = np.empty((200, 330), np.float32), np.empty((330, 200), np.float32)
    np.put_along_axis(table, there.ids.astype(int), there.similarities, axis=1)
    np.put_along_axis(mirror, back.ids.astype(int), back.similarities, axis=1)
    np.testing.assert_array_equal(table, mirror.T)


@pytest.mark.parametrize("memory_gb", [TINY, 4.0])
def test_duplicates_tie_exactly_and_go_to_the_lower_index(memory_gb: float) -> None:
    rng = np.random.default_rng(3)
    originals = rng.standard_normal((40, 31))
    features = originals[rng.integers(0, 40, 1500)]  # each text about 37 times, all over the tiles
    found = nearest(features, None, 100, Execution(memory_gb=memory_gb))
    assert (found.similarities[:, :-1] >= found.similarities[:, 1:]).all()
    tied = found.similarities[:, :-1] == found.similarities[:, 1:]
    assert tied.mean() > 0.9
    assert (found.ids[:, :-1] < found.ids[:, 1:])[tied].all()
    groups = (features[:, None, 0] == originals[None, :, 0]).argmax(axis=1)
    for row in range(0, 1500, 100):
        twins = np.flatnonzero(groups == groups[row])
        twins = twins[twins != row][:100]
        np.testing.assert_array_equal(found.ids[row, : twins.size], twins)


@pytest.mark.parametrize("case", ["plain", "zeros and duplicates", "misleading sample"])
def test_sweep_of_a_large_set_equals_blocks(case: str) -> None:
    """Half the products and floors from a sample: not a bit may differ, even for rows that the sample misleads."""
    rng = np.random.default_rng(6)
    features = rng.standard_normal((8600, 12)).astype(np.float32)
    if case == "zeros and duplicates":
        features[rng.integers(0, 8600, 2000)] = features[5]
        features[rng.integers(0, 8600, 500)] = 0.0
    elif case == "misleading sample":
        features[::8] = features[0]  # the rows that the sample consists of
        features[1::8] = -features[0]
    swept, blocks = nearest(features, None, 9), nearest(features, None, 9, Execution(memory_gb=0.015, threads=1))
    np.testing.assert_array_equal(swept.ids, blocks.ids)
    np.testing.assert_array_equal(swept.similarities, blocks.similarities)
    whole = nearest_by_sweep(unit_rows(features, "features").units, 9, 4e9, None)
    assert whole is not None  # the set is large enough for the sweep
    assert nearest_by_sweep(unit_rows(features, "features").units, 9, 1.5e7, None) is None  # and that budget too small
    assert ((whole[0] < 0).any(axis=1).mean() > 0.5) == (case == "misleading sample")


def test_all_rows_identical_gives_the_lowest_indices() -> None:
    found = nearest(np.ones((2000, 5)), None, 3)
    np.testing.assert_array_equal(
        found.ids[[0, 1, 2, 3, 1999]], [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    )


def test_zero_rows_have_no_neighbours_and_are_nobodys() -> None:
    features = np.random.default_rng(4).standard_normal((30, 6))
    features[[0, 7, 29]] = 0.0
    found = nearest(features, None, 40)
    assert found.ids.shape == (30, 26)
    assert (found.ids[[0, 7, 29]] == -1).all()
    assert (found.similarities[[0, 7, 29]] == 0).all()
    others = np.setdiff1d(np.arange(30), [0, 7, 29])
    for row in others:
        np.testing.assert_array_equal(np.sort(found.ids[row]), others[others != row])
    graph = similarity_graph(features, None, 3)
    assert graph.shape == (30, 30)
    assert graph.nnz == 27 * 3
    assert not set(graph.indices) & {0, 7, 29}


@pytest.mark.parametrize(("queries", "candidates", "shape"), [
    (np.zeros((4, 3)), None, (4, 0)),
    (np.ones((1, 3)), None, (1, 0)),
    (np.empty((0, 3)), None, (0, 0)),
    (np.ones((2, 3)), np.zeros((5, 3)), (2, 0)),
    (np.zeros((2, 3)), np.ones((5, 3)), (2, 2)),
])  # fmt: skip
def test_nothing_to_find(queries: np.ndarray, candidates: np.ndarray | None, shape: tuple[int, int]) -> None:
    found = nearest(queries, candidates, 2)
    assert found.ids.shape == found.similarities.shape == shape
    assert (found.ids == -1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_feature_names_its_row(bad: float) -> None:
    features = np.ones((9, 4))
    features[6, 2] = bad
    with pytest.raises(ValueError, match="features: row 6 holds NaN or infinite"):
        nearest(features, None, 2)
    with pytest.raises(ValueError, match="candidates: row 6"):
        nearest(np.ones((2, 4)), features, 2)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="k = 0"):
        nearest(np.ones((2, 2)), None, 0)
    with pytest.raises(ValueError, match=r"queries have shape \(2, 2\), candidates \(2, 3\)"):
        nearest(np.ones((2, 2)), np.ones((2, 3)), 1)
    with pytest.raises(ValueError, match="expected features of shape"):
        nearest(np.ones(3), None, 1)


def test_progress_reaches_the_total() -> None:
    calls: list[tuple[int, int]] = []
    nearest(
        np.random.default_rng(5).standard_normal((100, 8)),
        None,
        3,
        Execution(memory_gb=TINY, progress=lambda *call: calls.append(call)),
    )
    assert calls == [(done, 100) for done in range(1, 101)]


def test_thread_count_is_put_back() -> None:
    from numba import get_num_threads

    before = get_num_threads()
    nearest(np.ones((5, 2)), None, 1, Execution(threads=1))
    assert get_num_threads() == before


small_features = arrays(np.float64, st.tuples(st.integers(2, 24), st.integers(1, 5)), elements=st.integers(-3, 3))


@settings(max_examples=60)
@given(features=small_features, k=st.integers(1, 6), power=st.integers(-8, 8))
def test_invariants(features: np.ndarray, k: int, power: int) -> None:
    """Top-k bound, order, and indifference to a row's length, on features full of ties and zero rows."""
    found = nearest(features, None, k)
    scaled = nearest(features * 2.0**power, None, k)
    np.testing.assert_array_equal(found.ids, scaled.ids)
    everyone = nearest(features, None, len(features))
    for row, (ids, cosines) in enumerate(zip(found.ids, found.similarities, strict=True)):
        if not features[row].any():
            assert (ids == -1).all()
            continue
        assert row not in ids
        pairs = list(zip(-cosines, ids, strict=True))
        assert pairs == sorted(pairs)
        assert len(set(ids)) == len(ids)
        np.testing.assert_array_equal(ids, everyone.ids[row, : len(ids)])
        assert (np.abs(cosines) <= 1 + 1e-6).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_relabelled_rows_give_the_relabelled_graph(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, order = rng.standard_normal((60, 8)), rng.permutation(60)
    graph, moved = similarity_graph(features, None, 5), similarity_graph(features[order], None, 5)
    assert (graph[order][:, order] != moved).nnz == 0
