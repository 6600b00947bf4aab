"""Readers of raw data: each streams its files into the five raw tables, whatever their size.

One module per kind of source, named as in the settings (`amazon`, `yelp`, `rlmrec`, `tables`, `demo`), with one
function `read(source, writer, downloads, progress)`. They are imported when they are needed.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings import DatasetSettings

Progress = Callable[[int, int], None]


class SourceError(ValueError):
    """Raw data that cannot be used; the message names file, place, value and remedy."""


@dataclass(frozen=True)
class RawTables:
    """Where the raw tables are, and what went into them.

    Attributes
    ----------
    reviews, items, profiles, images, quarantine
        Parquet files; each exists, with its schema, even when it has no rows.
    rows
        Table name -> rows.
    read
        Raw file name -> rows read from it.
    rejected
        Raw file name -> reason -> malformed rows. They count against `raw.max_bad_share`.
    set_aside
        Raw file name -> reason -> rows that are well formed but not used, such as a second row of one item.
    """

    reviews: Path
    items: Path
    profiles: Path
    images: Path
    quarantine: Path
    rows: Mapping[str, int]
    read: Mapping[str, int]
    rejected: Mapping[str, Mapping[str, int]]
    set_aside: Mapping[str, Mapping[str, int]]


def read_source(settings: DatasetSettings, out: Path, downloads: Path, progress: Progress | None = None) -> RawTables:
    """Read a dataset's raw files into Parquet tables.

    Parameters
    ----------
    out
        Folder of the tables: `reviews`, `items`, `profiles`, `images` and `quarantine`, each `.parquet`. They
        appear together at the end; a failed run leaves an earlier run's tables as they were.
    downloads
        Folder of downloaded files, and of the raw files that the demo makes.
    progress
        Called with bytes done and bytes in all, first for each download, then for the reading.

    Raises
    ------
    SourceError
        A file is missing, cannot be fetched or read, or has too many malformed rows. In the last case
        `quarantine.parquet` is written all the same, so that the rows can be looked at.
    """
    from pipeline.sources.writer import RawWriter

    reader = importlib.import_module(f"pipeline.sources.{settings.source.kind}")
    with RawWriter(out, settings.raw.max_bad_share) as writer:
        reader.read(settings.source, writer, downloads, progress)
        return writer.finish()
