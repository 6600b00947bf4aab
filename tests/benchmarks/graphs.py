"""Graphs of a dataset of Baby's shape beside faiss, scikit-learn and spams, in one interleaved run.

    python tests/benchmarks/graphs.py [--quick] [--rounds 5] [--out graphs.json]

Every job has a process of its own, so that thread pools do not meet and its peak memory can be told apart; the others
sleep while one works. Rounds go through all jobs in turn, and ratios are taken within a round: on a shared machine only
those mean something. scikit-learn and spams solve a sample of the targets and are extrapolated; each target has a
dictionary of its own, which they are given, so one call solves one target, on one thread. spams takes the atom that
lessens the residual most, not the one that correlates most, so its supports are others: only its time is compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {"baby": (19_445, 7_050, 768, 800), "quick": (3_000, 1_500, 128, 200)}  # users, items, dimensions, k_s
SPARSITY = 10
SAMPLES = {"scikit-learn": 500, "spams": 1_000}  # targets solved; the time is extrapolated to all
Job = Callable[[], Any]


def made_features(rows: int, dimensions: int, seed: int) -> np.ndarray:
    """Unit rows shaped like text embeddings: a common direction, topics, low-rank variation, and noise."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)  # users and items share topics
    common, topics = 2.0 * shared.standard_normal(dimensions), shared.standard_normal((60, dimensions))
    factors = shared.standard_normal((48, dimensions)) / 7
    rows_topics = topics[rng.integers(0, 60, rows)]
    features = common + rows_topics + 0.9 * rng.standard_normal((rows, 48)) @ factors
    features += 0.5 * rng.standard_normal((rows, dimensions))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ jobs


def neighbour_jobs(users: np.ndarray, size: int) -> dict[str, Callable[[], Job]]:
    """Top-k of every user among all users, from the features alone."""

    def ours(memory_gb: float) -> Job:
        from pipeline.graphs.knn import nearest

        return lambda: nearest(users, None, size, memory_gb).ids

    def faiss() -> Job:
        import faiss

        def search() -> np.ndarray:
            index = faiss.IndexFlatIP(users.shape[1])
            index.add(users)
            found = index.search(users, size + 1)[1]  # itself among them
            return found[:, 1:]

        return search

    return {
        "neighbours": lambda: ours(4.0),
        "neighbours, small budget": lambda: ours(small_budget(len(users))),
        "neighbours, faiss": faiss,
    }


