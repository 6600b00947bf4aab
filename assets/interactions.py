"""Interactions: the k-core, contiguous ids and the split."""

import dagster as dg
import polars as pl

from assets.settings import settings_of
from assets.stage import Check, Result, stage
from pipeline.interactions import build_interactions

TABLES = {
    "interactions": "Kept pairs with their split: train, valid or test.",
    "users": "Users kept: contiguous id, raw id.",
    "items": "Items kept: contiguous id, raw id.",
    "item_metadata": "Title, description, categories, brand and price of the items kept.",
}
CHECKS = {
    "no_duplicate_pairs": "Every (user, item) pair stands once.",
    "everyone_evaluated_trains": "Every user with a held-out interaction has a training interaction.",
    "something_held_out": "Validation and test have interactions.",
}


@stage(group="interactions", code=["pipeline.interactions"], settings=["interactions"], checks=CHECKS, tables=TABLES)
def interaction_tables(
    context: dg.AssetExecutionContext, raw_reviews: pl.LazyFrame, raw_items: pl.LazyFrame
) -> dict[str, Result]:
    """Apply the k-core filter, give ids, split (ALGORITHM 1)."""
    tables = build_interactions(raw_reviews, raw_items, settings_of(context).interactions)
    splits = dict(tables.interactions.group_by("split").len().sort("split").iter_rows())
    pairs = tables.interactions.select("user", "item").n_unique()
    is_training = pl.col("split") == "train"
    training, evaluated = (set(tables.interactions.filter(where)["user"]) for where in (is_training, ~is_training))
    checks = {
        "no_duplicate_pairs": Check(pairs == tables.interactions.height, {"pairs": pairs}),
        "everyone_evaluated_trains": Check(evaluated.issubset(training), {"users": len(evaluated)}),
        "something_held_out": Check({"valid", "test"} <= splits.keys(), {"splits": splits}),
    }
    density = tables.interactions.height / max(tables.users.height * tables.items.height, 1)
    shown = {"splits": splits, "density": density, **tables.counts}
    return {
        "interactions": Result(tables.interactions, shown, checks),
        "users": Result(tables.users),
        # Apart, so that an edited title or description makes nothing stale that reads ids alone.
        "items": Result(tables.items.select("item", "raw_id")),
        "item_metadata": Result(tables.items),
    }
