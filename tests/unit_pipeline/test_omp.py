"""Orthogonal matching pursuit against scikit-learn and a float64 reference, on plain, planted and degenerate data."""

import os
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from llvmlite.binding import get_host_cpu_features
from scipy.sparse import csr_array
from sklearn.linear_model import orthogonal_mp

from pipeline.graphs.execution import Execution
from pipeline.graphs.knn import nearest
from pipeline.graphs.omp import subspace_graph

TINY = 1e-9  # memory_gb: one byte, so there is no room for a Gram matrix and a block has one row


def support(graph: csr_array, row: int) -> list[int]:
    return graph.indices[graph.indptr[row] : graph.indptr[row + 1]].tolist()


def unit(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, norms, out=np.zeros_like(features, np.float64), where=norms > 0).astype(np.float32)


def text_like(rng: np.random.Generator, rows: int, dimensions: int) -> np.ndarray:
    """Clusters around a common direction, with low-rank variation and noise."""
    centres = rng.standard_normal((12, dimensions))[rng.integers(0, 12, rows)]
    variation = rng.standard_normal((rows, 8)) @ rng.standard_normal((8, dimensions)) / 3
    noise = 0.5 * rng.standard_normal((rows, dimensions))
    return unit(centres + variation + noise + 1.5 * rng.standard_normal(dimensions))


def reference(target: np.ndarray, atoms: dict[int, np.ndarray], sparsity: int) -> list[int]:
    """Algorithm 1 in float64 by least squares from scratch each round; atoms by candidate id."""
    chosen: list[int] = []
    skipped: set[int] = set()
    residual = target = target.astype(np.float64)
    while len(chosen) < sparsity and np.linalg.norm(residual) > 1e-6 * np.linalg.norm(target):
        left = [c for c in sorted(atoms) if c not in skipped and c not in chosen]
        correlations = {c: abs(atoms[c].astype(np.float64) @ residual) for c in left}
        if not left or max(correlations.values()) <= 1e-6:
            break
        atom = max(left, key=lambda c: (correlations[c], -c))
        dictionary = np.array([atoms[c] for c in [*chosen, atom]], np.float64).T
        if chosen:
            inside = dictionary[:, :-1] @ np.linalg.lstsq(dictionary[:, :-1], dictionary[:, -1], rcond=None)[0]
            if np.sum((dictionary[:, -1] - inside) ** 2) < 1e-6:
                skipped.add(atom)
                continue
        chosen.append(atom)
        residual = target - dictionary @ np.linalg.lstsq(dictionary, target, rcond=None)[0]
    return sorted(chosen)


@cache
def scikit_learn_supports(same: bool) -> tuple[np.ndarray, np.ndarray | None, list[list[int]]]:
    """Targets, candidates, and the supports that 200 targets get from their 200 nearest candidates, in float64."""
    features = text_like(np.random.default_rng(0), 700, 64)
    targets, candidates = (features, None) if same else (features[:200], features[200:])
    atoms = features if same else features[200:]
    supports = []
    for target, ids in zip(targets[:200], np.sort(nearest(targets, candidates, 200).ids[:200], axis=1), strict=True):
        coefficients = orthogonal_mp(atoms[ids].T.astype(np.float64), target.astype(np.float64), n_nonzero_coefs=10)
        supports.append(ids[np.flatnonzero(coefficients)].tolist())
    return targets, candidates, supports


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("memory_gb", [4.0, TINY])
def test_supports_equal_scikit_learn(same: bool, memory_gb: float) -> None:
    targets, candidates, supports = scikit_learn_supports(same)
    graph = subspace_graph(targets, candidates, 200, 10, Execution(memory_gb=memory_gb))
    assert sum(support(graph, row) == supports[row] for row in range(200)) >= 199


@pytest.mark.parametrize("case", ["duplicates", "collinear", "zeros", "few candidates", "noisy copies", "low rank"])
@pytest.mark.parametrize("memory_gb", [4.0, TINY])
def test_degenerate_dictionaries_equal_the_reference(case: str, memory_gb: float) -> None:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((60, 20))
    dictionary_size, sparsity, alike = 25, 8, 60
    if case == "duplicates":
        features = features[rng.integers(0, 20, 60)]
    elif case == "collinear":
        features[30:] = features[:30] * rng.choice([-2.0, -0.5, 3.0], (30, 1))
        alike = 30  # which of an atom and its multiple comes first is a matter of rounding
    elif case == "zeros":
        features[::3] = 0.0
    elif case == "few candidates":
        features, dictionary_size = features[:6], 800
    elif case == "noisy copies":  # residuals that float32 correlations alone are too coarse for
        features[20:] = features[rng.integers(0, 20, 40)] + 1e-2 * rng.standard_normal((40, 20))
    elif case == "low rank":
        features = rng.integers(-4, 5, (60, 3)).astype(float) @ rng.standard_normal((3, 20))
    units = unit(features)
    graph = subspace_graph(features, None, dictionary_size, sparsity, Execution(memory_gb=memory_gb))
    dictionaries = nearest(features, None, dictionary_size).ids
    for row in range(len(features)):
        expected = reference(units[row], {int(c): units[c] for c in dictionaries[row] if c >= 0}, sparsity)
        assert {atom % alike for atom in support(graph, row)} == {atom % alike for atom in expected}
        assert len(support(graph, row)) == len(expected)


