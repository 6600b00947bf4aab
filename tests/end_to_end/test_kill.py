"""Killing the process at any stage loses nothing and leaves no half file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from assets.cli import main; main()", "run", "-d", "tiny", "-m", "scale"]

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
    process = start(tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    expected = finished.versions(["scale"])
    with open_pipeline(tmp_path) as resumed:
        assert resumed.versions(["scale"]) == expected
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "checkpoints/tiny/scale.safetensors").exists()
