"""Parquet IO manager: what an asset returns goes to `<store>/<asset>/<partition>.parquet`, whole or not at all.

Everything reads local files. With a store behind a URL (`assets.bucket`) these are copies, which are held against the
store whenever one is asked for.
"""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from scipy.sparse import csr_array
from upath import UPath

from assets.bucket import StoreError
from assets.nodes import Node, graph_of, inputs_by_name
from assets.store import (
    EXTENSION,
    FILE_STATE,
    apart,
    fetched,
    file_state,
    name_of,
    remote_store,
    stored_at,
    written_path,
)
from assets.versions import CODE, INPUTS, code_parts, latest
from pipeline import content, parquet
from pipeline.files import StoredFileError


class ParquetIOManager(dg.UPathIOManager):
    """Tables, float32 matrices, graphs, and finished Parquet files (a `Path`, moved into place).

    An input arrives as what its annotation says: `pl.DataFrame`, `pl.LazyFrame`, `np.ndarray` or `csr_array`.
    """

    extension = EXTENSION

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        target = Path(str(path))
        if not (remote := remote_store()):
            write(obj, target)
            return
        # Not over the copy: whoever reads it meanwhile may fetch the old result there.
        name, outgoing, unsent = name_of(target), apart(target, "outgoing"), apart(target, "unsent")
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
        if not fetched(source):
            raise FileNotFoundError(f"{name_of(source)} has not been materialised yet ({stored_at(source)} is missing)")
        try:
            return read(source, kind)
        except StoredFileError:
            if remote_store() is None:
                raise
        fetched(source)  # the copy was damaged, and what is stored need not be
        return read(source, kind)

    def get_metadata(self, context: dg.OutputContext, obj: Any) -> dict[str, dg.MetadataValue]:
        """What a later look needs to tell: is the file still this one, which code was edited, which inputs changed."""
        written = Node(context.asset_key, context.asset_partition_key)
        instance, assets = context.step_context.instance, context.step_context.job_def.asset_layer.asset_graph
        # The run holds its dataset's lock: what is on record now is what was loaded.
        inputs = {
            name: record.version
            for name, above in inputs_by_name(graph_of(assets), written).items()
            if (record := latest(instance, above.key, above.partition))
        }
        return {
            FILE_STATE: dg.MetadataValue.text(file_state(written_path(written))),
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
    except StoredFileError:
        path.touch()  # with another time than on record, the next look finds that it does not hold what it should
        raise


def content_version(value: Any) -> str:
    """Data version of a stage's result: a hash of its logical content."""
    match value:
        case Path():
            return content.file_version(value)
        case pl.DataFrame():
            return content.table_version(value)
        case np.ndarray():
            return content.array_version(value)
        case _:
            return content.graph_version(value)
