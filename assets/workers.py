"""Processes that train side by side."""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from assets import home
from model.config import TrainingConfig
from pipeline.compute import cluster
from pipeline.settings import ComputeSettings

PROCESS_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def pool(parallel: int, settings: ComputeSettings, device: str) -> Executor:
    """Processes for so many trainings at a time, which end when this one does, however it ends.

    Parameters
    ----------
    device
        Of the trainings: on a cluster with GPUs each has one, unless it is `cpu`.
    """
    where = cluster(settings)
    if where is None:
        return _Processes(parallel)
    return where.pool(parallel, environment(), device != "cpu")


def environment() -> dict[str, str]:
    """Variables that trainings on other machines need; Ray shows them in its dashboard, so the token is left out."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("SCALE_")}
    sent = {name: value for name, value in ours.items() if name != home.TOKEN_VARIABLE}
    return sent | {"SCALE_HOME": str(home.home()), "MLFLOW_TRACKING_URI": home.tracking_uri()}  # also by default


@contextmanager
def given_up_when_stopped(pool: Executor) -> Iterator[None]:
    """End what runs in the pool at once where this process is told to stop; after an error it may come to its end."""
    try:
        yield
    except Exception:
        raise
    except BaseException:  # Ctrl-C, a signal, "Terminate" in the Dagster UI
        if isinstance(pool, _Processes):  # a cluster ends what a process asked for that is gone
            pool.give_up()
        raise


class _Processes(ProcessPoolExecutor):
    """Processes that end when this one does, or when they are given up: then a pipe that it holds is closed."""

    def __init__(self, count: int) -> None:
        ended, self._held = multiprocessing.Pipe(duplex=False)
        super().__init__(count, multiprocessing.get_context("spawn"), _end_with, (ended,))

    def give_up(self) -> None:
        self._held.close()


def threads(parallel: int, settings: ComputeSettings) -> int | None:
    """Cores for one of so many trainings at a time; None for one that is alone on this machine."""
    where = cluster(settings)
    if where is not None:
        return where.share(parallel)
    return None if parallel == 1 else max(1, cores() // parallel)


def cores() -> int:
    """Cores that this process may use: its affinity's, or fewer where its control group (Linux, version 2) has less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError, IndexError):  # no such group, or a quota of `max`
        group = PROCESS_GROUP.read_text().split("::")[1].strip()
        quota, period = (GROUPS / group.lstrip("/") / "cpu.max").read_text().split()
        allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)


def share(config: TrainingConfig, threads: int | None) -> TrainingConfig:
    """The settings of a training that has so many cores, unless it names a number of its own."""
    if threads is None or config.threads is not None:
        return config
    return config.model_copy(update={"threads": threads})


def peak_memory() -> Callable[[], float]:
    """Give a function that tells this process's highest resident memory since now, in 10^9 bytes."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: begin anew

    def peak() -> float:
        with suppress(OSError):
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
        return process_peak_memory()

    return peak


def process_peak_memory() -> float:
    """This process's highest resident memory since it began, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def _end_with(ended: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever holds the pipe heeds it

    def watch() -> None:
        with suppress(EOFError, OSError):
            ended.recv()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
