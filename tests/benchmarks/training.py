"""Epochs of SCALE and LightGCN at Baby's shape beside MMRec's models and the plain torch form.

    SCALE_MMREC=CHECKOUT python tests/benchmarks/training.py [--quick] [--rounds 5]
        [--out docs/benchmarks/training.json]

An epoch is all training steps, with sampling and with what is drawn for the epoch, and without evaluation. All have 64
dimensions and batches of 2,048 and run on the CPU; both LightGCNs have one layer, everything else is the default of
its own project. Ours is the product's `train`, also in its plain torch form (`training.kernels: reference`: COO
products, Adam by torch); MMRec's is what its `fit` does.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks import made, mmrec, results, workers
from tests.benchmarks.workers import Turns

OURS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # job -> model, its settings, settings of training
    "SCALE": ("scale", {}, {}),
    "SCALE, reference form": ("scale", {}, {"kernels": "reference"}),
    "LightGCN": ("lightgcn", {"layers": 1}, {}),
    "LightGCN, reference form": ("lightgcn", {"layers": 1}, {"kernels": "reference"}),
}
PEERS = {"MMRec's LightGCN": "LightGCN", "MMRec's FREEDOM": "FREEDOM"}
GOALS = [  # job, the slower one, goal
    ("SCALE", "MMRec's FREEDOM", 8.0),
    ("SCALE", "MMRec's LightGCN", 1.0),
    ("SCALE", "SCALE, reference form", 5.0),
    ("LightGCN", "MMRec's LightGCN", 3.0),
]
ENDLESS = 10**9


def serve_ours(job: str, folder: Path) -> None:
    """One epoch a turn, as the product itself runs and times it."""
    import torch

    from model.config import TrainingConfig
    from model.registry import load
    from model.training import EpochRecord, train

    turns, data = Turns(), made.dataset(folder)
    name, settings, training = OURS[job]
    kind = load(name)

    def on_epoch(record: EpochRecord) -> None:
        turns.finish(record.seconds)
        if not turns.wait():
            raise SystemExit

    config = TrainingConfig(epochs=ENDLESS, evaluate_every=ENDLESS, device="cpu", **training)
    train(kind(kind.Config(**settings), data, torch.Generator().manual_seed(0)), data, config, on_epoch=on_epoch)


def main() -> None:
    arguments = workers.arguments(__doc__).parse_args()
    size = made.shape(arguments.quick)
    if arguments.job in OURS:
        serve_ours(arguments.job, arguments.folder)
        return
    if arguments.job:
        workers.serve(mmrec.MMRec(PEERS[arguments.job], arguments.folder).epoch)
        return
    names = [*OURS, *(PEERS if mmrec.checkout() else ())]
    with TemporaryDirectory() as folder:
        made.write_interactions(Path(folder), size)
        made.write_graphs(Path(folder), size)
        if mmrec.checkout():
            mmrec.write_dataset(Path(folder), made.with_features(made.dataset(Path(folder)), size))
        measured = workers.interleave(__file__, names, arguments.rounds, Path(folder), arguments.quick)
    rows = []
    for fast, slow, goal in GOALS:
        job, measure = f"{fast} epoch", f"times as fast as {slow.replace('SCALE, reference', 'the plain torch')}"
        if slow in names:
            rows.append(results.row(job, measure, "×", measured.ratios(slow, fast), goal))
        else:
            rows.append(results.missing_row(job, measure, "×", goal, mmrec.MISSING))
    content = results.result(
        "Training",
        f"{size}; 64 dimensions, batches of 2,048. Each job's peak is that of its whole process.",
        arguments.rounds,
        measured.load,
        jobs=results.figures(measured),
        rows=rows,
    )
    results.write(content, arguments.out)


if __name__ == "__main__":
    main()