def test_duplicate_of_the_target_alone_explains_it() -> None:
    features = np.random.default_rng(2).standard_normal((12, 9))
    features[[5, 8]] = features[3]
    graph = subspace_graph(features, None, 11, 6)
    assert [support(graph, row) for row in (3, 5, 8)] == [[5], [3], [3]]


def test_opposite_of_the_target_alone_explains_it() -> None:
    features = np.random.default_rng(3).standard_normal((12, 9))
    features[7] = -2.0 * features[2]
    assert support(subspace_graph(features, None, 11, 6), 2) == [7]


def test_combination_of_two_chosen_atoms_is_skipped() -> None:
    """Atoms e0, e1 and their sum: after two of them the third lies in their span, and e2 comes next."""
    candidates = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], np.float32)
    target = np.array([[3, 2, 1, 0.5]], np.float32)
    assert support(subspace_graph(target, candidates, 4, 4), 0) == [0, 2, 3]


def test_equal_correlations_go_to_the_lower_candidate() -> None:
    candidates = np.eye(6, dtype=np.float32)
    assert support(subspace_graph(np.ones((1, 6), np.float32), candidates, 6, 2), 0) == [0, 1]


def test_dictionary_is_the_nearest_candidates_only() -> None:
    """The opposite of the target correlates best of all but is its farthest candidate."""
    candidates = np.array([[1, 0.5, 0], [1, 0, 0.6], [-1, 0, 0]], np.float32)
    target = np.array([[1, 0, 0]], np.float32)
    assert support(subspace_graph(target, candidates, 2, 1), 0) == [0]
    assert support(subspace_graph(target, candidates, 3, 1), 0) == [2]


