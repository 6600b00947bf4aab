"""Graphs of a dataset of Baby's shape after an edit of some rows, brought up to date and built from nothing.

    python tests/benchmarks/graph_refresh.py [--quick] [--rounds 3] [--out graph_refresh.json]

One process does all: in every round, for each graph and each share of changed rows, a full build without any memory,
and a refresh from the memory of the unedited rows, files read and written included. Ratios are taken within a round.
Every refreshed graph is compared with the full build's.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {"baby": (19_445, 7_050, 768, 800), "quick": (3_000, 1_500, 128, 100)}  # users, items, dimensions, k_s
SHARES = (0.001, 0.01, 0.1)
SPARSITY, NEIGHBOURS = 10, 5


def made_features(rows: int, dimensions: int, seed: int) -> np.ndarray:
    """Unit rows shaped like text embeddings: a common direction, topics, low-rank variation, and noise."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)  # users and items share topics
    common, topics = 2.0 * shared.standard_normal(dimensions), shared.standard_normal((60, dimensions))
    factors = shared.standard_normal((48, dimensions)) / 7
    rows_topics = topics[rng.integers(0, 60, rows)]
    features = common + rows_topics + 0.9 * rng.standard_normal((rows, 48)) @ factors
    features += 0.5 * rng.standard_normal((rows, dimensions))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def edited(features: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The features with a share of the rows made anew."""
    count = max(1, round(len(features) * share))
    rows = np.random.default_rng(seed).choice(len(features), count, replace=False)
    changed = features.copy()
    changed[rows] = made_features(count, features.shape[1], seed + 1_000)
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
    features = made_features(users, dimensions, 1), made_features(items, dimensions, 2)
    kinds: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[int, ...]]] = {
        "subspace": (omp.subspace_graph, subspaces.subspace_graph, (size, SPARSITY)),
        "similarity": (knn.similarity_graph, reuse.similarity_graph, (NEIGHBOURS,)),
    }
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):  # the first one compiles
            for job, (targets, candidates, side, share) in jobs(*features).items():
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
        refresh(*before, Memory(kept / "graph.parquet", "code", print))
    shutil.rmtree(used, ignore_errors=True)
    shutil.copytree(kept, used)
    return Memory(used / "graph.parquet", "code", print)


def _timed(job: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = job(*arguments)
    return time.perf_counter() - start, result


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small shape")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3, after one that is not counted")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    shape = "quick" if options.quick else "baby"
    load = [os.getloadavg()[0]]
    found = measure(shape, options.rounds)
    load.append(os.getloadavg()[0])
    results: dict[str, Any] = {}
    print("| graph, rows changed | full build, s | refresh, s | times as fast | rows computed |\n|---|---|---|---|---|")
    for job, kinds in found.items():
        for kind, figures in kinds.items():
            ratios = [a / b for a, b in zip(figures["full"], figures["refresh"], strict=True)]
            name = f"{kind} graph, {job}"
            results[name] = {part: spread(figures[part]) for part in ("full", "refresh", "rows")}
            results[name]["times as fast"] = spread(ratios)
            medians = {part: values["median"] for part, values in results[name].items()}
            print(
                f"| {name} | {medians['full']:.2f} | {medians['refresh']:.2f} | {medians['times as fast']:.1f} "
                f"| {medians['rows']:,.0f} |"
            )
    users, items, dimensions, size = SHAPES[shape]
    content = {
        "title": "Graphs after an edit",
        "about": f"{users:,} users, {items:,} items, texts of {dimensions} dimensions, dictionaries of {size}; "
        "seconds of a full build and of a refresh that reads and writes what is kept.",
        "command": "python tests/benchmarks/graph_refresh.py" + (" --quick" if options.quick else ""),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rounds": options.rounds,
        "machine": {"cores": len(os.sched_getaffinity(0)), "load": spread(load)},
        "jobs": results,
        "notes": ["Every refreshed graph equals the full build's, edge for edge."],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
