"""The five raw tables: their schemas, and a writer that holds one batch of rows at a time."""

import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files import atomic_path
from pipeline.parquet import seal
from pipeline.sources import RawTables, SourceError

BATCH_ROWS = 50_000
BATCH_CHARACTERS = 32 << 20  # of text; real reviews reach the number of rows first
CONTENT_CHARACTERS = 1000  # of a rejected row, kept in the quarantine

SCHEMAS = {
    "reviews": pa.schema(
        [
            pa.field("user", pa.string(), nullable=False),
            pa.field("item", pa.string(), nullable=False),
            ("rating", pa.float32()),
            ("timestamp", pa.int64()),
            ("summary", pa.string()),
            ("text", pa.string()),
            ("split", pa.string()),
        ]
    ),
    "items": pa.schema(
        [
            pa.field("item", pa.string(), nullable=False),
            ("title", pa.string()),
            ("description", pa.string()),
            ("categories", pa.list_(pa.string())),
            ("brand", pa.string()),
            ("price", pa.string()),
        ]
    ),
    "profiles": pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("kind", "id", "profile")]),
    "quarantine": pa.schema(
        [("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("content", pa.string())]
    ),
}
TABLES = ("reviews", "items", "profiles", "images", "quarantine")


def images_schema(size: int) -> pa.Schema:
    """Schema of the image table for vectors of `size` floats."""
    return pa.schema([pa.field("item", pa.string(), nullable=False), ("vector", pa.list_(pa.float32(), size))])


class RawWriter:
    """Writes the raw tables in batches, counts rows, and sets bad rows aside.

    A context manager: the tables are put in place at exit, after `finish`; an error leaves none of them.

    Parameters
    ----------
    out
        Folder of the tables; made if need be.
    max_bad_share
        The largest share of a file's rows that may be malformed.
    """

    def __init__(self, out: Path, max_bad_share: float) -> None:
        self._final = {name: out / f"{name}.parquet" for name in TABLES}
        self._stack = ExitStack()
        self._temporary = {name: self._stack.enter_context(atomic_path(path)) for name, path in self._final.items()}
        self._max_bad_share = max_bad_share
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SCHEMAS}
        self._characters = dict.fromkeys(SCHEMAS, 0)  # in these rows
        self._written: Counter[str] = Counter()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._read: Counter[str] = Counter()
        self._rejected: dict[str, Counter[str]] = {}
        self._set_aside: dict[str, Counter[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
        self._stack.__exit__(kind, error, trace)

    def count(self, file: str, rows: int = 1) -> None:
        """Note that `rows` rows of a raw file were read, good or bad."""
        self._read[file] += rows

    def add(self, table: str, row: tuple[Any, ...]) -> None:
        """Add one row, its values in the order of the table's schema."""
        rows = self._rows[table]
        rows.append(row)
        self._characters[table] += sum(len(value) for value in row if isinstance(value, str))
        if len(rows) >= BATCH_ROWS or self._characters[table] >= BATCH_CHARACTERS:
            self._flush(table)

    def add_images(self, items: list[str], vectors: np.ndarray) -> None:
        """Add image vectors, float32 (n, d_v); every call must bring the same d_v."""
        values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        arrays = [pa.array(items, pa.string()), pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])]
        self._write("images", pa.Table.from_arrays(arrays, schema=images_schema(vectors.shape[1])))

    def reject(self, file: str, line: int, reason: str, content: str | bytes) -> None:
        """Set a malformed row aside; `line` counts from 1 (records, where a file has no lines)."""
        self._rejected.setdefault(file, Counter())[reason] += 1
        self._quarantine(file, line, reason, content)

    def set_aside(self, file: str, line: int, reason: str, content: str | bytes) -> None:
        """Set aside a row that is well formed but not used; it does not count as bad."""
        self._set_aside.setdefault(file, Counter())[reason] += 1
        self._quarantine(file, line, reason, content)

    def leave_out(self, file: str, reason: str, rows: int) -> None:
        """Count rows that are not used and too many, or too large, to be worth keeping in the quarantine."""
        if rows:
            self._set_aside.setdefault(file, Counter())[reason] += rows

    def finish(self) -> RawTables:
        """Close the tables and say what is in them.

        Raises
        ------
        SourceError
            A file has too many malformed rows; then the quarantine alone is put in place.
        """
        for table in SCHEMAS:
            self._flush(table)
            if table not in self._writers:
                self._write(table, SCHEMAS[table].empty_table())
        if "images" not in self._writers:
            self._write("images", images_schema(1).empty_table())
        for table, writer in self._writers.items():
            writer.close()
            seal(self._temporary[table])
        self._writers.clear()
        self._check_bad_shares()
        return RawTables(
            **self._final,
            rows={name: self._written[name] for name in TABLES},
            read=dict(self._read),
            rejected={file: dict(reasons) for file, reasons in self._rejected.items()},
            set_aside={file: dict(reasons) for file, reasons in self._set_aside.items()},
        )

    def _check_bad_shares(self) -> None:
        for file, reasons in self._rejected.items():
            bad, rows = reasons.total(), self._read[file]
            if bad > self._max_bad_share * rows:
                os.replace(self._temporary["quarantine"], self._final["quarantine"])
                shown = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
                raise SourceError(
                    f"{file}: {bad} of {rows} rows ({bad / rows:.1%}) are malformed, and at most "
                    f"{self._max_bad_share:.1%} may be: {shown}. The rows are in {self._final['quarantine']}; mend "
                    "the file, or raise raw.max_bad_share if they can be spared"
                )

    def _quarantine(self, file: str, line: int, reason: str, content: str | bytes) -> None:
        if isinstance(content, bytes):
            # A character takes at most four bytes: enough of the row for the characters that are kept.
            content = content[: 4 * CONTENT_CHARACTERS].decode("utf-8", "replace")
        content = content[:CONTENT_CHARACTERS].encode("utf-8", "replace").decode("utf-8")
        self.add("quarantine", (file, line, reason, content))

    def _flush(self, table: str) -> None:
        rows = self._rows[table]
        if rows:
            schema = SCHEMAS[table]
            columns = zip(*rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            self._write(table, pa.Table.from_arrays(arrays, schema=schema))
            rows.clear()
            self._characters[table] = 0

    def _write(self, table: str, content: pa.Table) -> None:
        if table not in self._writers:
            self._writers[table] = pq.ParquetWriter(self._temporary[table], content.schema, compression="zstd")
        self._writers[table].write_table(content)
        self._written[table] += content.num_rows
