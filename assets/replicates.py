"""Every model over several seeds: what comparisons stand on. One asset for each set of things that models read."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from assets import home, plots
from assets.failures import StageError
from assets.model_groups import ModelGroup, group_of, model_groups
from assets.nodes import GPU
from assets.progress import Progress
from assets.reporting import interactive, report, sections
from assets.reporting.picture import picture
from assets.settings import overrides_of, partition_of, settings_of
from assets.stage import Result, publish
from assets.store import stored_path
from assets.training import inputs_of
from assets.trials import Outcome, run, seeds_of
from assets.variants import stored
from assets.versions import code_of, settings_key
from model.registry import MODELS
from pipeline import parquet


def replicates_asset(group: ModelGroup) -> dg.AssetsDefinition:
    """The asset that trains any model of a group with several seeds."""
    code_version = code_of("model.training", "model.metrics", function=replicate)

    @dg.multi_asset(
        name=f"{group.name}_replicates",
        outs={
            "replicates": dg.AssetOut(
                key=group.key("replicates"),
                description="Test metrics and top items of every user, by seed.",
                code_version=code_version,
                kinds={"torch", "mlflow"},
            ),
            "replicate_runs": dg.AssetOut(
                key=group.key("replicate_runs"),
                description="One row a seed: validation and test metrics, best epoch, the trial.",
                code_version=code_version,
                kinds={"parquet"},
            ),
        },
        deps=[group.settings_key, settings_key("evidence"), *(dg.AssetKey(name) for name in inputs_of(group))],
        partitions_def=group.partitions,
        group_name="replicates",
        pool=GPU,
    )
    def replicates(context: dg.AssetExecutionContext, progress: Progress) -> Iterator[dg.MaterializeResult]:
        started = time.perf_counter()
        outcomes = replicate(context, progress)
        means = pl.DataFrame([outcome.record["test"] for outcome in outcomes]).mean().row(0, named=True)
        yield publish(Result(_users(outcomes), means), started, group.key("replicates").path)
        yield publish(Result(_runs(outcomes)), started, group.key("replicate_runs").path)

    return replicates


def replicate(context: dg.AssetExecutionContext, progress: Progress) -> list[Outcome]:
    """Train one model on one dataset with every seed."""
    partition, settings = partition_of(context), settings_of(context)
    name, model = partition["dataset"], partition["model"]
    inputs = stored(context.instance, name, inputs_of(group_of(model)))
    title = MODELS[model].title
    trials = seeds_of(name, model, title, overrides_of(context), inputs, settings.evidence.seeds)
    return run(trials, settings.evidence.parallel, progress.bar(context, f"seeds of {title}"))


def _users(outcomes: Sequence[Outcome]) -> pl.DataFrame:
    return pl.concat(
        outcome.users.select(pl.lit(outcome.trial.seed, pl.Int64).alias("seed"), pl.all()) for outcome in outcomes
    )


def _runs(outcomes: Sequence[Outcome]) -> pl.DataFrame:
    rows = []
    for outcome in outcomes:
        record = outcome.record
        about = {"seed": record["seed"], "trial": outcome.trial.identity, "best_epoch": record["best_epoch"]}
        for split in ("validation", "test"):
            about |= {f"{split}_{metric}": value for metric, value in record[split].items()}
        rows.append(about)
    return pl.DataFrame(rows)


REPLICATES = [group.key(name) for group in model_groups() for name in ("replicates", "replicate_runs")]


def replicates(name: str) -> dict[str, pl.DataFrame]:
    """Replicates of every model that has them, by model.

    Raises
    ------
    StageError
        There are none.
    """
    found = stored_replicates(name)
    if not found:
        raise StageError(f"no model has been trained with several seeds on {name}; start with: scale report -d {name}")
    return found


def stored_replicates(name: str, table: str = "replicates") -> dict[str, pl.DataFrame]:
    """`replicates` or `replicate_runs` of every model that has them for a dataset, by model."""
    paths = {model: stored_path(group_of(model).key(table), f"{name}|{model}") for model in MODELS}
    return {model: parquet.read_table(path) for model, path in paths.items() if path.exists()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`mean`, `sd` (null for a single one) and number (`seeds`) of values over seeds."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "seeds": len(values)}


def drawn(context: dg.AssetExecutionContext, section: sections.Section) -> dict[str, dg.MetadataValue]:
    """A section of the report, for the metadata of the asset that it shows.

    Its charts, each as a picture and as the path of a page to explore, which a report writes to the same place; the
    tables of a section without charts.
    """
    if not section.charts:
        return {section.name: dg.MetadataValue.md("\n".join(map(report.markdown, section.tables)))}
    folder = home.report_folder(partition_of(context)["dataset"]) / "figures"
    shown: dict[str, dg.MetadataValue] = {}
    for chart in section.charts:
        shown[chart.name] = dg.MetadataValue.md(plots.embedded(chart.name, picture(chart)))
        page = folder / f"{chart.name}.html"
        interactive.write_page(interactive.interactive(chart), page)
        shown[f"{chart.name}, interactive"] = dg.MetadataValue.path(page)
    return shown


def frame(rows: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Rows as a table whose columns are there even without a row; what a row lacks is null."""
    return pl.DataFrame(list(rows), schema=dict(schema))
