"""Interactions: the k-core, contiguous ids and the split."""

import time
from collections.abc import Iterator

import dagster as dg
import polars as pl

from assets.partitions import DATASETS
from assets.settings import settings_of
from assets.stage import Check, Result, check_specs, publish
from assets.versions import code_of, settings_key
from pipeline.interactions import build_interactions

TABLES = {
    "users": "Users kept: contiguous id, raw id.",
    "items": "Items kept: contiguous id, raw id.",
    "item_metadata": "Title, description, categories, brand and price of the items kept.",
    "interactions": "Kept pairs with their split: train, valid or test.",
}
CHECKS = {
    "no_duplicate_pairs": "Every (user, item) pair stands once.",
    "every_user_trains": "Every user has a training interaction.",
    "something_held_out": "Validation and test have interactions.",
}


@dg.multi_asset(
    name="interaction_tables",
    outs={
        name: dg.AssetOut(
            description=text,
            group_name="interactions",
            kinds={"parquet"},
            code_version=code_of("pipeline.interactions"),
        )
        for name, text in TABLES.items()
    },
    deps=[settings_key("interactions")],
    partitions_def=DATASETS,
    check_specs=check_specs(["interactions"], CHECKS),
)
def interaction_tables(
    context: dg.AssetExecutionContext, raw_reviews: pl.LazyFrame, raw_items: pl.LazyFrame
) -> Iterator[dg.MaterializeResult]:
    """Apply the k-core filter, give ids, split (ALGORITHM 1)."""
    started = time.perf_counter()
    tables = build_interactions(raw_reviews, raw_items, settings_of(context).interactions)
    splits = dict(tables.interactions.group_by("split").len().sort("split").iter_rows())
    pairs = tables.interactions.select("user", "item").n_unique()
    training = tables.interactions.filter(pl.col("split") == "train")["user"].n_unique()
    checks = {
        "no_duplicate_pairs": Check(pairs == tables.interactions.height, {"pairs": pairs}),
        "every_user_trains": Check(training == tables.users.height, {"users": tables.users.height}),
        "something_held_out": Check({"valid", "test"} <= splits.keys(), {"splits": splits}),
    }
    density = tables.interactions.height / max(tables.users.height * tables.items.height, 1)
    shown = {"splits": splits, "density": density, **tables.counts}
    yield publish(Result(tables.users), started, ["users"])
    # Apart, so that an edited title or description makes nothing stale that reads ids alone.
    yield publish(Result(tables.items.select("item", "raw_id")), started, ["items"])
    yield publish(Result(tables.items), started, ["item_metadata"])
    yield publish(Result(tables.interactions, shown, checks), started, ["interactions"])
