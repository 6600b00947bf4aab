"""Killing the process at any stage loses nothing and leaves no half file."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "from assets.cli import main; main()", "run", "-d", "tiny", "-m", "scale"]

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

# Files whose appearance is the moment to kill: in the middle of each part of the pipeline, and of the training.
MOMENTS = [
    "store/.staging/tiny",
    "store/users/tiny.parquet",
    "store/user_profiles/tiny.parquet",
    "store/user_subspace_graph/tiny.parquet",
    "store/semantic_graph/tiny.parquet",
    "checkpoints/tiny/scale.run.json",
    "checkpoints/tiny/scale.safetensors",
    "store/semantic_graph/trained_model/tiny/scale.parquet",
]


def start(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"SCALE_HOME": str(folder)}
    return subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_killed_again_and_again_then_finished_equals_a_clean_run(tmp_path: Path, finished, open_pipeline: Callable):
    kills = 0
    for moment in MOMENTS:
        process = start(tmp_path)
        while not (tmp_path / moment).exists() and process.poll() is None:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= len(MOMENTS) - 1  # a stage can be over before the kill arrives
    finish(tmp_path, finished, open_pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("statement", ["INSERT INTO alembic_version", "CREATE TABLE secrets"])
def test_killed_while_a_new_home_s_databases_are_made(tmp_path: Path, statement: str):
    """Dagster undoes what was not finished; half of MLflow's database could not be opened again."""
    command, environment = [sys.executable, "-c", OPEN], os.environ | {"SCALE_HOME": str(tmp_path)}
    assert subprocess.run([*command, statement], env=environment, check=False).returncode == 9
    opened = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_kills_at_random_moments(tmp_path: Path, finished, open_pipeline: Callable):
    rng = random.Random(0)
    kills = 0
    while kills < 50:
        process = start(tmp_path)
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        try:
            output, _ = process.communicate(timeout=rng.uniform(0, 8))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            assert process.returncode == 0, output
            rng.choice(sorted((tmp_path / "store").rglob("*.parquet"))).unlink()  # something to do again
    finish(tmp_path, finished, open_pipeline)


def finish(folder: Path, finished: Any, open_pipeline: Callable) -> None:
    """Let a run come to its end; what is there then is what a clean one makes, and nothing else."""
    process = start(folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    expected = finished.versions(["scale"])
    with open_pipeline(folder) as resumed:
        assert resumed.versions(["scale"]) == expected
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "checkpoints/tiny/scale.safetensors").exists()
