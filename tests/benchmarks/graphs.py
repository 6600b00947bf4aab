"""Neighbours and matching pursuit at Baby's shape beside faiss, scikit-learn and spams.

    python tests/benchmarks/graphs.py [--quick] [--rounds 5] [--out docs/benchmarks/graphs.json]

scikit-learn and spams solve a sample of the targets and are extrapolated; each target has a dictionary of its own,
which they are given, so one call solves one target, on one thread. spams takes the atom that lessens the residual
most, not the one that correlates most, so its supports are others: only its time is compared.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks import made, results, workers
from tests.benchmarks.made import SPARSITY, Shape
from tests.benchmarks.workers import Job

SAMPLES = {"pursuit, scikit-learn": 500, "pursuit, spams": 1_000}  # targets solved; the time is extrapolated to all


# ------------------------------------------------------------------------------------------------------------ jobs


def users(size: Shape) -> np.ndarray:
    return made.features(size.users, size.text, seed=1)


def small_budget(size: Shape) -> float:
    """The least that a stage gives to the users' graph, in 10^9 bytes: 0.31 at Baby's shape."""
    from pipeline.graphs.products import LEAST_ROOM

    return (4 * size.users * size.text + LEAST_ROOM) / 1e9


def neighbours(size: Shape, memory_gb: float) -> Job:
    """Top-k of every user among all users, from the features alone."""
    from pipeline.graphs.execution import Execution
    from pipeline.graphs.knn import nearest

    features = users(size)
    return lambda: nearest(features, None, size.dictionary, Execution(memory_gb=memory_gb)).ids


def faiss_neighbours(size: Shape) -> Job:
    """The same by faiss; every user finds itself, too."""
    import faiss

    features = users(size)

    def search() -> np.ndarray:
        index = faiss.IndexFlatIP(size.text)
        index.add(features)
        found: np.ndarray = index.search(features, size.dictionary + 1)[1]
        return found[:, 1:]

    return search


def pursuit(size: Shape) -> Job:
    """Matching pursuit of every user, with the neighbours and the products that they came from at hand."""
    from pipeline.graphs import kernels, products

    units = products.unit_rows(users(size), "users").units
    gram = products.gram(units, 1e12)
    assert gram is not None
    shape = (size.users, size.dictionary)
    ids, similarities = np.empty(shape, np.int32), np.empty(shape, np.float32)
    kernels.select(gram, np.arange(size.users), True, ids, similarities)

    def pursue() -> np.ndarray:
        supports = np.full((size.users, SPARSITY), -1, np.int32)
        kernels.pursue(units, units, ids, similarities, gram, supports)
        return supports

    return pursue


def sampled(size: Shape, name: str, solve: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Job:
    """A peer's pursuit of a sample of the users: `solve` takes atoms (k_s, d) and a target (d,), gives places."""
    features = users(size)
    ids = np.sort(neighbours(size, small_budget(size))(), axis=1)
    return lambda: [ids[t][solve(features[ids[t]], features[t])] for t in sample(size, name)]


def sample(size: Shape, name: str) -> np.ndarray:
    return np.linspace(0, size.users - 1, SAMPLES[name]).astype(int)


