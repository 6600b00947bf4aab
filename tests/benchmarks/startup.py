"""How soon the commands answer, each in a process of its own: imports, help, looks, and a refresh with nothing to do.

    python tests/benchmarks/startup.py [--quick] [--rounds 5] [--out docs/benchmarks/startup.json]

The refresh looks after every stage of three models on the demo, made once before; with --quick on a smaller dataset.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks import results, workers
from tests.benchmarks.workers import Measured

MODELS = ("scale", "lightgcn", "bpr")
# What any command that asks Dagster for a record takes: its import, its storage, one query.
DAGSTER = (
    "import dagster as d; i = d.DagsterInstance.get(); i.get_asset_records([d.AssetKey('raw_reviews')]); i.dispose()"
)
SCALE = [sys.executable, "-c", "from assets.cli import main; main()"]  # what the command `scale` does


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Seconds and peak resident memory (bytes) of a command, which has to succeed."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; what it said is above")
    return seconds, used.ru_maxrss * 1024


def main() -> None:
    arguments = workers.arguments(__doc__).parse_args()
    dataset = "tiny" if arguments.quick else "demo"
    commands = {
        "a bare Python": [sys.executable, "-c", "pass"],
        "Dagster alone, one record": [sys.executable, "-c", DAGSTER],
        "import assets.definitions": [sys.executable, "-c", "import assets.definitions"],
        "scale --help": [*SCALE, "--help"],
        "scale status": [*SCALE, "status", "--dataset", dataset],
        "scale compare": [*SCALE, "compare", "--dataset", dataset],
        "scale refresh, nothing to do": [*SCALE, "refresh", "--dataset", dataset],
    }
    with TemporaryDirectory() as home:
        datasets = Path(__file__).parents[1] / "datasets"
        environment = {
            **os.environ,
            "SCALE_HOME": home,
            "SCALE_DATASETS": str(datasets),
            "DAGSTER_HOME": f"{home}/dagster",
        }
        timed([*SCALE, "run", "-d", dataset, *(word for name in MODELS for word in ("-m", name))], environment)
        for command in commands.values():
            timed(command, environment)  # files are read from the disk once
        measured = Measured()
        for turn in range(arguments.rounds):
            for name, command in commands.items():
                measured.begin(name, turn, arguments.rounds)
                seconds, peak = timed(command, environment)
                measured.add(name, seconds, peak)
    bare, dagster, imported, helped, status, compared, refreshed = measured.seconds.values()
    beyond = [a - b for a, b in zip(refreshed, bare, strict=True)]
    apart = [a - b for a, b in zip(status, dagster, strict=True)]
    content = results.result(
        "Start-up",
        "Whole processes, from their start to their end, files in the page cache.",
        arguments.rounds,
        measured.load,
        jobs=results.figures(measured),
        rows=[
            results.row("import assets.definitions", "the whole process", "s", imported, 3.0, "at most"),
            results.row("scale --help", "the whole process", "s", helped, 0.5, "at most"),
            results.row("scale status", "the whole process", "s", status, 2.0, "at most"),
            results.row("scale status", "beyond Dagster alone", "s", apart),
            results.row("scale compare", "the whole process", "s", compared, 2.0, "at most"),
            results.row("scale refresh, nothing to do", "beyond a bare Python", "s", beyond, 5.0, "at most"),
        ],
    )
    results.write(content, arguments.out)


if __name__ == "__main__":
    main()
