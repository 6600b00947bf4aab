"""One's own data: interactions, items, profiles and images as Parquet, CSV, TSV or JSON lines."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.settings import TableFile, TablesSource
from pipeline.sources import Progress, SourceError
from pipeline.sources.download import fetch
from pipeline.sources.fields import identifier, is_unicode, labels, number, seconds, text
from pipeline.sources.lines import MAX_LINE_BYTES, TELL_EVERY, BadRow, ByteProgress, open_stream, records
from pipeline.sources.writer import RawWriter

PARQUET_ROWS = 10_000
IMAGE_ROWS = 1024
MAX_FIELD_CHARACTERS = 4 << 20  # of one CSV field
FIRST_RECORDS = 100  # in which every column of a JSON-lines file must turn up

Values = dict[str, Any]  # by our column name; absent columns are absent here
Convert = Callable[[Values], tuple[Any, ...]]


@dataclass(frozen=True)
class _Table:
    """One input file, what it is read for, and where its rows go."""

    file: TableFile
    path: Path
    columns: tuple[str, ...]
    required: int  # the first so many columns must be there
    writer: RawWriter
    progress: ByteProgress

    def names(self, present: list[str]) -> dict[str, str]:
        """Our column name -> the file's, for every column that is there."""
        shown = f"it has {', '.join(map(str, present)) or 'none'}"
        for ours, theirs in self.file.columns.items():
            if ours not in self.columns:
                raise SourceError(f"{self.path}: `columns` maps {ours}, which is none of {', '.join(self.columns)}")
            if theirs not in present:
                raise SourceError(f"{self.path}: no column {theirs} (for {ours}); {shown}")
        names = {ours: self.file.columns.get(ours, ours) for ours in self.columns}
        for ours in self.columns[: self.required]:
            if names[ours] not in present:
                remedy = f"Name the right one in the settings: `columns: {{{ours}: NAME}}`"
                raise SourceError(f"{self.path}: no column {ours}; {shown}. {remedy}")
        return {ours: theirs for ours, theirs in names.items() if theirs in present}


def read(source: TablesSource, writer: RawWriter, downloads: Path, progress: Progress | None = None) -> None:
    """Read plain tables into the raw tables.

    Ids are text whatever their type in the file, so leading zeros stay. Empty fields are null. Rows without an id or
    a profile, with a split value that `split_names` does not know, or with a malformed number or time are rejected.
    Of several rows of one item or profile the first is kept. Categories are a list, or text with `|` between them.
    """
    files = {
        "interactions": source.interactions,
        "items": source.items,
        "item_profiles": source.item_profiles,
        "user_profiles": source.user_profiles,
        "images": source.images,
    }
    paths = {name: fetch(file, downloads, progress) for name, file in files.items() if file is not None}
    read_bytes = ByteProgress(list(paths.values()), progress)

    def table(name: str, file: TableFile, columns: tuple[str, ...], required: int) -> _Table:
        return _Table(file, paths[name], columns, required, writer, read_bytes)

    columns: tuple[str, ...] = ("user", "item", "rating", "timestamp", "summary", "text", "split")
    interactions = table("interactions", source.interactions, columns, 2)
    _take(interactions, "reviews", lambda values: _interaction(values, source.split_names))
    if source.items is not None:
        columns = ("item", "title", "description", "categories", "brand", "price")
        _take(table("items", source.items, columns, 1), "items", _item)
    if source.item_profiles is not None:
        _take(table("item_profiles", source.item_profiles, ("item", "profile"), 2), "profiles", _item_profile)
    if source.user_profiles is not None:
        _take(table("user_profiles", source.user_profiles, ("user", "profile"), 2), "profiles", _user_profile)
    if source.images is not None:
        _take_images(table("images", source.images, ("item", "vector"), 2))


def _take(table: _Table, target: str, convert: Convert) -> None:
    """Stream one file into a raw table."""
    file, seen = table.path.name, set()
    for line, values in _rows(table):
        try:
            row = convert(values)
        except BadRow as error:
            table.writer.reject(file, line, str(error), str(values))
            continue
        if target != "reviews":
            key = row[1] if target == "profiles" else row[0]
            if key in seen:
                table.writer.set_aside(file, line, f"second row of one {table.columns[0]}", str(values))
                continue
            seen.add(key)
        table.writer.add(target, row)
    table.progress.file_done(table.path)


