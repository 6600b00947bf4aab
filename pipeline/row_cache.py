"""Rows that were costly to compute, kept by content key: Parquet shards, written as rows arrive.

A cache is a folder. Shards only ever appear whole, under a name of their own, and are never changed, so several
processes may read and write one cache at once.

A shard is sealed as every file of the store is. One that is damaged is set aside, with a warning, and its rows count as
never computed. Shards without a seal, as they were written once, are read: their rows were costly, too.
"""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import parquet
from pipeline.files import StoredFileError, delete_leftovers

IN_USE = "in_use"
DAMAGED = "damaged"
_MOST_SMALL_SHARDS = 32
_SMALL_SHARD_BYTES = 64 << 20
_ATTEMPTS = 20
_KEY: dict[str, Any] = {"key": pl.String}
_OWN: dict[str, Any] = _KEY | {"written_at": pl.Datetime("ms", "UTC")}
logger = logging.getLogger(__name__)


class RowCacheError(ValueError):
    """A cache that cannot be read; the message names the file and says what to do."""


def row_key(*parts: Any) -> str:
    """SHA-256 (hexadecimal) of everything that a row depends on; any JSON values, mappings in any order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode("ascii")).hexdigest()


class RowCache:
    """A folder of rows by key; a context manager that leaves nothing unwritten and few shards.

    A process that is killed loses at most `chunk` rows or `seconds` of work, whichever is less.

    Parameters
    ----------
    folder
        Made when it is missing.
    columns
        What a row holds besides its key: name -> polars type.
    chunk, seconds
        Rows are written once there are this many, or once this much time has passed since the last write.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Any], chunk: int = 64, seconds: float = 10.0) -> None:
        self.folder, self.columns, self.chunk, self.seconds = folder, dict(columns), chunk, seconds
        self._pending: list[tuple[Any, ...]] = []
        self._written_at = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        delete_leftovers(folder)

    def __enter__(self) -> "RowCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        small = [shard for shard in _shards(self.folder) if _size(shard) < _SMALL_SHARD_BYTES]
        if len(small) > _MOST_SMALL_SHARDS:
            compact(self.folder)

    def lookup(self, keys: Iterable[str]) -> pl.DataFrame:
        """The rows there are for `keys`: key and `columns`, each key once, sorted by key.

        Raises
        ------
        RowCacheError
            For a shard that this process may not read, or its disk does not give, by name.
        """
        wanted = pl.DataFrame({"key": list(keys)}, schema=_KEY).unique()
        return self._found(lambda shard: shard.join(wanted, on="key", how="semi"))

    def rows(self) -> pl.DataFrame:
        """Every row there is, like `lookup`."""
        return self._found(lambda shard: shard)

    def _found(self, part: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        columns = _KEY | self.columns
        found = [pl.DataFrame(schema=columns), *(part(shard) for shard in _read(self.folder, columns))]
        # Two processes may have computed the same: the choice between them must not depend on file names.
        return pl.concat(found).sort(list(columns), nulls_last=True).unique("key", keep="first", maintain_order=True)

    def add(self, key: str, *values: Any) -> None:
        """Keep a row; it reaches the disk with its chunk."""
        self._pending.append((key, datetime.now(UTC), *values))
        if len(self._pending) >= self.chunk or time.monotonic() - self._written_at > self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        self._written_at = time.monotonic()
        if self._pending:
            _write(self.folder, pl.DataFrame(self._pending, schema=_OWN | self.columns, orient="row"))
            self._pending = []

    def mark_in_use(self, by: str, keys: Iterable[str]) -> None:
        """Note that these rows, and no others, make up the newest result of `by`; pruning keeps them."""
        note = pl.DataFrame({"key": sorted(set(keys))}, schema=_KEY)
        parquet.write_table(note, self.folder / IN_USE / f"{by}.parquet")


@dataclass(frozen=True)
class CacheSize:
    """Rows (a key counted once), those in use by the newest results, shards, and bytes on disk."""

    rows: int
    in_use: int
    shards: int
    bytes: int


def size(folder: Path) -> CacheSize:
    """How much a cache holds; zeros for a folder that is not there."""
    shards = _shards(folder)
    keys = pl.concat([pl.DataFrame(schema=_KEY), *_read(folder, _KEY)]).unique()
    return CacheSize(keys.height, keys.filter(_in_use(folder)).height, len(shards), sum(map(_size, shards)))


def compact(folder: Path) -> None:
    """Merge small shards into one, each key once."""
    _rewrite(folder, [shard for shard in _shards(folder) if _size(shard) < _SMALL_SHARD_BYTES], keep=None)


def prune(folder: Path, older_than: timedelta) -> int:
    """Delete rows that no newest result uses and that were written longer ago than `older_than`; gives how many."""
    before = size(folder).rows
    young = pl.col("written_at") >= datetime.now(UTC) - older_than
    used = _in_use(folder)
    for shard in _shards(folder):
        _rewrite(folder, [shard], keep=young | used)
    compact(folder)
    return before - size(folder).rows


def _rewrite(folder: Path, shards: Sequence[Path], keep: pl.Expr | None) -> None:
    """Replace shards by one with the rows to keep; a reader finds every row at every moment."""
    try:
        tables = [table for shard in shards if (table := _intact(shard)) is not None]
    except FileNotFoundError:  # another process is at it
        return
    if any(table.schema != tables[0].schema for table in tables):  # the next `lookup` knows which is wrong
        return
    if not tables or (len(tables) == 1 and keep is None):
        return
    merged = pl.concat(tables)
    order = [name for name in merged.columns if name not in _OWN]
    merged = merged.sort("key", *order, "written_at", nulls_last=True).unique("key", keep="first", maintain_order=True)
    kept = merged if keep is None else merged.filter(keep)
    if len(tables) == 1 and kept.height == tables[0].height:
        return
    if kept.height:
        _write(folder, kept)
    for shard in shards:
        shard.unlink(missing_ok=True)


def _write(folder: Path, table: pl.DataFrame) -> None:
    parquet.write_table(table, folder / f"{uuid.uuid4().hex}.parquet")


def _read(folder: Path, columns: Mapping[str, Any]) -> list[pl.DataFrame]:
    """Every intact shard; where another process moves shards meanwhile, read anew, so that no row is missed."""
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):
            return [table for shard in _shards(folder) if (table := _intact(shard, columns)) is not None]
    raise RowCacheError(f"{folder}: its shards keep changing; is another process compacting it in a loop?")


