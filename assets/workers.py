"""Processes that train side by side."""

import multiprocessing
import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from assets import home
from model.config import TrainingConfig
from pipeline.compute import cluster
from pipeline.settings import ComputeSettings


def pool(parallel: int, settings: ComputeSettings, device: str) -> Executor:
    """Processes for so many trainings at a time, which end when this one does, however it ends.

    Parameters
    ----------
    device
        Of the trainings: on a cluster with GPUs each has one, unless it is `cpu`.
    """
    where = cluster(settings)
    if where is None:
        return ProcessPoolExecutor(parallel, multiprocessing.get_context("spawn"), _end_with_parent)
    sent = {name: value for name, value in os.environ.items() if name.startswith("SCALE_")}
    sent |= {"SCALE_HOME": str(home.home()), "MLFLOW_TRACKING_URI": home.tracking_uri()}  # also where they are defaults
    return where.pool(parallel, sent, device != "cpu")


def threads(parallel: int, settings: ComputeSettings) -> int | None:
    """Cores for one of so many trainings at a time; None for one that is alone on this machine."""
    where = cluster(settings)
    if where is not None:
        return where.share(parallel)
    return None if parallel == 1 else max(1, (os.cpu_count() or 1) // parallel)


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
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    return peak


def _end_with_parent() -> None:
    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