@pytest.mark.parametrize("memory_gb", [4.0, TINY])
def test_support_stays_inside_the_planted_subspace(memory_gb: float) -> None:
    rng = np.random.default_rng(4)
    bases = [np.linalg.qr(rng.standard_normal((60, 3)))[0] for _ in range(6)]
    features = np.concatenate([rng.standard_normal((50, 3)) @ basis.T for basis in bases])
    graph = subspace_graph(features, None, 800, 10, Execution(memory_gb=memory_gb))
    rows = np.repeat(np.arange(300), np.diff(graph.indptr))
    np.testing.assert_array_equal(rows // 50, graph.indices // 50)
    sizes = np.diff(graph.indptr)
    assert sizes.min() >= 1
    assert sizes.max() == 3  # three atoms span it: the residual is zero from then on


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("memory_gb", [TINY, 0.003])
def test_memory_and_threads_leave_every_edge_as_it_is(same: bool, memory_gb: float) -> None:
    rng = np.random.default_rng(5)
    features = text_like(rng, 1000, 83)
    features[rng.integers(0, 1000, 50)] = features[17]
    candidates = None if same else text_like(rng, 900, 83)
    whole = subspace_graph(features, candidates, 150, 10)
    parts = subspace_graph(features, candidates, 150, 10, Execution(memory_gb=memory_gb, threads=1))
    np.testing.assert_array_equal(whole.indptr, parts.indptr)
    np.testing.assert_array_equal(whole.indices, parts.indices)


@pytest.mark.parametrize(("targets", "candidates"), [
    (np.zeros((3, 2)), None),
    (np.ones((1, 2)), None),
    (np.ones((3, 2)), np.zeros((4, 2))),
    (np.empty((0, 2)), np.ones((4, 2))),
])  # fmt: skip
def test_no_atom_no_edge(targets: np.ndarray, candidates: np.ndarray | None) -> None:
    graph = subspace_graph(targets, candidates)
    assert graph.nnz == 0
    assert graph.shape == (len(targets), len(targets if candidates is None else candidates))


def test_zero_rows_get_no_edges_and_are_never_atoms() -> None:
    features = np.random.default_rng(6).standard_normal((40, 10))
    features[[4, 11]] = 0.0
    graph = subspace_graph(features, None, 20, 5)
    assert not support(graph, 4)
    assert not support(graph, 11)
    assert not set(graph.indices) & {4, 11}
    others = np.setdiff1d(np.arange(40), [4, 11])
    assert (graph[others][:, others] != subspace_graph(features[others], None, 20, 5)).nnz == 0


def test_bad_input_is_named() -> None:
    features = np.ones((5, 3))
    with pytest.raises(ValueError, match="sparsity = 0"):
        subspace_graph(features, None, sparsity=0)
    features[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2 holds NaN"):
        subspace_graph(features, None)


def test_progress_reaches_the_total() -> None:
    calls: list[tuple[int, int]] = []
    features = np.random.default_rng(7).standard_normal((30, 8))
    subspace_graph(features, None, how=Execution(memory_gb=TINY, progress=lambda *call: calls.append(call)))
    assert calls[-1] == (30, 30)


integer_features = arrays(np.float64, st.tuples(st.integers(2, 16), st.integers(1, 6)), elements=st.integers(-3, 3))


@settings(max_examples=60)
@given(features=integer_features, size=st.integers(1, 16), sparsity=st.integers(1, 8), power=st.integers(-6, 6))
def test_invariants(features: np.ndarray, size: int, sparsity: int, power: int) -> None:
    """Support bound, independence of the support, its dictionary, and scale, on features full of ties and zeros."""
    graph = subspace_graph(features, None, size, sparsity)
    scaled = subspace_graph(features * 2.0**power, None, size, sparsity, Execution(memory_gb=TINY))
    assert (graph != scaled).nnz == 0
    dictionaries = nearest(features, None, size).ids
    units = unit(features).astype(np.float64)
    for row in range(len(features)):
        chosen = support(graph, row)
        assert row not in chosen
        assert set(chosen) <= set(dictionaries[row].tolist())
        assert len(chosen) <= min(sparsity, features.shape[1])
        if chosen:
            assert np.linalg.matrix_rank(units[chosen], tol=1e-5) == len(chosen)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_relabelled_rows_give_the_relabelled_graph(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, order = rng.standard_normal((50, 12)), rng.permutation(50)
    graph, moved = subspace_graph(features, None, 20, 6), subspace_graph(features[order], None, 20, 6)
    assert (graph[order][:, order] != moved).nnz == 0


def test_residual_of_scikit_learn_is_no_smaller() -> None:
    """The refit is a least squares fit: no other coefficients on the same support leave less."""
    rng = np.random.default_rng(8)
    features = text_like(rng, 300, 40).astype(np.float64)
    graph = subspace_graph(features, None, 100, 10)
    dictionaries = nearest(features, None, 100).ids
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in range(20):
            chosen, atoms = features[support(graph, row)].T, features[dictionaries[row]].T
            ours = features[row] - chosen @ np.linalg.lstsq(chosen, features[row], rcond=None)[0]
            theirs = features[row] - atoms @ orthogonal_mp(atoms, features[row], n_nonzero_coefs=10)
            assert np.linalg.norm(ours) <= np.linalg.norm(theirs) * (1 + 1e-6)


LANES_SCRIPT = """
import sys
import numpy as np
from llvmlite import binding
ask = binding.get_host_cpu_features
def narrower():
    features = ask()
    features.update({name: False for name in features if name.startswith(tuple(sys.argv[1:]))})
    return features
binding.get_host_cpu_features = narrower
from pipeline.content import array_version, graph_version
from pipeline.graphs import kernels, knn, omp
from pipeline.graphs.execution import Execution
rows = np.random.default_rng(0).standard_normal((700, 45))
found = knn.nearest(rows, None, 30)
graphs = [omp.subspace_graph(rows, None, 90, 10, Execution(memory_gb=memory_gb)) for memory_gb in (4.0, 1e-9)]
print(kernels.LANES, array_version(found.ids), array_version(found.similarities), *map(graph_version, graphs))
"""


@pytest.mark.slow
def test_width_of_the_vector_registers_leaves_every_bit_as_it_is(tmp_path: Path) -> None:
    """Machines with narrower registers (no AVX-512, no AVX) build the same graphs."""
    wide = get_host_cpu_features()["avx512f"]
    seen = {}
    for hidden in ([], ["avx512"], ["avx", "fma"]) if wide else ([], ["avx", "fma"]):
        compiled = {"NUMBA_CACHE_DIR": str(tmp_path / "_".join(hidden))} if hidden else {}
        command = [sys.executable, "-c", LANES_SCRIPT, *hidden]
        found = subprocess.run(
            command, env={**os.environ, **compiled}, capture_output=True, text=True, check=True, timeout=300
        )
        width, *versions = found.stdout.split()
        seen[width] = versions
    assert len(seen) == 2 + wide
    assert len({tuple(versions) for versions in seen.values()}) == 1
