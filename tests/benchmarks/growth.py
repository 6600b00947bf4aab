"""Graph stages at growing sizes, up to 1,000,000 users and 200,000 items, within a memory budget.

    python tests/benchmarks/growth.py [--quick] [--part 20000] [--budget 16] [--out growth.json]

Every point is a process of its own that does what a stage does: it reads its features from Parquet, makes the graph
and writes it. Peak memory is that process's highest resident memory, features, libraries and all. Users outnumber items
five to one, and sizes and budget apart all settings are the defaults.

With an index, or from users to items, the search stops after the first `--part` targets, in the very code that would do
them all; reading, copies and the whole index are measured, and the search is extrapolated by the number of targets.
`measured` says so of each point. Exact search within one set is done whole, as far as it is shown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import results

USERS = (25_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
QUICK_USERS = (4_000, 8_000, 16_000)
USERS_PER_ITEM = 5
ABOVE, QUICK_ABOVE = 100_000, 5_000  # candidates that are searched exactly at most: the default, and a small one
BABY = (19_445, 7_050)
STAGES = ("similarity", "subspace")
KINDS = {"user": "user", "item": "item", "user_item": "user-item"}
ABOUT = (
    "One made set of features per size (topics, low-rank variation, noise), one run per point. Default settings: "
    "5 neighbours; dictionaries of 800, 10 rounds; an index above 100,000 candidates, made to find 95 % of the true "
    "neighbours. Recall is that of sampled queries against exact search."
)


@dataclass(frozen=True)
class Point:
    """One graph to make: what a process is told.

    Attributes
    ----------
    above
        Candidates above which an index is used.
    part
        Targets after which the search stops and is extrapolated; 0 for all.
    """

    curve: str
    kind: str
    stage: str
    users: int
    items: int
    above: int
    budget_gb: float
    part: int


class Enough(Exception):
    """The measured part of the targets is done."""


# ------------------------------------------------------------------------------------------------- what a process does


def make(path: Path, rows: int, dimensions: int, seed: int) -> None:
    """Write features shaped like text embeddings: a common direction, topics, low-rank variation, and noise."""
    from pipeline import parquet

    shared = np.random.default_rng(0)  # users and items share topics
    common, topics = 2 * shared.standard_normal(dimensions), shared.standard_normal((60, dimensions))
    factors = shared.standard_normal((48, dimensions), np.float32) * 0.9 / 7
    centres = (common + topics).astype(np.float32)
    vectors = np.empty((rows, dimensions), np.float32)
    for block, first in enumerate(range(0, rows, 10_000)):
        part, rng = vectors[first : first + 10_000], np.random.default_rng((seed, block))
        part[:] = rng.standard_normal(part.shape, np.float32) * 0.5
        part += rng.standard_normal((len(part), 48), np.float32) @ factors
        part += centres[rng.integers(0, 60, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    parquet.write_array(vectors, path)


def measure(point: Point, folder: Path) -> dict[str, Any]:
    """Make one graph as its stage does; `seconds`, `peak_gb`, `recall` of an index, `measured` (how much)."""
    from pipeline import parquet
    from pipeline.graphs.execution import Execution
    from pipeline.graphs.knn import similarity_graph
    from pipeline.graphs.omp import subspace_graph
    from pipeline.graphs.products import memory_left
    from pipeline.settings import IndexSettings, SimilaritySettings, SubspaceSettings

    _compile(folder / "warm.parquet")
    start = _clocks()
    targets = parquet.read_array(folder / ("item.parquet" if point.kind == "item" else "user.parquet"))
    candidates = parquet.read_array(folder / "item.parquet") if point.kind == "user_item" else None
    found: dict[str, Any] = {}
    search_began, stopped, done = start, None, 0

    def report(figures: dict[str, Any]) -> None:
        nonlocal search_began
        found.update(figures)
        search_began = _clocks()

    def progress(count: int, total: int) -> None:
        nonlocal stopped, done
        done = count
        if point.part and count >= point.part and count < total:
            stopped = _clocks()
            raise Enough

    features = targets.nbytes + (0 if candidates is None else candidates.nbytes)
    memory_gb = memory_left(point.budget_gb, features, lambda text: print(text, file=sys.stderr))
    how = Execution(memory_gb, index=IndexSettings(above=point.above), progress=progress, report=report)
    try:
        if point.stage == "similarity":
            graph = similarity_graph(targets, candidates, SimilaritySettings().neighbours, how)
        else:
            sizes = SubspaceSettings()
            graph = subspace_graph(targets, candidates, sizes.dictionary_size, sizes.sparsity, how)
        parquet.write_graph(graph, folder / "graph.parquet")
    except Enough:
        pass
    ended, total, measured = _clocks(), len(targets), "whole"
    seconds = ended - start
    if stopped is not None:
        # Without an index, what goes before the search is under a hundredth of it and is extrapolated along.
        seconds = search_began - start + (stopped - search_began) * (total / done)
        measured = f"{done:,} of {total:,} targets" + (", the whole index" if found else "")
    status = Path("/proc/self/status").read_text()
    return {
        "seconds": seconds[0],
        "cpu_seconds": seconds[1],
        "measured_seconds": (ended - start)[0],
        "peak_gb": int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9,
        "recall": found.get("recall"),
        "compared_share": found.get("compared_share", 1.0),
        "measured": measured,
    }


def _clocks() -> np.ndarray:
    """Wall time, and processor time of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def _compile(path: Path) -> None:
    """Load every kernel, by an index of a few rows."""
    from pipeline import parquet
    from pipeline.graphs.execution import Execution
    from pipeline.graphs.knn import similarity_graph
    from pipeline.graphs.omp import subspace_graph
    from pipeline.settings import IndexSettings

    few = parquet.read_array(path)
    for index in (IndexSettings(above=1), None):
        similarity_graph(few, None, 5, Execution(index=index))
        for memory_gb in (1e-9, 1.0):
            subspace_graph(few, None, 40, 10, Execution(memory_gb=memory_gb, index=index))


