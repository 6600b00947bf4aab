"""Where results are stored, and whether they are: files of this machine, or copies of what lies behind a URL."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from assets import home
from assets.nodes import Node
from pipeline.files import state

if TYPE_CHECKING:
    from assets.bucket import Bucket

EXTENSION = ".parquet"
FILE_STATE = "file"


def file_state(path: Path) -> str:
    """Size and time of a stored file, as it is recorded with the asset."""
    stat = path.stat()
    return state(stat.st_size, stat.st_mtime_ns)


def is_intact(path: Path, version: str | None) -> bool:
    """Whether a stored file holds the content of a data version, whatever its size and time."""
    import pyarrow as pa  # rarely needed, and slow to import

    from pipeline import parquet

    try:
        return parquet.stored_version(path) == version
    except (OSError, ValueError, pa.ArrowException):
        return False


def stored_path(asset: dg.AssetKey, partition: str) -> Path:
    """File of one asset partition as it is stored now; `partition` is Dagster's key (`demo`, or `demo|scale`).

    What a store behind a URL lacks may be here still, from before.

    Raises
    ------
    StoreError, StoredFileError
        The store is behind a URL, and it does not answer, or what it holds is damaged.
    """
    path = local_path(asset, partition)
    fetched(path)
    return path


def local_path(asset: dg.AssetKey, partition: str) -> Path:
    """Where the file of one asset partition lies on this machine, or is to lie, without a look into the store."""
    path = home.store().joinpath(*asset.path, *partition.split("|"))
    return path.with_name(path.name + EXTENSION)


def remote_store() -> "Bucket | None":
    """The store, where it is behind a URL."""
    if not (url := home.store_url()):
        return None
    from assets import bucket  # with fsspec, which only a bucket needs

    return bucket.opened(url)


def states_in_store() -> dict[Path, str]:
    """What one listing of a store behind a URL tells: where a file belongs here -> its size and time."""
    remote = remote_store()
    if remote is None:
        return {}
    return {home.store() / f"{name}{EXTENSION}": state for name, state in remote.states().items()}


def stored_at(path: Path) -> str:
    """Where a result is stored, in words: its file, or its manifest behind a URL."""
    remote = remote_store()
    return f"{remote.url}/{name_of(path)}.json" if remote else str(path)


def send(path: Path) -> None:
    """Give a store behind a URL a result of this machine that it lacks."""
    remote = remote_store()
    if remote and not remote.holds(name_of(path)):
        remote.send(path, name_of(path))


def fetched(path: Path) -> bool:
    """Whether the store has a file; of one behind a URL it is a copy then, made anew if need be."""
    if not (remote := remote_store()):
        return path.exists()
    name, unsent = name_of(path), apart(path, "unsent")
    if unsent.exists():
        with contextlib.suppress(FileNotFoundError):  # another process delivers it too
            _deliver(remote, unsent, name, path)
    return remote.fetch(name, path)


def _deliver(remote: "Bucket", unsent: Path, name: str, path: Path) -> None:
    """Send a result that could not be sent when it was made, unless a newer one has been stored since."""
    stored = remote.manifest(name)
    if stored is None or stored.time < unsent.stat().st_mtime_ns:
        remote.send(unsent, name)
        os.replace(unsent, path)
    else:
        unsent.unlink()


def written_path(node: Node) -> Path:
    """The file that has just been written for a node."""
    path = local_path(node.key, node.partition)
    unsent = apart(path, "unsent")
    return unsent if unsent.exists() else path


def name_of(path: Path) -> str:
    return path.relative_to(home.store()).with_suffix("").as_posix()


def apart(path: Path, why: str) -> Path:
    """Where a file of the store lies that is not, or not yet, in the store."""
    return home.store() / f".{why}" / path.relative_to(home.store())
