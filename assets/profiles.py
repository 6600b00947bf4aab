"""Profiles: what a language model, or a simpler writer, says of each item and user (eqs. 1, 2)."""

import dagster as dg
import polars as pl

from assets import home
from assets.progress import Progress
from assets.settings import partition_of, settings_of
from assets.stage import Check, Result, stage
from pipeline.interactions import InteractionTables, user_histories
from pipeline.profiles import ProfileResult, write_item_profiles, write_user_profiles

CHECKS = {
    "few_empty_profiles": "At most 5 % of the rows have an empty profile.",
    "few_failed_profiles": "At most 5 % of the rows fell back to their metadata text.",
}
TOLERATED_SHARE = 0.05


@stage(group="profiles", code=["pipeline.profiles"], settings=["item_profiles"], checks=CHECKS)
def item_profiles(
    context: dg.AssetExecutionContext, item_metadata: pl.DataFrame, raw_profiles: pl.DataFrame, progress: Progress
) -> Result:
    """One profile per item, from its metadata (eq. 1)."""
    settings = settings_of(context).profiles
    cache = home.home() / "cache" / "profiles" / partition_of(context)["dataset"]
    bar = progress.bar(context, "writing item profiles")
    return _result(write_item_profiles(item_metadata, raw_profiles, settings, cache, bar))


@stage(
    group="profiles",
    code=["pipeline.profiles", "pipeline.interactions"],
    settings=["user_profiles", "interactions"],
    checks=CHECKS,
)
def user_profiles(
    context: dg.AssetExecutionContext,
    users: pl.DataFrame,
    item_metadata: pl.DataFrame,
    interactions: pl.DataFrame,
    raw_reviews: pl.LazyFrame,
    item_profiles: pl.DataFrame,
    raw_profiles: pl.DataFrame,
    progress: Progress,
) -> Result:
    """One profile per user, from the items and reviews of the training split (eq. 2)."""
    dataset = settings_of(context)
    settings = dataset.profiles
    tables = InteractionTables(users, item_metadata, interactions, counts={})
    histories = user_histories(raw_reviews, tables, dataset.interactions, settings.history).collect(engine="streaming")
    cache = home.home() / "cache" / "profiles" / partition_of(context)["dataset"]
    bar = progress.bar(context, "writing user profiles")
    return _result(
        write_user_profiles(users, item_metadata, item_profiles, histories, raw_profiles, settings, cache, bar)
    )


def _result(result: ProfileResult) -> Result:
    table = result.table
    rows = max(table.height, 1)
    empty = table.filter(pl.col("summary") == "").height / rows
    failed = table.filter(pl.col("error").is_not_null()).height / rows
    checks = {
        "few_empty_profiles": Check(empty <= TOLERATED_SHARE, {"share": empty}),
        "few_failed_profiles": Check(failed <= TOLERATED_SHARE, {"share": failed}),
    }
    samples = "\n\n".join(f"> {summary}" for summary in table["summary"].head(3))
    return Result(table, {**result.counts, "samples": dg.MetadataValue.md(samples)}, checks)
