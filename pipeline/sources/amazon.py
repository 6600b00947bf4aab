"""Amazon review data as published in 2014 and 2018: reviews, metadata, and the 2014 image features."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.settings import AmazonSource
from pipeline.sources import Progress
from pipeline.sources.download import fetch
from pipeline.sources.fields import identifier, labels, number, price, seconds, text
from pipeline.sources.lines import BadRow, ByteProgress, open_stream, read_rows
from pipeline.sources.writer import RawWriter

IMAGE_SIZE = 4096
RECORD = np.dtype([("item", "S10"), ("vector", "<f4", (IMAGE_SIZE,))])  # 16,394 bytes, packed
RECORDS_AT_ONCE = 1024  # 16 MB
_REVIEW_DAY = re.compile(r"(\d{1,2}) (\d{1,2}), (\d{4})")


def read(source: AmazonSource, writer: RawWriter, downloads: Path, progress: Progress | None = None) -> None:
    """Read Amazon files into the raw tables.

    Images are kept for reviewed items only: a category's file holds tens of gigabytes of others. How many were left
    out is counted.
    """
    reviews = fetch(source.reviews, downloads, progress)
    metadata, images = (fetch(file, downloads, progress) if file else None for file in (source.metadata, source.images))
    read_files(reviews, metadata, images, writer, progress)


def read_files(
    reviews: Path, metadata: Path | None, images: Path | None, writer: RawWriter, progress: Progress | None = None
) -> None:
    """Read local Amazon files into the raw tables."""
    read_bytes = ByteProgress([path for path in (reviews, metadata, images) if path], progress)
    reviewed: set[str] = set()

    def review_and_item(record: dict[str, Any]) -> tuple[Any, ...]:
        row = review(record)
        reviewed.add(row[1])
        return row

    read_rows(reviews, "reviews", review_and_item, writer, read_bytes)
    if metadata is not None:
        read_rows(metadata, "items", item, writer, read_bytes)
    if images is not None:
        read_images(images, reviewed, writer, read_bytes)


def review(record: dict[str, Any]) -> tuple[Any, ...]:
    """One row of `reviews`; a missing rating, time or text is null, a malformed one raises `BadRow`."""
    timestamp = record.get("unixReviewTime")
    return (
        identifier(record.get("reviewerID"), "reviewerID"),
        identifier(record.get("asin"), "asin"),
        number(record.get("overall"), "overall"),
        review_day(record.get("reviewTime")) if timestamp is None else seconds(timestamp, "unixReviewTime"),
        text(record.get("summary")),
        text(record.get("reviewText")),
        None,
    )


def review_day(value: Any) -> int | None:
    """Unix seconds of a `reviewTime` such as "06 17, 2018", the month first."""
    if value is None:
        return None
    match = _REVIEW_DAY.fullmatch(str(value).strip())
    try:
        month, day, year = (int(part) for part in match.groups()) if match else (0, 0, 0)
        return int(datetime(year, month, day, tzinfo=UTC).timestamp())
    except ValueError:
        raise BadRow("reviewTime is not a time") from None


def item(record: dict[str, Any]) -> tuple[Any, ...]:
    """One row of `items`, from 2014 (`categories`, nested) or 2018 (`category`) metadata."""
    title = text(record.get("title"))
    return (
        identifier(record.get("asin"), "asin"),
        # Some 2018 titles are the script at the head of the product page.
        None if title and "getTime()" in title else title,
        text(record.get("description")),
        labels(record.get("categories") or record.get("category")),
        text(record.get("brand")),
        price(record.get("price")),
    )


def read_images(path: Path, wanted: set[str], writer: RawWriter, progress: ByteProgress) -> None:
    """Stream image features: records of 10 bytes of ASIN and 4096 little-endian float32, gzip or plain.

    Only `wanted` items are kept, the first record of each. A vector that is not finite, an ASIN that is not ASCII
    and a last record that is cut off are rejected; the quarantine's line is the record's number, from 1.
    """
    pending = set(wanted)
    done = unwanted = 0
    with open_stream(path) as (content, raw):
        while block := content.read(RECORD.itemsize * RECORDS_AT_ONCE):
            whole = len(block) // RECORD.itemsize
            part = np.frombuffer(block, RECORD, count=whole)
            writer.count(path.name, whole + (len(block) % RECORD.itemsize > 0))
            unwanted += _take_images(part, done, pending, wanted, path.name, writer)
            done += whole
            if len(block) % RECORD.itemsize:
                reason = f"record cut off: {len(block) % RECORD.itemsize} of {RECORD.itemsize} bytes"
                writer.reject(path.name, done + 1, reason, block[whole * RECORD.itemsize :][:10])
            progress.at(raw.tell())
    progress.file_done(path)
    writer.leave_out(path.name, "image of an item without reviews", unwanted)


def _take_images(
    part: np.ndarray, first: int, pending: set[str], wanted: set[str], file: str, writer: RawWriter
) -> int:
    """Add the good vectors of one block; returns how many belong to items that are not wanted."""
    finite = np.isfinite(part["vector"]).all(axis=1)  # (n,)
    names: list[str] = []
    rows: list[int] = []
    unwanted = 0
    for row, raw_name in enumerate(part["item"].tolist()):
        name = raw_name.decode("ascii", "replace").strip()
        if not name or not raw_name.isascii():
            writer.reject(file, first + row + 1, "ASIN is not ASCII text", raw_name)
        elif not finite[row]:
            writer.reject(file, first + row + 1, "vector is not finite", raw_name)
        elif name in pending:
            pending.remove(name)
            names.append(name)
            rows.append(row)
        elif name in wanted:
            writer.set_aside(file, first + row + 1, "second row of an item", raw_name)
        else:
            unwanted += 1
    if rows:
        writer.add_images(names, part["vector"][rows])
    return unwanted
