"""Parquet on disk for the three things that travel between stages: tables, embeddings, graphs.

A table keeps its columns. An embedding matrix is one `fixed_size_list<float32>` column. A graph is an edge list
(`row`, `column`), its shape in the file's metadata. Every write goes to a temporary name in the same folder and is
renamed, so a file that exists is whole. A checksum of all its bytes tells whether it still is when it is read: those of
Parquet itself leave out the footer, and a bit of that can turn into other rows.
"""

import json
import os
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from pipeline import content
from pipeline.files import REMEDY, StoredFileError, atomic_path
from pipeline.graphs.csr import edges, from_edges

SHAPE = b"scale.shape"
SEAL = b"SCRC"
COMPRESSION = "zstd"
# What Arrow and polars say of columns that they do not know; a panic of polars is no `Exception`.
_UNREADABLE = (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException)
_PACKED_BYTES, _UNPACKED_BYTES = 2**26, 2**23  # of a matrix at a time, when it is written and when it is read


def write_table(table: pl.DataFrame | pa.Table, path: Path, group_rows: int | None = None) -> None:
    """Write a table; `group_rows` are packed at a time, by default as many as Parquet likes."""
    arrow = table if isinstance(table, pa.Table) else table.to_arrow(compat_level=pl.CompatLevel.oldest())
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary, compression=COMPRESSION, write_page_checksum=True, row_group_size=group_rows)
        seal(temporary)


def seal(path: Path) -> None:
    """Put a checksum of a finished file before its footer, where no reader of Parquet looks for anything."""
    with path.open("r+b") as file:
        start, footer = _footer(file)
        checksum = zlib.crc32(footer, _checksum(file, start))
        file.seek(start)
        file.write(SEAL + checksum.to_bytes(4, "little") + footer)


def verify(path: Path) -> None:
    """Hold a file to its checksum, if it has one.

    Raises
    ------
    StoredFileError
        If they do not agree, or the file does not end as Parquet does.
    """
    with path.open("rb") as file:
        start, footer = _footer(file)
        start -= len(SEAL) + 4
        file.seek(max(start, 0))
        if file.read(len(SEAL)) != SEAL:
            return
        expected = int.from_bytes(file.read(4), "little")
        if zlib.crc32(footer, _checksum(file, start)) != expected:
            raise StoredFileError(f"{path}: its checksum is wrong, so it is damaged; {REMEDY}")


def _footer(file: BinaryIO) -> tuple[int, bytes]:
    """Where the footer of a Parquet file begins, and all from there on: metadata, their length, `PAR1`."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 8, 0))
    start = size - 8 - int.from_bytes(file.read(4), "little")
    if start < 4:
        raise StoredFileError(f"{file.name}: ends too early for a Parquet file; {REMEDY}")
    file.seek(start)
    return start, file.read()


def _checksum(file: BinaryIO, end: int) -> int:
    """Of the bytes before `end`."""
    file.seek(0)
    checksum, left = 0, end
    while left > 0 and (piece := file.read(min(left, _PACKED_BYTES // 64))):
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
    return checksum


def write_array(vectors: np.ndarray, path: Path) -> None:
    """Write an (n, d) float32 matrix; (0, 0) stands for "no such modality"."""
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ValueError(f"expected a 2-d float32 matrix, got {vectors.dtype} of shape {vectors.shape}")
    width = max(vectors.shape[1], 1)  # Arrow has no lists of size 0
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), width)
    write_table(_with_shape(pa.table({"vector": values}), vectors.shape), path, _rows(_PACKED_BYTES, width))


def write_graph(graph: csr_array, path: Path) -> None:
    """Write a binary graph as its edges, sorted by row, then column."""
    rows, columns = edges(graph)
    write_table(_with_shape(pa.table({"row": rows, "column": columns}), graph.shape), path)


def read_table(path: Path, columns: Collection[str] | None = None) -> pl.DataFrame:
    """Read a table, or those of `columns` that it has."""
    with _opened(path) as file:
        # polars takes all text for UTF-8, and ends the process where it is not.
        table = file.read(None if columns is None else list(columns)).replace_schema_metadata()
        table.validate(full=True)
        return pl.from_arrow(table)  # type: ignore[return-value]


def read_array(path: Path) -> np.ndarray:
    """Read an (n, d) float32 matrix, a piece at a time: little is held besides the matrix itself."""
    with _opened(path) as file:
        return _array(file, path)


def _array(file: pq.ParquetFile, path: Path) -> np.ndarray:
    shape = _shape(file.schema_arrow, path)
    kind, rows = file.schema_arrow.field("vector").type, file.metadata.num_rows
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        raise StoredFileError(f"{path}: its vectors are {kind}, not lists of float32; {REMEDY}")
    if 0 not in shape and (rows, kind.list_size) != shape:
        raise StoredFileError(f"{path}: holds {rows} of {shape[0]} rows, {kind.list_size} wide; {REMEDY}")
    vectors = np.empty(shape, np.float32)
    if vectors.size:
        done = 0
        for batch in file.iter_batches(_rows(_UNPACKED_BYTES, shape[1]), columns=["vector"]):
            vectors[done : done + len(batch)] = batch.column(0).flatten().to_numpy().reshape(-1, shape[1])
            done += len(batch)
    return vectors


def _rows(size: int, width: int) -> int:
    return max(1, size // (4 * width))


def read_graph(path: Path) -> csr_array:
    """Read a binary graph: data 1.0 (float32), sorted indices."""
    with _opened(path) as file:
        return _graph(file, path)


def _graph(file: pq.ParquetFile, path: Path) -> csr_array:
    shape, table = _shape(file.schema_arrow, path), file.read()
    return from_edges(table.column("row").to_numpy(), table.column("column").to_numpy(), shape)


def stored_version(path: Path) -> str:
    """Data version of what a stored file holds, read whole: equal to that of the value that was written."""
    with _opened(path) as file:
        if SHAPE not in (file.schema_arrow.metadata or {}):
            return content.file_version(path)
        if file.schema_arrow.names == ["vector"]:
            return content.array_version(_array(file, path))
        return content.graph_version(_graph(file, path))


def _with_shape(table: pa.Table, shape: tuple[int, ...]) -> pa.Table:
    return table.replace_schema_metadata({SHAPE: json.dumps(list(shape)).encode()})


def _shape(schema: pa.Schema, path: Path) -> tuple[int, int]:
    metadata = schema.metadata or {}
    if SHAPE not in metadata:
        raise StoredFileError(f"{path}: holds a plain table, not an embedding matrix or a graph")
    rows, columns = map(int, json.loads(metadata[SHAPE]))
    return rows, columns


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file; what cannot be read of it is told as such, also later, while it is open.

    It is not buffered ahead: that would hold the whole file.
    """
    verify(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
            yield file
    except (*_UNREADABLE, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError | MemoryError | StoredFileError):
            raise
        message = f"{path}: cannot be read as Parquet ({error}); {REMEDY}"
        raise StoredFileError(message) from error
