"""Parquet IO manager: what an asset returns goes to `<store>/<asset>/<partition>.parquet`, whole or not at all.

Everything reads local files. With a store behind a URL (`assets.bucket`) these are copies, which are held against the
store whenever one is asked for.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
from scipy.sparse import csr_array
from upath import UPath

from assets import bucket, home
from assets.bucket import Bucket, StoreError
from assets.nodes import Node, inputs_by_name
from assets.versions import CODE, INPUTS, code_parts, latest
from pipeline import fingerprint, parquet

FILE_STATE = "file"


class ParquetIOManager(dg.UPathIOManager):
    """Tables, float32 matrices, graphs, and finished Parquet files (a `Path`, moved into place).

    An input arrives as what its annotation says: `pl.DataFrame`, `pl.LazyFrame`, `np.ndarray` or `csr_array`.
    """

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        target = Path(str(path))
        if not (remote := remote_store()):
            write(obj, target)
            return
        # Not over the copy: whoever reads it meanwhile may fetch the old result there.
        name, outgoing, unsent = _name(target), _apart(target, "outgoing"), _apart(target, "unsent")
        for each in (outgoing, unsent):
            each.parent.mkdir(parents=True, exist_ok=True)
        write(obj, outgoing)
        try:
            remote.send(outgoing, name)
        except StoreError as error:
            os.replace(outgoing, unsent)
            context.log.warning(f"{error}. {name} waits in {unsent}, and goes with the next command that reads it")
        else:
            os.replace(outgoing, target)
            unsent.unlink(missing_ok=True)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        source, kind = Path(str(path)), context.dagster_type.typing_type
        if not _fetched(source):
            raise FileNotFoundError(f"{_name(source)} has not been materialised yet ({stored_at(source)} is missing)")
        try:
            return read(source, kind)
        except parquet.StoredFileError:
            if remote_store() is None:
                raise
        _fetched(source)  # the copy was damaged, and what is stored need not be
        return read(source, kind)

    def get_metadata(self, context: dg.OutputContext, obj: Any) -> dict[str, dg.MetadataValue]:
        """What a later look needs to tell: is the file still this one, which code was edited, which inputs changed."""
        written = Node(context.asset_key, context.asset_partition_key)
        instance, graph = context.step_context.instance, context.step_context.job_def.asset_layer.asset_graph
        # The run holds its dataset's lock: what is on record now is what was loaded.
        inputs = {
            name: record.version
            for name, above in inputs_by_name(graph, written).items()
            if (record := latest(instance, above.key, above.partition))
        }
        return {
            FILE_STATE: dg.MetadataValue.text(file_state(_written(written))),
            INPUTS: dg.MetadataValue.json(inputs),
            CODE: dg.MetadataValue.json(code_parts(context.asset_spec.code_version)),
        }


def write(value: Any, path: Path) -> None:
    """Store a stage's result; a finished file is moved into place."""
    match value:
        case Path():
            os.replace(value, path)
        case pl.DataFrame():
            parquet.write_table(value, path)
        case np.ndarray():
            parquet.write_array(value, path)
        case csr_array():
            parquet.write_graph(value, path)
        case _:
            raise TypeError(f"{path}: cannot store a {type(value).__name__}")


def read(path: Path, kind: type) -> Any:
    """A stored result as `pl.DataFrame`, `pl.LazyFrame`, `np.ndarray` or `csr_array`."""
    try:
        if kind is pl.LazyFrame:
            parquet.verify(path)
            return pl.scan_parquet(path)
        if kind is np.ndarray:
            return parquet.read_array(path)
        if kind is csr_array:
            return parquet.read_graph(path)
        return parquet.read_table(path)
    except parquet.StoredFileError:
        path.touch()  # with another time than on record, the next look finds that it does not hold what it should
        raise


def file_state(path: Path) -> str:
    """Size and time of a stored file, as it is recorded with the asset."""
    stat = path.stat()
    return bucket.state(stat.st_size, stat.st_mtime_ns)


def is_intact(path: Path, version: str | None) -> bool:
    """Whether a stored file holds the content of a data version, whatever its size and time."""
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
    _fetched(path)
    return path


def local_path(asset: dg.AssetKey, partition: str) -> Path:
    """Where the file of one asset partition lies on this machine, or is to lie, without a look into the store."""
    path = home.store().joinpath(*asset.path, *partition.split("|"))
    return path.with_name(path.name + ParquetIOManager.extension)


def remote_store() -> Bucket | None:
    """The store, where it is behind a URL."""
    url = home.store_url()
    return bucket.opened(url) if url else None


def states_in_store() -> dict[Path, str]:
    """What one listing of a store behind a URL tells: where a file belongs here -> its size and time."""
    remote = remote_store()
    if remote is None:
        return {}
    return {home.store() / f"{name}{ParquetIOManager.extension}": state for name, state in remote.states().items()}


def stored_at(path: Path) -> str:
    """Where a result is stored, in words: its file, or its manifest behind a URL."""
    remote = remote_store()
    return f"{remote.url}/{_name(path)}.json" if remote else str(path)


def send(path: Path) -> None:
    """Give a store behind a URL a result of this machine that it lacks."""
    remote = remote_store()
    if remote and not remote.holds(_name(path)):
        remote.send(path, _name(path))


def _fetched(path: Path) -> bool:
    """Whether the store has a file; of one behind a URL it is a copy then, made anew if need be."""
    if not (remote := remote_store()):
        return path.exists()
    name, unsent = _name(path), _apart(path, "unsent")
    if unsent.exists():
        with contextlib.suppress(FileNotFoundError):  # another process delivers it too
            _deliver(remote, unsent, name, path)
    return remote.fetch(name, path)


def _deliver(remote: Bucket, unsent: Path, name: str, path: Path) -> None:
    """Send a result that could not be sent when it was made, unless a newer one has been stored since."""
    stored = remote.manifest(name)
    if stored is None or stored.time < unsent.stat().st_mtime_ns:
        remote.send(unsent, name)
        os.replace(unsent, path)
    else:
        unsent.unlink()


def _written(node: Node) -> Path:
    """The file that has just been written for a node."""
    path = local_path(node.key, node.partition)
    unsent = _apart(path, "unsent")
    return unsent if unsent.exists() else path


def _name(path: Path) -> str:
    return path.relative_to(home.store()).with_suffix("").as_posix()


def _apart(path: Path, why: str) -> Path:
    """Where a file of the store lies that is not, or not yet, in the store."""
    return home.store() / f".{why}" / path.relative_to(home.store())


def content_version(value: Any) -> str:
    """Data version of a stage's result: a hash of its logical content."""
    match value:
        case Path():
            return fingerprint.file_version(value)
        case pl.DataFrame():
            return fingerprint.table_version(value)
        case np.ndarray():
            return fingerprint.array_version(value)
        case _:
            return fingerprint.graph_version(value)
