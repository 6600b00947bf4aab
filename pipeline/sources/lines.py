"""Raw files as streams: gzip or plain by content, JSON or Python-literal lines, progress in bytes."""

import ast
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.sources import Progress, SourceError
from pipeline.sources.writer import RawWriter

MAX_LINE_BYTES = 4 << 20  # far above any real review; keeps one broken file from filling memory
TELL_EVERY = 2000  # lines between two progress calls


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason, free of the row's own values so that it can be counted."""


class ByteProgress:
    """Progress over several files, in bytes on disk."""

    def __init__(self, paths: list[Path], report: Progress | None) -> None:
        self._report = report
        self._total = sum(path.stat().st_size for path in paths)
        self._done = 0

    def at(self, offset: int) -> None:
        """Report that the current file has been read up to `offset`."""
        if self._report is not None:
            self._report(min(self._done + offset, self._total), self._total)

    def file_done(self, path: Path) -> None:
        """Report that one more file is read."""
        self._done += path.stat().st_size
        self.at(0)


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file that may be gzip, by its first two bytes.

    Yields
    ------
    content, raw
        The decompressed stream, and the file under it (for its position).

    Raises
    ------
    SourceError
        While the stream is read: the file is cut off or not valid gzip.
    """
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw, raw
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as content:
            try:
                yield cast(BinaryIO, content), raw
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise SourceError(f"{path}: the gzip file is damaged or cut off ({error}); get it again") from error


def lines(path: Path, progress: ByteProgress) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, from 1. Of a line above `MAX_LINE_BYTES`, that many bytes and one more."""
    with open_stream(path) as (content, raw):
        number = 0
        while line := content.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = line
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = content.readline(MAX_LINE_BYTES + 1)
            if number % TELL_EVERY == 0:
                progress.at(raw.tell())
            yield number, line.rstrip(b"\r\n")
    progress.file_done(path)


def parse(line: bytes) -> dict[str, Any]:
    """One JSON or Python-literal line as a dictionary.

    Raises
    ------
    BadRow
        Too long, not UTF-8, neither JSON nor a literal, or not an object.
    """
    if len(line) > MAX_LINE_BYTES:
        raise BadRow(f"line longer than {MAX_LINE_BYTES} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow("not valid UTF-8") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        record = _literal(text, error)
    if not isinstance(record, dict):
        raise BadRow("not an object")
    return record


def _literal(text: str, error: Exception) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise BadRow("neither JSON nor a Python literal") from error


def records(path: Path, writer: RawWriter, progress: ByteProgress) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Line number, line and its dictionary, for every good line; the others are rejected. Empty lines do not count."""
    for number, line in lines(path, progress):
        if not line.strip():
            continue
        writer.count(path.name)
        try:
            yield number, line, parse(line)
        except BadRow as error:
            writer.reject(path.name, number, str(error), line)


def read_rows(
    path: Path,
    table: str,
    convert: Callable[[dict[str, Any]], tuple[Any, ...]],
    writer: RawWriter,
    progress: ByteProgress,
) -> None:
    """Stream a file of JSON or literal lines into a raw table.

    Of several rows with one id, `items` keeps the first; the others are set aside.
    """
    seen: set[str] = set()
    for number, line, record in records(path, writer, progress):
        try:
            row = convert(record)
        except BadRow as error:
            writer.reject(path.name, number, str(error), line)
            continue
        if table == "items":
            if row[0] in seen:
                writer.set_aside(path.name, number, "second row of an item", line)
                continue
            seen.add(row[0])
        writer.add(table, row)
