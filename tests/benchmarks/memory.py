"""Peak memory of every stage of a dataset of Baby's shape, each in a process of its own, with a budget of 2 GB.

    python tests/benchmarks/memory.py [--quick] [--rounds 1] [--out docs/benchmarks/memory.json]

The demo's generator writes a dataset of Baby's size with texts, images and reviews, and the pipeline's own assets run
on it, stage by stage, as Dagster runs them. What is held to the budget is the whole process: Python, Dagster and torch
take part of it before a stage begins.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from model.registry import MODELS
from tests.benchmarks import made, results, workers
from tests.benchmarks.made import Shape
from tests.benchmarks.workers import Measured, Turns, Worker

BUDGET = 2.0  # GB
NAME = "made"
DATASET = """\
title: Made data of Baby's shape
source: {{kind: demo, users: {size.users}, items: {size.items}}}
profiles: {{backend: extractive}}
embeddings: {{encoder: lsa, dimensions: {size.text}}}
subspace: {{dictionary_size: {size.dictionary}, sparsity: {sparsity}}}
training: {{epochs: 2, device: cpu}}
resources: {{memory_gb: {budget}, device: cpu}}
"""


def serve_stage(job: str) -> None:
    """Run one stage and all that is computed together with it, and store what it makes."""
    import dagster as dg

    from assets import home
    from assets.progress import Progress
    from assets.stages import stages

    home.dagster_home()
    turns, (partition, *keys) = Turns(), job.split()
    whole = stages(Progress()).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.get() as instance:
        turns.finish()
        while turns.wait():
            whole.execute_in_process(
                instance=instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(key.split("/")) for key in keys],
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            turns.finish()


def jobs() -> dict[str, str]:
    """What a stage makes -> its job, `PARTITION KEY KEY...`, in an order in which they can run."""
    import dagster as dg

    from assets import home
    from assets.kept_graph import asset_graph
    from assets.progress import Progress
    from assets.refresh import Refresh

    home.dagster_home()
    graph, names = asset_graph(), dict[str, list[str]]()
    with dg.DagsterInstance.get() as instance:
        nodes = Refresh(instance, NAME, {}, list(MODELS), Progress()).nodes
    for node in nodes:
        job = " ".join([node.partition, *("/".join(key.path) for key in graph[node.key].together)])
        names.setdefault(job, []).append(node.name)
    return {", ".join(made): job for job, made in names.items()}


def measure(folder: Path, size: Shape, arguments: argparse.Namespace) -> Measured:
    """Run every stage once a round, one process after the other, in an empty home folder."""
    (folder / f"{NAME}.yaml").write_text(DATASET.format(size=size, sparsity=made.SPARSITY, budget=BUDGET))
    os.environ |= {"SCALE_HOME": str(folder / "home"), "SCALE_DATASETS": str(folder)}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    measured = Measured()
    for turn in range(arguments.rounds):
        for name, job in jobs().items():
            measured.begin(name, turn, arguments.rounds)
            worker = Worker(__file__, job, folder, arguments.quick)
            try:
                worker.ready()
                measured.add(name, **worker.run())
            finally:
                worker.stop()
    return measured


def main() -> None:
    arguments = workers.arguments(__doc__, rounds=1).parse_args()
    size = made.shape(arguments.quick)
    if arguments.job:
        serve_stage(arguments.job)
        return
    with TemporaryDirectory() as folder:
        measured = measure(Path(folder), size, arguments)
    largest, peaks = max(results.peaks(measured).items(), key=lambda stage: max(stage[1]))
    content = results.result(
        "Memory",
        f"{size.users:,} users, {size.items:,} items, about 8 interactions of each user, texts of {size.text} "
        f"dimensions, images of 4,096; dictionaries of {size.dictionary}; `resources.memory_gb: {BUDGET:g}`. "
        "2 epochs of each of all models.",
        arguments.rounds,
        measured.load,
        jobs=results.figures(measured),
        rows=[results.row("every stage", "largest peak of a process", "GB", peaks, BUDGET, "at most")],
        notes=[f"the largest is that of {largest}"],
    )
    results.write(content, arguments.out)


if __name__ == "__main__":
    main()