def pursuit_jobs(users: np.ndarray, size: int) -> dict[str, Callable[[], Job]]:
    """Matching pursuit of every user, with the neighbours (and for ours the products they came from) at hand."""

    def dictionaries() -> np.ndarray:
        from pipeline.graphs.knn import nearest

        return np.sort(nearest(users, None, size, small_budget(len(users))).ids, axis=1)

    def ours() -> Job:
        from pipeline.graphs import kernels, products

        units = products.unit_rows(users, "users").units
        gram = products.gram(units, 1e12)
        assert gram is not None
        shape = (len(users), size)
        ids, similarities = np.empty(shape, np.int32), np.empty(shape, np.float32)
        kernels.select(gram, np.arange(len(users)), True, ids, similarities)

        def pursue() -> np.ndarray:
            supports = np.full((len(users), SPARSITY), -1, np.int32)
            kernels.pursue(units, units, ids, similarities, gram, supports)
            return np.sort(supports, axis=1)

        return pursue

    def sampled(name: str, solve: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Job:
        ids = dictionaries()
        sample = np.linspace(0, len(users) - 1, SAMPLES[name]).astype(int)
        return lambda: [ids[t][solve(users[ids[t]], users[t])].tolist() for t in sample]

    def scikit_learn() -> Job:
        from sklearn.linear_model import orthogonal_mp

        return sampled(
            "scikit-learn",
            lambda atoms, target: np.flatnonzero(orthogonal_mp(atoms.T, target, n_nonzero_coefs=SPARSITY)),
        )

    def spams() -> Job:
        import spams

        return sampled(
            "spams",
            lambda atoms, target: np.sort(
                spams.omp(np.asfortranarray(target[:, None]), np.asfortranarray(atoms.T), L=SPARSITY, eps=0.0).indices
            ),
        )

    return {"pursuit": ours, "pursuit, scikit-learn": scikit_learn, "pursuit, spams": spams}


def graph_jobs(users: np.ndarray, items: np.ndarray, size: int) -> dict[str, Callable[[], Job]]:
    """Whole subspace graphs from features: neighbours and pursuit."""

    def whole(targets: np.ndarray, candidates: np.ndarray | None, memory_gb: float) -> Job:
        from pipeline.graphs.omp import subspace_graph

        return lambda: subspace_graph(targets, candidates, size, SPARSITY, memory_gb)

    return {
        "user graph": lambda: whole(users, None, 4.0),
        "user graph, small budget": lambda: whole(users, None, small_budget(len(users))),
        "item graph": lambda: whole(items, None, 4.0),
        "user-item graph": lambda: whole(users, items, 4.0),
    }


def small_budget(rows: int) -> float:
    """An eighth of what the Gram matrix takes, in GB: 0.19 for Baby's users."""
    return 4e-9 * rows * rows / 8


def jobs(shape: str) -> dict[str, Callable[[], Job]]:
    """Every job by name; its set-up imports what it needs and returns what is timed."""
    rows, columns, dimensions, size = SHAPES[shape]
    users, items = made_features(rows, dimensions, 1), made_features(columns, dimensions, 2)
    return neighbour_jobs(users, size) | pursuit_jobs(users, size) | graph_jobs(users, items, size)


# ------------------------------------------------------------------------------------------------------- processes


def peak_memory() -> int:
    """High-water mark of this process's resident memory since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def resident_memory() -> int:
    """Resident memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(name: str, shape: str, folder: Path) -> None:
    """Serve one job: a line in starts it, a line out says how long it took and what memory it took beyond its start."""
    job = jobs(shape)[name]()
    job()  # compile, and fault in what stays
    print("ready", flush=True)
    for line in sys.stdin:
        before = resident_memory()
        Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        result = job()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "bytes": peak_memory() - before}), flush=True)
        if line.strip() == "save":
            store(result, folder / f"{name}.npz")
        del result


def store(result: Any, path: Path) -> None:
    """Keep a result for comparison: rows of ids."""
    if hasattr(result, "indptr"):
        np.savez(path, pointers=result.indptr, ids=result.indices)
    else:
        lengths = [len(row) for row in result]
        np.savez(path, pointers=np.concatenate([[0], np.cumsum(lengths)]), ids=np.concatenate(list(result)))


def load(path: Path) -> list[list[int]]:
    """Rows of ids that `store` kept, each sorted."""
    with np.load(path, allow_pickle=False) as content:
        return [np.sort(row[row >= 0]).tolist() for row in np.split(content["ids"], content["pointers"][1:-1])]


