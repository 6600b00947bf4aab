"""Two runs of one dataset at once: the second waits for the first, and then finds everything made."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

COMMAND = [sys.executable, "-c", "from assets.cli import main; main()", "run", "-d", "tiny", "-m", "bpr"]


@pytest.mark.slow
def test_two_runs_of_one_dataset_at_once(tmp_path: Path, finished, open_pipeline: Callable):
    environment = os.environ | {"SCALE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted("another run is working on tiny; waiting for it" in output for output in told) == [False, True], told
    expected = finished.versions(["bpr"])
    with open_pipeline(tmp_path) as made:
        assert made.versions(["bpr"]) == expected
        for node in made.refresh(models=["bpr"]).nodes:
            events = dg.AssetRecordsFilter(node.key, asset_partitions=[node.partition])
            assert len(made.instance.fetch_materializations(events, limit=9).records) == 1, node.name
