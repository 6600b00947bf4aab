"""Files written whole or not at all: under a temporary name in the same folder, then renamed."""

import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REMEDY = "its stage is run again by the next `scale run` or `scale refresh`"
_ABANDONED_SECONDS = 3600


class StoredFileError(ValueError):
    """A stage's file that is damaged or not of the kind asked for; the message names it and says what to do."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` on success, delete it on failure.

    After a power cut there is the file that was there before, or the whole new one. What a killed process left behind
    for the same `path` is deleted first.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(finished: Path, path: Path) -> None:
    """Rename a finished file to `path`, its bytes on the disk before its name: a power cut leaves no empty file."""
    _sync(finished)
    os.replace(finished, path)
    _sync_names(path.parent)


def _sync_names(folder: Path) -> None:
    with suppress(OSError):  # some network file systems cannot sync a folder
        _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """`atomic_path` for a folder: give an empty one that on success takes the place of `path` and all in it."""
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for made in temporary.rglob("*"):
            if made.is_file():
                _sync(made)
        old = path.rename(_temporary(path)) if path.exists() else None
        temporary.rename(path)
        _sync_names(path.parent)
        if old:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name beside `path` that no other process gives; what killed ones left behind for `path` is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(path.parent, path.name)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.{_host()}.{os.getpid()}.tmp")


def delete_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what killed processes left behind in a folder, for the file `name` or for any.

    Another machine's processes cannot be seen from here: what it left is deleted once it is an hour old.
    """
    for leftover in folder.glob(f".{name}.*.tmp"):
        *_, host, process, _ = leftover.name.split(".")
        abandoned = not _is_running(int(process)) if host == _host() else _age(leftover) > _ABANDONED_SECONDS
        if abandoned and leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        elif abandoned:
            leftover.unlink(missing_ok=True)


def _host() -> str:
    return platform.node().replace(".", "-")


def _age(path: Path) -> float:
    """Seconds since the last write; 0 for a file that is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def state(size: int, time: int) -> str:
    """Size and time of a file, as they are recorded with an asset."""
    return f"{size} bytes, {time} ns"
