"""Data versions: hashes of the logical content of tables, arrays and graphs.

Neither file bytes, nor time, nor how a table is cut into chunks makes a difference.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from pipeline.fingerprint import hash_of

BATCH_ROWS = 65_536


class _Column:
    """Hash of one column, fed chunk by chunk; where the chunks are cut makes no difference."""

    def __init__(self, field: pa.Field) -> None:
        # 32- and 64-bit offsets hold the same content: polars writes the one, pyarrow the other.
        kind = "list" if _is_list(field.type) else "string" if _is_string(field.type) else str(field.type)
        self.hashers = [hash_of(field.name, kind), hash_of(), hash_of()]  # values, lengths, validity
        self.child = _Column(pa.field("item", field.type.value_type)) if kind == "list" else None

    def update(self, array: pa.Array) -> None:
        values, lengths, validity = self.hashers
        validity.update(_bytes(np.asarray(pc.is_valid(array))))
        if self.child is not None:
            lengths.update(_bytes(_int64(pc.list_value_length(array))))
            self.child.update(array.flatten())
        elif _is_string(array.type):
            binary = pc.fill_null(array.cast(pa.large_binary()), b"")
            lengths.update(_bytes(_int64(pc.binary_length(binary))))
            offsets = np.frombuffer(binary.buffers()[1], np.int64)[binary.offset : binary.offset + len(binary) + 1]
            if len(binary) and binary.buffers()[2] is not None:
                values.update(memoryview(binary.buffers()[2])[offsets[0] : offsets[-1]])
        else:
            # A null's value slot is undefined: make it 0.
            filled = pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0)
            values.update(_bytes(filled.to_numpy(zero_copy_only=False)))

    def digest(self) -> bytes:
        own = b"".join(hasher.digest() for hasher in self.hashers)
        return own + (self.child.digest() if self.child else b"")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _int64(array: pa.Array) -> np.ndarray:
    return pc.fill_null(array, -1).cast(pa.int64()).to_numpy(zero_copy_only=False)


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data


def _batches_version(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    columns = [_Column(field) for field in schema]
    for batch in batches:
        for column, array in zip(columns, batch.columns, strict=True):
            column.update(array)
    hasher = hash_of("table")
    for column in columns:
        hasher.update(column.digest())
    return hasher.hexdigest()


def table_version(table: pl.DataFrame | pa.Table) -> str:
    """Hash of a table's columns, in order, and rows, in order."""
    arrow = table if isinstance(table, pa.Table) else table.to_arrow(compat_level=pl.CompatLevel.oldest())
    return _batches_version(arrow.schema, arrow.to_batches())


def file_version(path: Path) -> str:
    """Hash of a Parquet file's rows, read in batches: equal to `table_version` of the same rows in memory."""
    with pq.ParquetFile(path) as file:
        return _batches_version(file.schema_arrow, file.iter_batches(batch_size=BATCH_ROWS))


def array_version(array: np.ndarray) -> str:
    """Hash of an array's dtype, shape and values."""
    hasher = hash_of("array", array.dtype, array.shape)
    hasher.update(_bytes(array))
    return hasher.hexdigest()


def graph_version(graph: csr_array) -> str:
    """Hash of a graph's shape and edges."""
    graph.sort_indices()
    hasher = hash_of("graph", graph.shape)
    for part in (graph.indptr.astype(np.int64), graph.indices.astype(np.int64)):
        hasher.update(_bytes(part))
    return hasher.hexdigest()
