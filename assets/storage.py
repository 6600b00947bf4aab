"""Parquet IO manager: what an asset returns goes to `<store>/<asset>/<partition>.parquet`, whole or not at all."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
from scipy.sparse import csr_array
from upath import UPath

from assets import home
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
        write(obj, Path(str(path)))

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        source, kind = Path(str(path)), context.dagster_type.typing_type
        if not source.exists():
            name = source.relative_to(home.store()).with_suffix("")
            raise FileNotFoundError(f"{name} has not been materialised yet ({source} is missing)")
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
            FILE_STATE: dg.MetadataValue.text(file_state(stored_path(written.key, written.partition))),
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
    if kind is pl.LazyFrame:
        return pl.scan_parquet(path)
    if kind is np.ndarray:
        return parquet.read_array(path)
    if kind is csr_array:
        return parquet.read_graph(path)
    return parquet.read_table(path)


def file_state(path: Path) -> str:
    """Size and time of a stored file, as it is recorded with the asset."""
    stat = path.stat()
    return f"{stat.st_size} bytes, {stat.st_mtime_ns} ns"


def is_intact(path: Path, version: str | None) -> bool:
    """Whether a stored file holds the content of a data version, whatever its size and time."""
    try:
        return parquet.stored_version(path) == version
    except (OSError, ValueError, pa.ArrowException):
        return False


def stored_path(asset: dg.AssetKey, partition: str) -> Path:
    """File of one asset partition; `partition` is Dagster's key (`demo`, or `demo|scale`)."""
    path = home.store().joinpath(*asset.path, *partition.split("|"))
    return path.with_name(path.name + ParquetIOManager.extension)


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
