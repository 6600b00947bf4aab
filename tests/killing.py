"""`scale` in a process group of its own, so that a test can kill it with all that it has started."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MAIN = "from assets.cli import main; main()"


def start(home: Path, *words: str, script: str = MAIN) -> "subprocess.Popen[str]":
    """Start a command in a home folder; what it says can be read."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *words], env=os.environ | {"SCALE_HOME": str(home)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def kill(home: Path, *words: str, when: Callable[[], bool] = lambda: True, later: float) -> None:
    """Start a command and kill it `later` seconds after a condition has come true, which has to be before its end."""
    process = start(home, *words)
    while True:
        is_time = when()
        try:
            output, _ = process.communicate(timeout=later if is_time else 0.05)
        except subprocess.TimeoutExpired:
            if is_time:
                break
        else:
            raise AssertionError(f"it ended by itself: {output}")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def finish(home: Path, *words: str) -> None:
    """Let a command come to its end."""
    process = start(home, *words)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
