"""The report on a dataset: one page, and the same as Markdown, with every table and figure that there is."""

import hashlib
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from assets import home, tracking
from assets.comparisons import TABLES, cost
from assets.failures import StageError
from assets.replicates import REPLICATES, stored_replicates
from assets.reporting import sections
from assets.reporting.report import COLUMNS, markdown, render
from assets.settings import Dataset, partition_of, settings_of
from assets.stage import Result, stage
from assets.store import stored_path
from assets.versions import package
from pipeline import parquet
from pipeline.interactions import SPLITS

PARTS = [name for name in COLUMNS if name != "cost"]  # which is no asset


@stage(
    group="evidence",
    code=package("assets.reporting"),
    reads=[*(dg.AssetKey(name) for name in PARTS), *TABLES, *REPLICATES],
    whatever_there_is=True,
)
def report(context: dg.AssetExecutionContext) -> Result:
    """A page that needs no network, and the same as Markdown: every table and figure that there is of a dataset."""
    name, settings = partition_of(context)["dataset"], settings_of(context)
    paths = {part: stored_path(dg.AssetKey(part), name) for part in PARTS}
    tables = {part: parquet.read_table(path) for part, path in paths.items() if path.exists()}
    if not tables:
        raise StageError(f"there is nothing to report on {name} yet; start with: scale report -d {name}")
    tables["cost"] = cost(name)
    folder = home.report_folder(name)
    page = render(f"{settings.title}: evidence", _facts(name, settings), tables, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    written = pl.DataFrame(
        {
            "file": [path.relative_to(folder).as_posix() for path in files],
            "sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        }
    )
    tags = {"dataset": name, "kind": "report", "git_commit": tracking.git_commit()}
    tracking.log_folder(f"{name} evidence", "report", folder, tags)
    shown: dict[str, Any] = {"page": dg.MetadataValue.path(page), "tables": ", ".join(tables)}
    if tables["cost"].height:
        shown["cost"] = dg.MetadataValue.md("".join(map(markdown, sections.cost(tables["cost"]).tables)))
    return Result(written, shown)


def _facts(name: str, settings: Dataset) -> dict[str, object]:
    """What a reader needs to place the numbers."""
    users, items, pairs = (parquet.read_table(stored_path(key, name)) for key in TABLES)
    splits = dict(pairs.group_by("split").len().iter_rows())
    encoder = settings.embeddings.model if settings.embeddings.encoder == "sentence-transformers" else "LSA"
    runs = stored_replicates(name, "replicate_runs")
    seeds = sorted({seed for table in runs.values() for seed in table["seed"]})
    return {
        "Dataset": settings.title,
        "Users": users.height,
        "Items": items.height,
        "Interactions": pairs.height,
        "Split": f"{settings.interactions.split}: " + " / ".join(f"{splits[part]:,}" for part in SPLITS),
        "Profiles": f"{settings.profiles.backend}, from {settings.profiles.history} histories",
        "Encoder": Path(encoder).name,
        "Fusion (eq. 6)": f"{settings.fusion.operator}, of modalities {settings.fusion.modality_operator}",
        "Models": len(runs),
        "Seeds": ", ".join(map(str, seeds)),
        "Evaluation": "all items ranked, training items masked; validation picks the epoch, test is read once",
        "Code": tracking.git_commit(),
    }
