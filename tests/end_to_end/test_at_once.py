"""Several processes at once: of one dataset they take turns, and in a new home they share its databases."""

import os
import subprocess
import sys
import time
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


OPEN = """
import sys, time
import dagster as dg
from assets import home, tracking
time.sleep(max(0, float(sys.argv[1]) - time.time()))
home.dagster_home()
with dg.DagsterInstance.get() as instance:
    assert instance.get_runs_count() == 0
print(tracking.connect("tiny"))
"""


@pytest.mark.slow
def test_a_new_home_opened_by_several_at_once(tmp_path: Path):
    environment = os.environ | {"SCALE_HOME": str(tmp_path)}
    # At one moment, when all have imported what they need; and one that comes when everything is there.
    moments = [time.time() + 10] * 3 + [time.time() + 15]
    opened = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(moment)], env=environment, stdout=subprocess.PIPE, text=True)
        for moment in moments
    ]
    told = [process.communicate(timeout=300)[0] for process in opened]
    assert [process.returncode for process in opened] == [0] * len(opened)
    assert len(set(told)) == 1  # one experiment
