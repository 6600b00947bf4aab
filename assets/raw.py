"""Raw data: a dataset's files, read once into five tables."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets import home
from assets.progress import Progress
from assets.settings import partition_of, settings_of
from assets.stage import Check, Result, stage
from assets.versions import package
from pipeline.sources import RawTables, read_source

TABLES = {
    "raw_reviews": "Interactions as published: raw ids, rating, time, review text, the source's own split.",
    "raw_items": "Item metadata as published: title, description, categories, brand, price.",
    "raw_profiles": "Profiles that came with the data.",
    "raw_images": "Image features that came with the data.",
    "quarantine": "Malformed rows: file, line, reason and the row itself.",
}
CHECKS = {"every_row_accounted_for": "Rows in the files = rows kept + rows set aside + rows in quarantine."}


@stage(group="raw", code=package("pipeline.sources"), settings=["source"], checks=CHECKS, tables=TABLES)
def raw(context: dg.AssetExecutionContext, progress: Progress) -> dict[str, Result]:
    """Read the dataset's raw files, streaming."""
    name = partition_of(context)["dataset"]
    staging = home.store() / ".staging" / name
    tables = read_source(
        settings_of(context), staging, home.raw_folder(name), progress.bar(context, "reading raw files")
    )
    progress.note(context, _summary(tables))
    results = {}
    for table in TABLES:
        path = getattr(tables, table.removeprefix("raw_"))
        shown: dict[str, Any] = {"dagster/row_count": tables.rows[path.stem]}
        checks = {}
        if table == "raw_reviews":
            shown |= {"rows_read": dict(tables.read)}
            checks = {"every_row_accounted_for": Check(_accounted(tables), {"rows_read": dict(tables.read)})}
        if table == "quarantine":
            shown |= {"rejected": _plain(tables.rejected), "set_aside": _plain(tables.set_aside)}
        results[table] = Result(path, shown, checks)
    return results


def _accounted(tables: RawTables) -> bool:
    kept = sum(count for name, count in tables.rows.items() if name != "quarantine")
    left = sum(sum(reasons.values()) for part in (tables.rejected, tables.set_aside) for reasons in part.values())
    return sum(tables.read.values()) == kept + left


def _plain(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {file: dict(reasons) for file, reasons in counts.items()}


def _summary(tables: RawTables) -> str:
    rows = ", ".join(f"{count:,} {name}" for name, count in tables.rows.items() if count and name != "quarantine")
    bad = sum(sum(reasons.values()) for reasons in tables.rejected.values())
    return f"read {rows}; {bad:,} malformed rows set aside in `quarantine`"
