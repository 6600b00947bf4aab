"""Processes that train side by side."""

import multiprocessing
import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

from model.config import TrainingConfig


def pool(processes: int) -> ProcessPoolExecutor:
    """Fresh processes, which end when this one does, however it ends."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent)


def share(config: TrainingConfig, parallel: int) -> TrainingConfig:
    """The settings of one of several trainings at a time: each takes its part of the cores."""
    if parallel == 1 or config.threads is not None:
        return config
    return config.model_copy(update={"threads": max(1, (os.cpu_count() or 1) // parallel)})


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