class Worker:
    """A process that waits for its turn to do one job."""

    def __init__(self, name: str, shape: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--job", name, "--folder", str(folder)]
        command += ["--quick"] if shape == "quick" else []
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._answer() != "ready":
            raise RuntimeError(f"benchmark job {name} did not start")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, save: bool) -> dict[str, float]:
        """One timed run."""
        assert self.process.stdin is not None
        self.process.stdin.write("save\n" if save else "\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self._answer())
        return answer

    def stop(self) -> None:
        """Let the process end, and wait until what it saved is written."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------------------------------------------------- report


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def agreement(folder: Path, rows: int) -> dict[str, float]:
    """Share of equal rows: small budget against whole, and against the peers."""
    found = {path.stem: load(path) for path in folder.glob("*.npz")}
    result = {}
    for name in ("neighbours", "user graph"):
        pairs = zip(found[name], found[f"{name}, small budget"], strict=True)
        result[f"{name}, small budget"] = float(np.mean([whole == parts for whole, parts in pairs]))
    sample = np.linspace(0, rows - 1, SAMPLES["scikit-learn"]).astype(int)
    pairs = zip(sample, found["pursuit, scikit-learn"], strict=True)
    result["pursuit, scikit-learn"] = float(np.mean([found["pursuit"][t] == theirs for t, theirs in pairs]))
    faiss = zip(found["neighbours"], found["neighbours, faiss"], strict=True)
    overlap = [len(np.intersect1d(ours, theirs, assume_unique=True)) / len(ours) for ours, theirs in faiss]
    result["neighbours, faiss (shared ids)"] = float(np.mean(overlap))
    return result


RATIOS = [  # of two jobs' seconds, and the goal
    ("neighbours, faiss", "neighbours", 2.4),
    ("pursuit, scikit-learn", "pursuit", 70.0),
    ("pursuit, spams", "pursuit", 10.0),
    ("user graph, small budget", "user graph", None),
    ("neighbours, small budget", "neighbours", None),
]


def measure(shape: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Run every job once a round."""
    rows, columns, dimensions, size = SHAPES[shape]
    workers = [Worker(name, shape, folder) for name in jobs(shape)]
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    memory: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for turn in range(rounds):
        for worker in workers:
            print(f"round {turn + 1} of {rounds}: {worker.name} ...", file=sys.stderr)
            answer = worker.run(save=turn == rounds - 1)
            peer = worker.name.removeprefix("pursuit, ")
            seconds[worker.name].append(answer["seconds"] * rows / SAMPLES.get(peer, rows))
            memory[worker.name].append(answer["bytes"])
    for worker in workers:
        worker.stop()
    return {
        "users": rows,
        "items": columns,
        "dimensions": dimensions,
        "dictionary_size": size,
        "sparsity": SPARSITY,
        "rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "peak_gb": {name: max(values) / 1e9 for name, values in memory.items()},
        "ratios": {
            f"{slow} : {fast}": spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
            for slow, fast, _ in RATIOS
        },
        "agreement": agreement(folder, rows),
    }


def table(result: dict[str, Any]) -> str:
    """The figures as plain text."""
    lines = [
        f"{result['users']:,} users, {result['items']:,} items, {result['dimensions']} dimensions, dictionaries of "
        f"{result['dictionary_size']}, sparsity {result['sparsity']}; {result['cores']} cores, "
        f"{result['rounds']} rounds",
        "",
        f"{'seconds':<34}{'median':>9}{'least':>9}{'most':>9}{'peak GB':>10}",
    ]
    for name, values in result["seconds"].items():
        peer = name.removeprefix("pursuit, ")
        note = f"   extrapolated from {SAMPLES[peer]} targets" if peer in SAMPLES else ""
        lines.append(
            f"{name:<34}{values['median']:9.2f}{values['least']:9.2f}{values['most']:9.2f}"
            f"{result['peak_gb'][name]:10.2f}{note}"
        )
    lines += ["", f"{'times as long, in the same round':<56}{'median':>9}{'least':>9}{'most':>9}"]
    for slow, fast, goal in RATIOS:
        values = result["ratios"][f"{slow} : {fast}"]
        note = f"   goal {goal:g}" if goal else ""
        lines.append(
            f"{slow + ' : ' + fast:<56}{values['median']:9.2f}{values['least']:9.2f}{values['most']:9.2f}{note}"
        )
    lines += ["", "share of rows that agree"]
    lines += [f"{name:<56}{share:9.4f}" for name, share in result["agreement"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the figures."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small shape, in under a minute")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = "quick" if arguments.quick else "baby"
    if arguments.job:
        work(arguments.job, shape, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(shape, arguments.rounds, Path(folder))
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