def scikit_learn_pursuit(size: Shape) -> Job:
    from sklearn.linear_model import orthogonal_mp

    def solve(atoms: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.flatnonzero(orthogonal_mp(atoms.T, target, n_nonzero_coefs=SPARSITY))

    return sampled(size, "pursuit, scikit-learn", solve)


def spams_pursuit(size: Shape) -> Job:
    import spams

    def solve(atoms: np.ndarray, target: np.ndarray) -> np.ndarray:
        found = spams.omp(np.asfortranarray(target[:, None]), np.asfortranarray(atoms.T), L=SPARSITY, eps=0.0)
        return np.sort(found.indices)

    return sampled(size, "pursuit, spams", solve)


def whole_graph(size: Shape, kind: str, memory_gb: float) -> Job:
    """A subspace graph from features as its stage builds it: neighbours, pursuit, what is kept for the next time."""
    from pipeline.graphs.execution import Execution
    from pipeline.graphs.reuse import Memory
    from pipeline.graphs.subspaces import subspace_graph

    items = made.features(size.items, size.text, seed=2)
    targets, candidates = {"user": (users(size), None), "item": (items, None), "user-item": (users(size), items)}[kind]
    folder = TemporaryDirectory()

    def build() -> Any:
        memory = Memory(Path(folder.name) / "kept.npz", "code", print)
        memory.path.unlink(missing_ok=True)
        how = Execution(memory_gb=memory_gb)
        return subspace_graph(targets, candidates, size.dictionary, SPARSITY, memory, how).graph

    return build


JOBS: dict[str, Callable[[Shape], Job]] = {
    "neighbours": lambda size: neighbours(size, 4.0),
    "neighbours, small budget": lambda size: neighbours(size, small_budget(size)),
    "neighbours, faiss": faiss_neighbours,
    "pursuit": pursuit,
    "pursuit, scikit-learn": scikit_learn_pursuit,
    "pursuit, spams": spams_pursuit,
    "user graph": lambda size: whole_graph(size, "user", 4.0),
    "user graph, small budget": lambda size: whole_graph(size, "user", small_budget(size)),
    "item graph": lambda size: whole_graph(size, "item", 4.0),
    "user-item graph": lambda size: whole_graph(size, "user-item", 4.0),
}


# ---------------------------------------------------------------------------------------------------------- result


def store(result: Any, path: Path) -> None:
    """Keep rows of ids for comparison."""
    rows = list(np.split(result.indices, result.indptr[1:-1]) if hasattr(result, "indptr") else result)
    np.savez(path, pointers=np.cumsum([0, *map(len, rows)]), ids=np.concatenate(rows))


def load(path: Path) -> list[list[int]]:
    """Rows of ids that `store` kept, each sorted."""
    with np.load(path, allow_pickle=False) as content:
        return [np.sort(row[row >= 0]).tolist() for row in np.split(content["ids"], content["pointers"][1:-1])]


def agreement(folder: Path, size: Shape) -> list[str]:
    """How far results are the same: within a small budget and without, and the peers'."""
    found = {path.stem: load(path) for path in folder.glob("*.npz")}

    def same(ours: list[list[int]], theirs: list[list[int]]) -> float:
        return float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)]))

    notes = [
        f"{name}: {same(found[name], found[f'{name}, small budget']):.2%} of the rows are the same within the small "
        "budget and without"
        for name in ("neighbours", "user graph")
    ]
    supports = [found["pursuit"][user] for user in sample(size, "pursuit, scikit-learn")]
    notes.append(f"pursuit: {same(supports, found['pursuit, scikit-learn']):.2%} of the supports are scikit-learn's")
    pairs = zip(found["neighbours"], found["neighbours, faiss"], strict=True)
    overlap = float(np.mean([len(np.intersect1d(ours, theirs)) / len(ours) for ours, theirs in pairs]))
    notes.append(f"neighbours: {overlap:.4%} of the ids are faiss's")
    return notes


def main() -> None:
    arguments = workers.arguments(__doc__).parse_args()
    size = made.shape(arguments.quick)
    if arguments.job:
        workers.serve(
            JOBS[arguments.job](size), keep=lambda result: store(result, arguments.folder / f"{arguments.job}.npz")
        )
        return
    scale = {name: size.users / count for name, count in SAMPLES.items()}
    remarks = {name: f"extrapolated from {count:,} targets" for name, count in SAMPLES.items()}
    with TemporaryDirectory() as folder:
        measured = workers.interleave(__file__, list(JOBS), arguments.rounds, Path(folder), arguments.quick, scale)
        notes = agreement(Path(folder), size)
    content = results.result(
        "Graphs",
        f"{size}; dictionaries of {size.dictionary}, sparsity {SPARSITY}; the small budget is "
        f"{small_budget(size):.2g} GB. Each job's peak is that of its whole process.",
        arguments.rounds,
        measured.load,
        jobs=results.figures(measured, remarks),
        rows=[
            results.row("kNN", "times as fast as faiss", "×", measured.ratios("neighbours, faiss", "neighbours"), 2.4),
            results.row(
                "OMP", "times as fast as scikit-learn", "×", measured.ratios("pursuit, scikit-learn", "pursuit"), 70.0
            ),
            results.row("OMP", "times as fast as spams", "×", measured.ratios("pursuit, spams", "pursuit"), 10.0),
        ],
        notes=notes,
    )
    results.write(content, arguments.out)


if __name__ == "__main__":
    main()
