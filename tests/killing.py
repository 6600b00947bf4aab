"""`scale` in a process group of its own, so that a test can kill it with all that it has started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from assets.cli import main; main()"]


def start(home: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a command in a home folder; what it says can be read."""
    return subprocess.Popen(
        [*COMMAND, *words], env=os.environ | {"SCALE_HOME": str(home)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def kill_after(seconds: float, home: Path, *words: str) -> None:
    """Start a command and kill it at a moment at which it cannot have ended."""
    process = start(home, *words)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        raise AssertionError(f"it ended by itself: {output}")


def finish(home: Path, *words: str) -> None:
    """Let a command come to its end."""
    process = start(home, *words)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
