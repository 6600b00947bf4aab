"""Graphs of a dataset of Baby's shape after an edit of some rows, brought up to date and built from nothing.

    python tests/benchmarks/graph_refresh.py [--quick] [--rounds 3] [--out docs/benchmarks/graph_refresh.json]

One process does all: in every round, for each graph and each share of changed rows, a full build without any memory,
and a refresh from the memory of the unedited rows, files read and written included. Ratios are taken within a round.
Every refreshed graph is compared with the full build's.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import made, results, workers

SHAPES = {"baby": (19_445, 7_050, 768, 800), "quick": (3_000, 1_500, 128, 100)}  # users, items, dimensions, k_s
SHARES = (0.001, 0.01, 0.1)
SPARSITY, NEIGHBOURS = 10, 5


def edited(vectors: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The vectors with a share of the rows made anew."""
    count = max(1, round(len(vectors) * share))
    rows = np.random.default_rng(seed).choice(len(vectors), count, replace=False)
    changed = vectors.copy()
    changed[rows] = made.features(count, vectors.shape[1], seed + 1_000)
    return changed


def jobs(users: np.ndarray, items: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray | None, str, float]]:
    """Name -> targets, candidates, which side is edited, share."""
    sides = {"user": (users, None, "targets"), "item": (items, None, "targets")}
    sides |= {"user-item, users": (users, items, "targets"), "user-item, items": (users, items, "candidates")}
    return {f"{name}, {share:.1%}": (*side, share) for name, side in sides.items() for share in SHARES}


def measure(shape: str, rounds: int) -> dict[str, Any]:
    """Seconds of refreshes and full builds, and rows computed: job -> kind of graph -> figures."""
    from pipeline.graphs import knn, omp, reuse, subspaces

    users, items, dimensions, size = SHAPES[shape]
    sides = made.features(users, dimensions, 1), made.features(items, dimensions, 2)
    kinds: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[int, ...]]] = {
        "subspace": (omp.subspace_graph, subspaces.subspace_graph, (size, SPARSITY)),
        "similarity": (knn.similarity_graph, reuse.similarity_graph, (NEIGHBOURS,)),
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):  # the first one compiles
            for job, (targets, candidates, side, share) in jobs(*sides).items():
                changed = edited(targets if side == "targets" else candidates, share, turn)
                after = (changed, candidates) if side == "targets" else (targets, changed)
                for kind, (full, refresh, sizes) in kinds.items():
                    print(f"round {turn} of {rounds}: {kind}, {job} ...", file=sys.stderr, flush=True)
                    first = _remembered(Path(folder), kind, job, refresh, (targets, candidates, *sizes))
                    figures = found.setdefault(job, {}).setdefault(kind, {"full": [], "refresh": [], "rows": []})
                    full_seconds, expected = _timed(full, *after, *sizes)
                    seconds, built = _timed(refresh, *after, *sizes, first)
                    if not (
                        np.array_equal(built.graph.indptr, expected.indptr)
                        and np.array_equal(built.graph.indices, expected.indices)
                    ):
                        raise SystemExit(f"{kind}, {job}: the refreshed graph is not the full build's")
                    if turn > 0:
                        figures["full"].append(full_seconds)
                        figures["refresh"].append(seconds)
                        figures["rows"].append(built.computed)
    return found


def _remembered(folder: Path, kind: str, job: str, refresh: Callable[..., Any], before: tuple[Any, ...]) -> Any:
    """A fresh copy of the memory of the unedited rows."""
    from pipeline.graphs.reuse import Memory

    name = f"{kind} {job.split(',')[0]}"
    kept, used = folder / name, folder / "used"
    if not kept.exists():
        refresh(*before, Memory(kept / "graph.npz", "code", print))
    shutil.rmtree(used, ignore_errors=True)
    shutil.copytree(kept, used)
    return Memory(used / "graph.npz", "code", print)


def _timed(job: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = job(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    arguments = workers.arguments(__doc__, rounds=3).parse_args()
    shape = "quick" if arguments.quick else "baby"
    load = [os.getloadavg()[0]]
    found = measure(shape, arguments.rounds)
    load.append(os.getloadavg()[0])
    rows = []
    for job, kinds in found.items():
        for kind, figures in kinds.items():
            ratios = [full / refresh for full, refresh in zip(figures["full"], figures["refresh"], strict=True)]
            name = f"{kind} graph, {job}"
            rows += [
                results.row(name, "rows computed", "", figures["rows"]),
                results.row(name, "a full build takes", "s", figures["full"]),
                results.row(name, "the refresh is times as fast", "×", ratios),
            ]
    users, items, dimensions, size = SHAPES[shape]
    about = (
        f"{users:,} users, {items:,} items, texts of {dimensions} dimensions, dictionaries of {size}; a refresh reads "
        "and writes what is kept. Every refreshed graph equals the full build's, edge for edge."
    )
    content = results.result("Graphs after an edit", about, arguments.rounds, load, rows=rows)
    results.write(content, arguments.out)


if __name__ == "__main__":
    main()
