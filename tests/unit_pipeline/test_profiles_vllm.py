"""What of the vLLM backend needs no vLLM: how it ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.profiles import vllm
from pipeline.profiles.vllm import no_orphans

KILLED = """
import multiprocessing, time
from pipeline.profiles.vllm import no_orphans

if __name__ == "__main__":
    with no_orphans():
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(300,))
        child.start()
        print(child.pid, flush=True)
        time.sleep(300)
"""


def running(pid: int) -> bool:
    """Whether a process is there and no mere entry that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_process_takes_what_it_started_with_it(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    root = Path(vllm.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert running(child)
    time.sleep(10 * vllm._LOOK_SECONDS)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def test_what_ends_by_itself_is_left_alone() -> None:
    with no_orphans():
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(300,))
        child.start()
        time.sleep(4 * vllm._LOOK_SECONDS)
    assert child.is_alive()
    child.kill()
    child.join()
