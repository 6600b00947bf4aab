"""Killing the process at any stage loses nothing and leaves no half file."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests import killing

RUN = ["run", "-d", "tiny", "-m", "scale"]

# Kills itself so many seconds after a step has begun, at the latest before it can say that it ended.
KILLED = """
import os, signal, sys, threading
from sqlalchemy import Engine, event

step, delay = sys.argv.pop(1), float(sys.argv.pop(1))
kill = lambda: os.killpg(0, signal.SIGKILL)

@event.listens_for(Engine, "before_cursor_execute")
def watch(connection, cursor, statement, parameters, *_):
    if statement.startswith("INSERT INTO event_logs") and step in parameters:
        if "STEP_START" in parameters:
            threading.Timer(delay, kill).start()
        elif "STEP_SUCCESS" in parameters:
            kill()

from assets.cli import main
main()
"""

# Opens a home, and is gone right after a statement of SQL.
OPEN = """
import os, sys
import dagster as dg
from sqlalchemy import Engine, event
from assets import home, tracking

@event.listens_for(Engine, "after_cursor_execute")
def stop(connection, cursor, statement, *_):
    if len(sys.argv) > 1 and sys.argv[1] in statement:
        os._exit(9)

home.dagster_home()
with dg.DagsterInstance.get() as instance:
    assert instance.get_runs_count() == 0
print(tracking.connect("tiny"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["INSERT INTO alembic_version", "CREATE TABLE secrets"])
def test_killed_while_a_new_home_s_databases_are_made(tmp_path: Path, statement: str):
    """Dagster undoes what was not finished; half of MLflow's database could not be opened again."""
    command, environment = [sys.executable, "-c", OPEN], os.environ | {"SCALE_HOME": str(tmp_path)}
    assert subprocess.run([*command, statement], env=environment, check=False).returncode == 9
    opened = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr
    assert not list(tmp_path.rglob("*.tmp"))


@dataclass
class Step:
    """A step of Dagster's in a clean run."""

    key: str
    partition: str
    seconds: float
    made: list[dg.AssetKey]


def steps(instance: dg.DagsterInstance, partitions: Sequence[str]) -> list[Step]:
    """Every step that made one of some partitions, in the order in which they ran."""
    found: list[Step] = []
    for run in sorted(instance.get_run_records(), key=lambda record: record.start_time or 0):
        partition = run.dagster_run.tags["dagster/partition"]
        if partition not in partitions:
            continue
        entries = [entry for entry in instance.all_logs(run.dagster_run.run_id) if entry.dagster_event]
        kinds = {kind: {} for kind in ("STEP_START", "STEP_SUCCESS")}
        made: dict[str, list[dg.AssetKey]] = {}
        for entry in entries:
            if entry.dagster_event_type in kinds:
                kinds[entry.dagster_event_type][entry.step_key] = entry.timestamp
            elif entry.dagster_event.is_step_materialization:
                made.setdefault(entry.step_key, []).append(entry.dagster_event.asset_key)
        begun, ended = kinds.values()
        found += [Step(key, partition, ended[key] - begun[key], made[key]) for key in begun]
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=pytest.mark.long)])
def test_killed_at_random_moments_of_every_stage_then_finished(
    tmp_path: Path, finished, open_pipeline: Callable, kills: int
):
    """At least so many kills in all, and as many in each stage as in every other."""
    rng = random.Random(0)
    every = steps(finished.instance, ["tiny", "tiny|scale"])
    assert len(every) > 15
    for step in every:
        for turn in range(-(-kills // len(every))):
            for key in step.made:  # it may have come to its end, but for its last word
                stored(tmp_path, key, step.partition).unlink(missing_ok=True)
            delay = str(rng.uniform(0, step.seconds))
            process = killing.start(tmp_path, step.key, delay, *RUN, script=KILLED)
            output, _ = process.communicate(timeout=300)
            assert process.returncode == -signal.SIGKILL, f"{step.key} was not killed ({turn}): {output}"
    finish(tmp_path, finished, open_pipeline)


def stored(home: Path, key: dg.AssetKey, partition: str) -> Path:
    return home.joinpath("store", *key.path, *partition.split("|")).with_suffix(".parquet")


def finish(folder: Path, finished: Any, open_pipeline: Callable) -> None:
    """Let a run come to its end; what is there then is what a clean one makes, and nothing else."""
    killing.finish(folder, *RUN)
    expected = finished.versions(["scale"])
    with open_pipeline(folder) as resumed:
        assert resumed.versions(["scale"]) == expected
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "checkpoints/tiny/scale.safetensors").exists()
