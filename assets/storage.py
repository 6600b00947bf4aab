"""Parquet IO manager: what an asset returns goes to `<store>/<asset>/<partition>.parquet`, whole or not at all."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from scipy.sparse import csr_array
from upath import UPath

from assets import home
from pipeline import fingerprint, parquet


class ParquetIOManager(dg.UPathIOManager):
    """Tables, float32 matrices, graphs, and finished Parquet files (a `Path`, moved into place).

    An input arrives as what its annotation says: `pl.DataFrame`, `pl.LazyFrame`, `np.ndarray` or `csr_array`.
    """

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        target = Path(str(path))
        match obj:
            case Path():
                os.replace(obj, target)
            case pl.DataFrame():
                parquet.write_table(obj, target)
            case np.ndarray():
                parquet.write_array(obj, target)
            case csr_array():
                parquet.write_graph(obj, target)
            case _:
                raise TypeError(f"{context.asset_key.to_user_string()}: cannot store a {type(obj).__name__}")

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        source, kind = Path(str(path)), context.dagster_type.typing_type
        if not source.exists():
            name = source.relative_to(home.store()).with_suffix("")
            raise FileNotFoundError(f"{name} has not been materialised yet ({source} is missing)")
        if kind is pl.LazyFrame:
            return pl.scan_parquet(source)
        if kind is np.ndarray:
            return parquet.read_array(source)
        if kind is csr_array:
            return parquet.read_graph(source)
        return parquet.read_table(source)


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