def _interaction(values: Values, splits: Mapping[str, str]) -> tuple[Any, ...]:
    split = text(values.get("split"))
    if split is not None and split not in splits:
        raise BadRow("split is not one of split_names")
    return (
        identifier(values["user"], "user"),
        identifier(values["item"], "item"),
        number(values.get("rating"), "rating"),
        seconds(values.get("timestamp"), "timestamp"),
        text(values.get("summary")),
        text(values.get("text")),
        split and splits[split],
    )


def _item(values: Values) -> tuple[Any, ...]:
    categories = values.get("categories")
    return (
        identifier(values["item"], "item"),
        text(values.get("title")),
        text(values.get("description")),
        labels(categories.split("|") if isinstance(categories, str) else categories),
        text(values.get("brand")),
        text(values.get("price")),
    )


def _item_profile(values: Values) -> tuple[Any, ...]:
    return ("item", identifier(values["item"], "item"), _profile(values))


def _user_profile(values: Values) -> tuple[Any, ...]:
    return ("user", identifier(values["user"], "user"), _profile(values))


def _profile(values: Values) -> str:
    profile = text(values["profile"])
    if profile is None:
        raise BadRow("missing profile")
    return profile


def _rows(table: _Table) -> Iterator[tuple[int, Values]]:
    """Line (or row) number from 1, and values, of each row."""
    ending = _ending(table.path)
    if ending == ".parquet":
        yield from _parquet_rows(table)
    elif ending == ".jsonl":
        yield from _json_rows(table)
    else:
        yield from _csv_rows(table, "\t" if ending == ".tsv" else ",")


def _json_rows(table: _Table) -> Iterator[tuple[int, Values]]:
    found = ((line, record) for line, _, record in records(table.path, table.writer, table.progress))
    first = list(islice(found, FIRST_RECORDS))
    names = table.names(list(dict.fromkeys(key for _, record in first for key in record)))
    for line, record in chain(first, found):
        yield line, {ours: record.get(theirs) for ours, theirs in names.items()}


def _csv_rows(table: _Table, delimiter: str) -> Iterator[tuple[int, Values]]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with (
        open_stream(table.path) as (content, raw),
        # A byte that is not UTF-8 becomes half a surrogate pair, which rejects its row alone.
        io.TextIOWrapper(content, "utf-8-sig", "surrogateescape", newline="") as lines,
    ):
        reader = csv.reader(_csv_lines(lines, table.path), delimiter=delimiter)
        try:
            for count, row in enumerate(_csv_fields(table, reader, delimiter)):
                if count % TELL_EVERY == 0:
                    table.progress.at(raw.tell())
                yield row
        except csv.Error as error:
            place = f"{table.path}, line {reader.line_num}"
            raise SourceError(f"{place}: {error}; is a quotation mark left open?") from error


def _csv_lines(lines: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """Lines with their ends; `csv` by itself would hold one of any length."""
    number = 1
    while line := lines.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise SourceError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} characters; mend or remove it")
        yield line
        number += 1


def _csv_fields(table: _Table, reader: Any, delimiter: str) -> Iterator[tuple[int, Values]]:
    header: list[str] = next(reader, [])
    names = table.names(header)
    places = {ours: header.index(theirs) for ours, theirs in names.items()}
    for fields in _filled(reader):
        table.writer.count(table.path.name)
        if len(fields) != len(header):
            reason = f"not {len(header)} fields"
        elif not all(is_unicode(fields[place]) for place in places.values()):
            reason = "not valid UTF-8"
        else:
            yield reader.line_num, {ours: fields[place] for ours, place in places.items()}
            continue
        table.writer.reject(table.path.name, reader.line_num, reason, delimiter.join(fields))


def _filled(reader: Iterable[list[str]]) -> Iterator[list[str]]:
    return (fields for fields in reader if fields)


