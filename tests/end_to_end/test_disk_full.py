"""A disk that fills up: a message, nothing half-written, and the next run goes on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from assets.cli import main; main()", "run", "-d", "tiny", "-m", "bpr"]
SIZES = [500, 900, 1400, 2600, 3500, 4500, 5200]  # KB; everything takes about 6,000


def mount(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "tmpfs", folder], capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        tried = mount(folder, "size=500k")
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if tried.returncode:
        pytest.skip(f"a small disk takes the right to mount one: {tried.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_stage(small_disk: Path, finished, open_pipeline: Callable):
    environment = os.environ | {"SCALE_HOME": str(small_disk)}
    for size in SIZES:
        assert mount(small_disk, f"remount,size={size}k").returncode == 0
        ended = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
        said = " ".join((ended.stdout + ended.stderr).split())
        assert ended.returncode == 1, said
        assert "is full: make room, and run the command again" in said
        assert "Traceback" not in said
        assert not list(small_disk.rglob("*.tmp"))
    assert mount(small_disk, "remount,size=64m").returncode == 0
    ended = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with open_pipeline(small_disk) as resumed:
        assert resumed.versions(["bpr"]) == finished.versions(["bpr"])
