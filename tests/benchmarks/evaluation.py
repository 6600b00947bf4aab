"""Evaluation of one split at Baby's shape beside MMRec's, from the same embeddings.

    SCALE_MMREC=CHECKOUT python tests/benchmarks/evaluation.py [--quick] [--rounds 5]
        [--out docs/benchmarks/evaluation.json]

Both compute Recall and NDCG at the same cut-offs for every user of the validation split, training items masked, and
score a block of users by the product of their embeddings with those of all items. The embeddings know something of
what was held out, so that the metrics that are compared lie far from zero.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.benchmarks import made, mmrec, results, workers
from tests.benchmarks.workers import Job

CUTOFFS = {"10, 20": (10, 20), "5, 10, 20, 50": (5, 10, 20, 50)}  # the product's default, and MMRec's
GOAL = 6.0
DIMENSIONS = 64


def embeddings(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Users (M, d) as noisy means of the items (N, d) that they interacted with, in any split; float32."""
    data, rng = made.dataset(folder), np.random.default_rng(6)
    items = rng.standard_normal((data.item_count, DIMENSIONS))
    every = data.train + data.valid + data.test
    users = (every @ items) / np.diff(every.indptr)[:, None] + 0.5 * rng.standard_normal((data.user_count, DIMENSIONS))
    return users.astype(np.float32), items.astype(np.float32)


def ours(folder: Path, cutoffs: tuple[int, ...]) -> Job:
    """The product's evaluation: `recall@20` -> mean over users."""
    import torch

    from model.metrics import evaluate

    data = made.dataset(folder)
    users, items = map(torch.from_numpy, embeddings(folder))

    def work() -> dict[str, float]:
        means = evaluate(lambda block: users[block] @ items.T, data.train, data.valid, cutoffs).means
        return {name.replace("_at_", "@"): value for name, value in means.items()}

    return work


def theirs(folder: Path, cutoffs: tuple[int, ...]) -> Job:
    """MMRec's evaluation with a model that only multiplies, as ours does."""
    import torch

    peer = mmrec.MMRec("LightGCN", folder, topk=list(cutoffs), metrics=["Recall", "NDCG"])
    users, items = map(torch.from_numpy, embeddings(folder))
    peer.model.full_sort_predict = lambda batch: users[batch[0]] @ items.T
    return peer.evaluate


PARTIES: dict[str, Callable[[Path, tuple[int, ...]], Job]] = {"ours": ours, "MMRec": theirs}


def jobs() -> dict[str, tuple[str, str]]:
    """Job -> who does it, at which cut-offs."""
    parties = PARTIES if mmrec.checkout() else ["ours"]
    return {f"{party}, cut-offs {named}": (party, named) for named in CUTOFFS for party in parties}


def rows(measured: workers.Measured, folder: Path) -> list[results.Json]:
    """Speed and agreement at each pair of cut-offs."""
    found = []
    for named in CUTOFFS:
        job, fast, slow = f"evaluation, cut-offs {named}", f"ours, cut-offs {named}", f"MMRec, cut-offs {named}"
        speed, same = "times as fast as MMRec's", "metrics equal to MMRec's to 4 decimals"
        if slow not in measured.seconds:
            found.append(results.missing_row(job, speed, "×", GOAL, mmrec.MISSING))
            found.append(results.missing_row(job, same, "%", 100, mmrec.MISSING))
            continue
        mine, peers = (json.loads((folder / f"{name}.json").read_text()) for name in (fast, slow))
        equal = [round(mine[name], 4) == value for name, value in peers.items()]
        found.append(results.row(job, speed, "×", measured.ratios(slow, fast), GOAL))
        found.append(results.row(job, same, "%", [100 * float(np.mean(equal))], 100))
    return found


def main() -> None:
    arguments = workers.arguments(__doc__).parse_args()
    size = made.shape(arguments.quick)
    if arguments.job:
        party, named = jobs()[arguments.job]
        kept = arguments.folder / f"{arguments.job}.json"
        workers.serve(
            PARTIES[party](arguments.folder, CUTOFFS[named]), keep=lambda means: kept.write_text(json.dumps(means))
        )
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        made.write_interactions(folder, size)
        if mmrec.checkout():
            mmrec.write_dataset(folder, made.with_features(made.dataset(folder), size))
        measured = workers.interleave(__file__, list(jobs()), arguments.rounds, folder, arguments.quick)
        found = rows(measured, folder)
        means = json.loads((folder / f"ours, cut-offs {next(iter(CUTOFFS))}.json").read_text())
    content = results.result(
        "Evaluation",
        f"{size}; embeddings of {DIMENSIONS} dimensions; the validation split. Each job's peak is that of its whole "
        "process.",
        arguments.rounds,
        measured.load,
        jobs=results.figures(measured),
        rows=found,
        notes=["what was measured: " + ", ".join(f"{name} {value:.4f}" for name, value in means.items())],
    )
    results.write(content, arguments.out)


if __name__ == "__main__":
    main()
