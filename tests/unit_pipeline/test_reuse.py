"""Graphs made from what is left of the last build equal full builds, bit for bit, and compute few rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pipeline.graphs import kept, knn, omp, reuse, subspaces
from pipeline.graphs.execution import Execution


def memory(folder: Path, code: str = "code") -> reuse.Memory:
    def fail(text: str) -> None:
        raise AssertionError(text)

    return reuse.Memory(folder / "graph.npz", code, fail)


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


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 10**6), ties=st.booleans(), same=st.booleans())
def test_equals_a_full_build_after_any_edits(tmp_path_factory, data, seed: int, ties: bool, same: bool) -> None:
    """Edits of targets and candidates on end; with ties: few values, many duplicates and opposites."""
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("memory")
    dimensions = int(rng.integers(2, 40))

    def fresh(rows: int | None = None) -> np.ndarray:
        shape = (dimensions,) if rows is None else (rows, dimensions)
        return rng.integers(-1, 2, shape).astype(np.float32) if ties else rng.standard_normal(shape, np.float32)

    targets = fresh(int(rng.integers(3, 120)))
    candidates = None if same else fresh(int(rng.integers(3, 120)))
    k, size, sparsity = int(rng.integers(1, 8)), int(rng.integers(1, 60)), int(rng.integers(1, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reuse, "SEARCH_LIMIT", 1.0)  # what a few edits are to so few rows
        patch.setattr(reuse, "PURSUIT_LIMIT", 1.0)
        for _ in range(4):
            near = reuse.similarity_graph(targets, candidates, k, memory(folder / "knn"))
            assert_equal(near.graph, knn.similarity_graph(targets, candidates, k))
            assert near.computed + near.reused == len(targets)
            chosen = subspaces.subspace_graph(targets, candidates, size, sparsity, memory(folder / "omp"))
            assert_equal(chosen.graph, omp.subspace_graph(targets, candidates, size, sparsity))
            assert chosen.computed + chosen.reused == len(targets)
            targets = edit(targets, rng, data.draw(KINDS), fresh)
            candidates = None if candidates is None else edit(candidates, rng, data.draw(KINDS), fresh)


def text_like(rng: np.random.Generator, rows: int, topics: int = 6, dimensions: int = 64) -> np.ndarray:
    """Rows about topics far apart: row i is about topic i % topics."""
    centres = 3 * np.linalg.qr(np.random.default_rng(0).standard_normal((dimensions, topics)))[0].T
    return (centres[np.arange(rows) % topics] + 0.2 * rng.standard_normal((rows, dimensions))).astype(np.float32)


@pytest.mark.parametrize("same", [True, False])
def test_one_changed_row_computes_few(tmp_path: Path, same: bool) -> None:
    rng = np.random.default_rng(0)
    targets = text_like(rng, 600)
    candidates = None if same else text_like(rng, 480)
    store = memory(tmp_path)
    first = subspaces.subspace_graph(targets, candidates, 60, 5, store)
    assert (first.computed, first.reused) == (600, 0)
    again = subspaces.subspace_graph(targets, candidates, 60, 5, store)
    assert (again.computed, again.reused) == (0, 600)
    edited = (targets if same else candidates).copy()
    edited[7] = text_like(rng, 2)[1]  # its topic is row 1's and 7's
    now = subspaces.subspace_graph(edited if same else targets, None if same else edited, 60, 5, store)
    assert_equal(now.graph, omp.subspace_graph(edited if same else targets, None if same else edited, 60, 5))
    changed = abs(now.graph - first.graph).sum(axis=1).nonzero()[0]
    assert set(changed % 6) == {1}  # nobody of another topic
    assert changed.size <= now.computed <= changed.size + 20


@pytest.mark.parametrize("same", [True, False])
def test_a_row_far_from_all_computes_only_itself(tmp_path: Path, same: bool) -> None:
    rng = np.random.default_rng(1)
    targets = text_like(rng, 300)
    candidates = None if same else text_like(rng, 240)
    far = np.concatenate([targets if same else candidates, -targets[:1]])
    for build, own in ((reuse.similarity_graph, (5,)), (subspaces.subspace_graph, (40, 5))):
        store = memory(tmp_path / build.__name__)
        build(targets, candidates, *own, store)
        found = build(far if same else targets, None if same else far, *own, store)
        assert found.computed == (1 if same else 0)


def test_an_undone_edit_gives_the_first_graph_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    features, store = text_like(rng, 200), memory(tmp_path)
    first = subspaces.subspace_graph(features, None, 30, 5, store)
    edited = np.delete(features, 50, axis=0)
    subspaces.subspace_graph(edited, None, 30, 5, store)
    assert_equal(subspaces.subspace_graph(features, None, 30, 5, store).graph, first.graph)


def test_other_settings_code_or_types_start_anew(tmp_path: Path) -> None:
    features = text_like(np.random.default_rng(3), 100)
    subspaces.subspace_graph(features, None, 30, 5, memory(tmp_path))
    for change in ({"code": "other"}, {"size": 31}, {"sparsity": 4}, {"kind": np.float64}, {"candidates": features}):
        found = subspaces.subspace_graph(
            features.astype(change.get("kind", np.float32)),
            change.get("candidates"),
            change.get("size", 30),
            change.get("sparsity", 5),
            memory(tmp_path, change.get("code", "code")),
        )
        assert (found.computed, found.reused) == (100, 0)
        subspaces.subspace_graph(features, None, 30, 5, memory(tmp_path))


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.999])
def test_a_damaged_memory_is_reported_and_not_used(tmp_path: Path, place: float) -> None:
    rng = np.random.default_rng(4)
    targets, candidates = text_like(rng, 100), text_like(rng, 90)
    store, notes = memory(tmp_path), []
    first = subspaces.subspace_graph(targets, candidates, 30, 5, store)
    path = store.path
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    found = subspaces.subspace_graph(targets, candidates, 30, 5, store._replace(note=notes.append))
    assert_equal(found.graph, first.graph)
    assert found.reused == 100 or (notes and "damaged" in notes[0])
    assert subspaces.subspace_graph(targets, candidates, 30, 5, store).computed == 0


@pytest.mark.parametrize(("name", "value"), [("ids", 90), ("supports", -2), ("similarities", np.nan), ("plain", None)])
def test_a_memory_that_holds_what_cannot_be_is_not_used(tmp_path: Path, name: str, value: float | None) -> None:
    rng, notes = np.random.default_rng(5), []
    targets, candidates, store = text_like(rng, 100), text_like(rng, 90), memory(tmp_path)
    first = subspaces.subspace_graph(targets, candidates, 30, 5, store)
    with np.load(store.path) as file:
        arrays = dict(file)
    if value is None:
        arrays[name] = arrays[name][:-1]
    else:
        arrays[name][7, 2] = value
    np.savez(store.path, **arrays)
    found = subspaces.subspace_graph(targets, candidates, 30, 5, store._replace(note=notes.append))
    assert_equal(found.graph, first.graph)
    assert found.reused == 0
    assert "damaged" in notes[0]


def test_nothing_is_kept_beyond_half_of_the_budget(tmp_path: Path) -> None:
    features = text_like(np.random.default_rng(6), 100)
    store = memory(tmp_path)
    reuse.similarity_graph(features, None, 5, store)
    assert list(tmp_path.iterdir())
    found = reuse.similarity_graph(features, None, 5, store, Execution(memory_gb=1e-6))
    assert_equal(found.graph, knn.similarity_graph(features, None, 5))
    assert (found.computed, found.reused) == (100, 0)
    assert not list(tmp_path.iterdir())


def test_memory_and_threads_leave_every_edge_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    features = text_like(rng, 1100)
    edited = np.delete(features, 3, axis=0)
    graphs = []
    for name, memory_gb, threads in (("wide", 4.0, None), ("narrow", 0.0061, 1)):
        subspaces.subspace_graph(
            features, None, 80, 5, memory(tmp_path / name), Execution(memory_gb=memory_gb, threads=threads)
        )
        found = subspaces.subspace_graph(
            edited, None, 80, 5, memory(tmp_path / name), Execution(memory_gb=memory_gb, threads=threads)
        )
        assert found.reused > 700
        graphs.append(found.graph)
    assert_equal(*graphs)


@given(before=st.lists(st.sampled_from("abcdefgh")), after=st.lists(st.sampled_from("abcdefgh")))
def test_rows_are_matched_in_order(before: list[str], after: list[str]) -> None:
    found = kept.align([row.encode() for row in before], [row.encode() for row in after])
    matched = found[found >= 0]
    assert (np.diff(matched) > 0).all()
    assert all(before[i] == after[j] for j, i in enumerate(found) if i >= 0)


@given(rows=st.integers(1, 60), place=st.integers(0, 59), other=st.integers(0, 59))
def test_one_edit_leaves_all_other_rows_matched(rows: int, place: int, other: int) -> None:
    before = [b"twin" if row % 3 == 0 else str(row).encode() for row in range(rows)]
    place, other = place % rows, other % rows
    assert (kept.align(before, [*before[:place], b"new", *before[place:]]) >= 0).sum() == rows
    assert (kept.align(before, [*before[:place], *before[place + 1 :]]) >= 0).sum() == rows - 1
    assert (kept.align(before, [*before[:place], b"new", *before[place + 1 :]]) >= 0).sum() == rows - 1
    unique = [str(row).encode() for row in range(rows)]
    moved = unique.copy()
    moved.insert(place, moved.pop(other))
    assert (kept.align(unique, moved) >= 0).sum() >= rows - 1
