"""Profiles: what a language model, or a simpler writer, says of each item and user (eqs. 1, 2)."""

import dagster as dg
import polars as pl

from assets import home
from assets.nodes import GPU
from assets.progress import Progress
from assets.settings import partition_of, settings_of
from assets.stage import Check, Result, stage
from pipeline.compute import cluster
from pipeline.interactions import InteractionTables, user_histories
from pipeline.profiles.write import ProfileResult, write_item_profiles, write_user_profiles

CHECKS = {
    "few_empty_profiles": "At most 5 % of the rows have an empty profile.",
    "few_failed_profiles": "At most 5 % of the rows fell back to their metadata text, because no profile could be had.",
}
TOLERATED_SHARE = 0.05
SHOWN_FAILURES = 5
FAILURES = "Rows without a profile of their own: why, the prompt, and the model's last answer as it came."


@stage(
    group="profiles",
    code=["pipeline.profiles.write"],
    settings=["item_profiles"],
    checks=CHECKS,
    pool=GPU,
    tables={"item_profiles": "One profile per item, from its metadata (eq. 1).", "item_profile_failures": FAILURES},
)
def item_profile_tables(
    context: dg.AssetExecutionContext, item_metadata: pl.DataFrame, raw_profiles: pl.DataFrame, progress: Progress
) -> dict[str, Result]:
    """Write the items' profiles."""
    dataset = settings_of(context)
    cache = home.cache_folder("profiles", partition_of(context)["dataset"])
    bar = progress.bar(context, "writing item profiles")
    where = cluster(dataset.compute)
    return _results("item", write_item_profiles(item_metadata, raw_profiles, dataset.profiles, cache, bar, where))


@stage(
    group="profiles",
    code=["pipeline.profiles.write", "pipeline.interactions"],
    settings=["user_profiles", "interactions"],
    checks=CHECKS,
    pool=GPU,
    tables={
        "user_profiles": "One profile per user, from the items and reviews of the training split (eq. 2).",
        "user_profile_failures": FAILURES,
    },
)
def user_profile_tables(
    context: dg.AssetExecutionContext,
    users: pl.DataFrame,
    item_metadata: pl.DataFrame,
    interactions: pl.DataFrame,
    raw_reviews: pl.LazyFrame,
    item_profiles: pl.DataFrame,
    raw_profiles: pl.DataFrame,
    progress: Progress,
) -> dict[str, Result]:
    """Write the users' profiles."""
    dataset = settings_of(context)
    settings = dataset.profiles
    tables = InteractionTables(users, item_metadata, interactions, counts={})
    histories = user_histories(raw_reviews, tables, dataset.interactions, settings.history).collect(engine="streaming")
    cache = home.cache_folder("profiles", partition_of(context)["dataset"])
    bar = progress.bar(context, "writing user profiles")
    where = cluster(dataset.compute)
    written = write_user_profiles(
        users, item_metadata, item_profiles, histories, raw_profiles, settings, cache, bar, where
    )
    return _results("user", written)


def _results(kind: str, result: ProfileResult) -> dict[str, Result]:
    table, failures = result.table, result.failures
    rows = max(table.height, 1)
    empty = table.filter(pl.col("summary") == "").height / rows
    failed = failures.height / rows
    first = [f"{kind} {row}: {error}" for row, error in failures.select(kind, "error").head(SHOWN_FAILURES).iter_rows()]
    checks = {
        "few_empty_profiles": Check(empty <= TOLERATED_SHARE, {"share": empty}),
        "few_failed_profiles": Check(failed <= TOLERATED_SHARE, {"share": failed, "first": first}),
    }
    samples = "\n\n".join(f"> {summary}" for summary in table["summary"].head(3))
    return {
        f"{kind}_profiles": Result(table, {**result.counts, "samples": dg.MetadataValue.md(samples)}, checks),
        f"{kind}_profile_failures": Result(failures, {"share": failed, "first": first}),
    }