# ------------------------------------------------------------------------------------------------------------ the plan


def points(users: tuple[int, ...], above: int, budget_gb: float, part: int) -> Iterator[Point]:
    """By size, so that one set of features is on disk at a time."""
    for count in users:
        items = count // USERS_PER_ITEM
        for kind, name in KINDS.items():
            candidates = count if kind == "user" else items
            some = part if kind == "user_item" or candidates > above else 0
            for stage in STAGES:
                yield Point(f"{name} {stage} graph", kind, stage, count, items, above, budget_gb, some)
        if count <= above:  # the other way than by default
            for stage in STAGES:
                yield Point(f"user {stage} graph, always by index", "user", stage, count, items, 1, budget_gb, part)


def baby_points() -> Iterator[Point]:
    """Every graph of Baby's shape, whole and within 2 GB."""
    for kind, name in KINDS.items():
        for stage in STAGES:
            yield Point(f"{name} {stage} graph, Baby's shape within 2 GB", kind, stage, *BABY, ABOVE, 2.0, 0)


def run_all(plan: list[Point], dimensions: int) -> Iterator[dict[str, dict[str, list[Any]]]]:
    """Curve -> one list per figure, in order of size; given after every point, since all of them take long."""
    curves: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, shape = Path(name), None
        for point in plan:
            if (point.users, point.items) != shape:
                shape = (point.users, point.items)
                sizes = {"user": (point.users, 1), "item": (point.items, 2), "warm": (500, 3)}
                for side, (rows, seed) in sizes.items():
                    _process("--make", json.dumps([f"{folder}/{side}.parquet", rows, dimensions, seed]))
            print(f"{point.curve}: {point.users:,} users, {point.items:,} items ...", file=sys.stderr, flush=True)
            figures = json.loads(_process("--point", json.dumps(asdict(point)), "--folder", str(folder)))
            entities = point.items if point.kind == "item" else point.users
            print("    " + ", ".join(f"{key} {_shown(value)}" for key, value in figures.items()), file=sys.stderr)
            curve = curves.setdefault(point.curve, {})
            for key, value in {"x": entities, **figures}.items():
                curve.setdefault(key, []).append(value)
            yield curves


def _process(*words: str) -> str:
    command = [sys.executable, __file__, *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes of 128 dimensions, in a few minutes")
    parser.add_argument("--part", type=int, default=20_000, help="targets that are measured; 0: all (default: 20000)")
    parser.add_argument("--budget", type=float, default=16.0, help="10^9 bytes of a stage's process (default: 16)")
    parser.add_argument("--users", type=int, nargs="+", help="sizes other than the usual ones")
    parser.add_argument("--baby", action="store_true", help="Baby's shape within 2 GB alone")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        path, *rest = json.loads(options.make)
        return make(Path(path), *rest)
    if options.point:
        print(json.dumps(measure(Point(**json.loads(options.point)), options.folder)))
        return None
    users = tuple(options.users or (QUICK_USERS if options.quick else USERS))
    above = QUICK_ABOVE if options.quick else ABOVE
    part = min(options.part, 2_000) if options.quick else options.part
    growing = [] if options.baby else points(users, above, options.budget, part)
    plan = [*growing, *([] if options.quick else baby_points())]
    notes = [
        f"Budget of a stage's process: {options.budget:g} GB, all memory counted; 10^9 bytes.",
        "Seconds, and cpu_seconds of all threads, of a point of which a part was measured are extrapolated: see "
        "`measured`.",
    ]
    result = results.result("Growth of the graph stages", ABOUT, 1, [os.getloadavg()[0]], notes=notes)
    for curves in run_all(plan, 128 if options.quick else 768):
        result["curves"] = [{"name": name, **figures} for name, figures in curves.items()]
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        if options.out:
            options.out.write_text(text)
    if not options.out:
        print(text)
    return None


if __name__ == "__main__":
    main()