def _intact(shard: Path, columns: Mapping[str, Any] | None = None) -> pl.DataFrame | None:
    """A shard's `columns`, by default all; None for a damaged one, which is set aside.

    FileNotFoundError where another process has merged it, or was quicker to set it aside.
    """
    try:
        return _table(shard, columns)
    except StoredFileError:
        place = shard.parent / DAMAGED / shard.name
        place.parent.mkdir(exist_ok=True)
        shard.rename(place)
        logger.warning("%s is damaged and set aside in %s; its rows are computed again", shard, place.parent)
        return None


def _table(path: Path, columns: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Columns of a file, by default all; StoredFileError where it is damaged or holds others."""
    try:
        table = parquet.read_table(path, columns)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RowCacheError(
            f"{path}: cannot be read ({error}); see to its rights and its disk, and run again"
        ) from error
    if any(table.schema.get(name) != kind for name, kind in (columns or _OWN).items()):
        raise StoredFileError(f"{path}: holds other columns than a cache does: {table.schema}")
    return table


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _in_use(folder: Path) -> pl.Expr:
    """Whether a newest result uses a row; every row counts while a note of that is damaged, so that none is pruned."""
    notes = [pl.DataFrame(schema=_KEY)]
    for note in sorted((folder / IN_USE).glob("*.parquet")):
        try:
            notes.append(_table(note, _KEY))
        except StoredFileError:
            logger.warning("%s is damaged; until its stage runs again, every row of this cache counts as in use", note)
            return pl.lit(True)
    return pl.col("key").is_in(pl.concat(notes)["key"].implode())