def _parquet_rows(table: _Table) -> Iterator[tuple[int, Values]]:
    line = 0
    with _open_parquet(table.path) as parquet:
        names = table.names(parquet.schema_arrow.names)
        texts = [parquet.schema.column(leaf) for leaf in range(len(parquet.schema))]
        texts = [leaf.path for leaf in texts if leaf.physical_type == "BYTE_ARRAY"]
    # A text that stands in a million rows is stored once: it is not repeated in memory before its rows are counted out.
    with _open_parquet(table.path, texts) as parquet:
        for batch in parquet.iter_batches(PARQUET_ROWS, columns=list(names.values())):
            table.writer.count(table.path.name, batch.num_rows)
            for rows in _pieces(batch):
                if rows is None:
                    line += 1
                    table.writer.reject(table.path.name, line, f"row longer than {MAX_LINE_BYTES} bytes", "")
                    continue
                for record in rows.to_pylist():
                    line += 1
                    yield line, {ours: record[theirs] for ours, theirs in names.items()}


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch | None]:
    """A batch with its texts written out, in pieces of `MAX_LINE_BYTES` at most; None for a row that is longer."""
    sizes = sum((_text_bytes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    start = 0
    while start < batch.num_rows:
        length = int(np.searchsorted(np.cumsum(sizes[start:]), MAX_LINE_BYTES, side="right"))
        yield _written_out(batch.slice(start, length)) if length else None
        start += max(length, 1)


def _text_bytes(column: pa.Array) -> np.ndarray:
    """Bytes of the texts in each row of a column, int64."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        within = np.concatenate([[0], np.cumsum(_text_bytes(column.values))])
        return np.diff(within[column.offsets.to_numpy()])
    if not pa.types.is_dictionary(column.type):
        return np.zeros(len(column), np.int64)
    lengths = np.append(pc.binary_length(column.dictionary).to_numpy(zero_copy_only=False), 0)
    return lengths[pc.fill_null(column.indices, len(lengths) - 1).to_numpy()].astype(np.int64)


def _written_out(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch without dictionaries: Arrow makes Python's texts of those one by one, and slowly."""
    return pa.RecordBatch.from_arrays([_plain(column) for column in batch.columns], names=batch.schema.names)


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if pa.types.is_list(column.type) and pa.types.is_dictionary(column.type.value_type):
        # A cast goes over all elements that the rows were cut from.
        apart = column.take(np.arange(len(column)))
        return apart.cast(pa.list_(column.type.value_type.value_type))
    return column


@contextmanager
def _open_parquet(path: Path, dictionaries: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """A Parquet file; what cannot be read of it is told as such, also later, while it is open.

    Parameters
    ----------
    dictionaries
        Paths of columns that come as dictionaries.
    """
    try:
        with pq.ParquetFile(path, read_dictionary=list(dictionaries)) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: not a readable Parquet file ({error}); get it again") from error


def _ending(path: Path) -> str:
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    ending = {".json": ".jsonl", ".ndjson": ".jsonl"}.get(ending, ending)
    if ending not in (".parquet", ".csv", ".tsv", ".jsonl"):
        raise SourceError(f"{path}: a table must end in .parquet, .csv, .tsv or .jsonl (.gz after the last three)")
    return ending


def _take_images(table: _Table) -> None:
    """Stream image vectors: lists of floats, all of the first one's length."""
    if _ending(table.path) != ".parquet":
        raise SourceError(f"{table.path}: image vectors are read from Parquet only")
    size: int | None = None
    done, seen = 0, set[str]()
    with _open_parquet(table.path) as parquet:
        names = table.names(parquet.schema_arrow.names)
        kind = parquet.schema_arrow.field(names["vector"]).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
            raise SourceError(f"{table.path}: column {names['vector']} holds {kind}, not lists of numbers")
        for batch in parquet.iter_batches(IMAGE_ROWS, columns=list(names.values())):
            keys, vectors = batch.column(names["item"]).to_pylist(), batch.column(names["vector"])
            if size is None:
                size = next((length for length in pc.list_value_length(vectors).to_pylist() if length), None)
            _add_images(table, done, keys, vectors, size, seen)
            done += batch.num_rows
    table.progress.file_done(table.path)


def _add_images(table: _Table, done: int, keys: list[Any], vectors: Any, size: int | None, seen: set[str]) -> None:
    """Add one batch; rows without an id, of another length, or not finite are rejected."""
    file, writer = table.path.name, table.writer
    writer.count(file, len(keys))
    kept: dict[str, np.ndarray] = {}
    for line, (key, vector) in enumerate(zip(keys, vectors, strict=True), start=done + 1):
        try:
            name = identifier(key, "item")
            values = _vector(vector, size)
        except BadRow as error:
            writer.reject(file, line, str(error), str(key))
            continue
        if name in seen:
            writer.set_aside(file, line, "second row of one item", name)
            continue
        seen.add(name)
        kept[name] = values
    if kept:
        writer.add_images(list(kept), np.stack(list(kept.values())))


def _vector(value: Any, size: int | None) -> np.ndarray:
    if not value.is_valid or size is None or len(value.values) != size:
        raise BadRow("vector is missing or of another length than the first one")
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, nulls become NaN
        found = value.values.to_numpy(zero_copy_only=False).astype(np.float32)
    if not np.isfinite(found).all():
        raise BadRow("vector is not finite")
    return found
