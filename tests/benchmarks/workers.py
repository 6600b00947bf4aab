"""Processes that take turns, so that thread pools do not meet and each one's peak memory can be told apart.

A benchmark script starts itself once per job with `--job NAME`; each process sets its job up, does it once, and waits.
Rounds go through all jobs in turn while the others sleep, and ratios are taken within a round: on a shared machine only
those mean something.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

Job = Callable[[], Any]


def arguments(about: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small shape, in under a minute")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


# ------------------------------------------------------------------------------------------------- a job's process


class Turns:
    """The job's side: a line in gives it a turn, a line out says what the turn took."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a job prints is no answer
        self._ready = False
        self._line = ""
        self._start = 0.0

    def finish(self, seconds: float | None = None, keep: Callable[[], object] | None = None) -> None:
        """End a turn; the first one is the set-up, of which nothing is told.

        Parameters
        ----------
        seconds
            What the job timed itself.
        keep
            Keeps the result where that is asked for; neither timed nor in the peak, and nobody else's turn either.
        """
        taken = time.perf_counter() - self._start if seconds is None else seconds
        answer = {"seconds": taken, "peak": peak_memory()} if self._ready else "ready"
        self._ready = True
        if keep is not None and self._line.strip() == "keep":
            keep()
        print(json.dumps(answer), file=self._answers, flush=True)

    def wait(self) -> bool:
        """Sleep until the next turn; False when there is none."""
        self._line = sys.stdin.readline()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._start = time.perf_counter()
        return bool(self._line)


def serve(job: Job, keep: Callable[[Any], object] = lambda result: None) -> None:
    """Do one job turn after turn, after once for warming up: it compiles, and faults in what stays."""
    turns = Turns()
    job()
    turns.finish()
    while turns.wait():
        result = job()
        turns.finish(keep=partial(keep, result))
        del result


def peak_memory() -> int:
    """High-water mark of this process's resident memory since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


# ------------------------------------------------------------------------------------------------ the one who measures


class Worker:
    """A process that waits for its turn to do one job of a script."""

    def __init__(self, script: str, name: str, folder: Path, quick: bool) -> None:
        command = [sys.executable, script, "--job", name, "--folder", str(folder), *(["--quick"] if quick else [])]
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> None:
        """Wait until the job is set up."""
        if self._answer() != "ready":
            raise RuntimeError(f"benchmark job {self.name!r} did not start; what it said is above")

    def run(self, keep: bool = False) -> dict[str, float]:
        """One turn: `seconds`, and the `peak` of resident memory in bytes."""
        assert self._process.stdin is not None
        self._process.stdin.write("keep\n" if keep else "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = self._answer()
        return answer

    def stop(self) -> None:
        """Let the process end, and wait until what it kept is written."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"benchmark job {self.name!r} ended early; what it said is above")
        return json.loads(line)


@dataclass
class Measured:
    """What every turn took: job -> one value per round.

    Attributes
    ----------
    seconds
        Wall time.
    peak
        High-water mark of resident memory during the turn, bytes.
    load
        Load averages (over one minute) at the start of the turns.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, list[float]] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)

    def begin(self, name: str, turn: int, rounds: int) -> None:
        """Say whose turn it is, and note the load."""
        print(f"round {turn + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
        self.load.append(os.getloadavg()[0])

    def add(self, name: str, seconds: float, peak: float) -> None:
        """Note what one turn of a job took."""
        self.seconds.setdefault(name, []).append(seconds)
        self.peak.setdefault(name, []).append(peak)

    def ratios(self, slow: str, fast: str) -> list[float]:
        """How many times as long one job took as another, round by round."""
        return [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]


def interleave(
    script: str, names: Sequence[str], rounds: int, folder: Path, quick: bool, scale: Mapping[str, float] | None = None
) -> Measured:
    """Run every job once a round, each in its process; the last round's results are kept by the jobs that can.

    Parameters
    ----------
    script
        File that serves a job when it is called with `--job NAME --folder FOLDER`.
    scale
        Job -> factor of its seconds, for jobs that do a part and are extrapolated.
    """
    measured = Measured()
    workers = []
    try:
        for name in names:  # one after the other: set-ups would slow each other, and peers share files
            workers.append(Worker(script, name, folder, quick))
            workers[-1].ready()
        for turn in range(rounds):
            for worker in workers:
                measured.begin(worker.name, turn, rounds)
                answer = worker.run(keep=turn == rounds - 1)
                measured.add(worker.name, answer["seconds"] * (scale or {}).get(worker.name, 1.0), answer["peak"])
    finally:
        for worker in workers:
            worker.stop()
    return measured
