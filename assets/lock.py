"""One run at a time on a dataset: who comes second waits, and then finds most of the work done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from assets import home

A_MOMENT = 0.5  # the sensor `record_edits` holds a dataset for less than that, which is not worth a word
SAY_AGAIN_SECONDS = 60.0


@contextmanager
def dataset_lock(dataset: str, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold a dataset for this process; the operating system frees it when the process ends, however it ends.

    Parameters
    ----------
    waiting
        Called with a line of text when another process holds the dataset, and once a minute from then on.
    """
    lock = _lock(dataset)
    started = time.monotonic()
    timeout = A_MOMENT
    while True:
        try:
            lock.acquire(timeout=timeout)
            break
        except Timeout:
            waited = time.monotonic() - started
            waiting(
                f"another run is working on {dataset}; waiting for it" + (f" ({waited:.0f} s)" if waited > 1 else "")
            )
            timeout = SAY_AGAIN_SECONDS
    try:
        yield
    finally:
        lock.release()


@contextmanager
def dataset_lock_if_free(dataset: str) -> Iterator[bool]:
    """Hold a dataset unless another process does; give whether it is held."""
    lock = _lock(dataset)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        held = False
    else:
        held = True
    try:
        yield held
    finally:
        if held:
            lock.release()


def _lock(dataset: str) -> FileLock:
    path = home.home() / "locks" / f"{dataset}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A singleton counts how often this process took it: a refresh holds it, and so does every run that it starts.
    return FileLock(path, is_singleton=True, thread_local=False)
