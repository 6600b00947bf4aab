"""Recommendations: what a trained model would show every user, and why."""

import time
from collections.abc import Iterator

import dagster as dg
import numpy as np
import polars as pl

from assets.model_groups import ModelGroup
from assets.stage import Check, Result, check_specs, publish
from assets.training import interaction_matrix, pairs_of
from assets.versions import code_of

TOP = 20
CHECKS = {"nothing_seen_before": "No user is shown an item of their training split."}


def recommendations_asset(group: ModelGroup) -> dg.AssetsDefinition:
    """The asset with the top items of every user, for any model of a group."""

    @dg.multi_asset(
        name=f"{group.name}_recommendations",
        outs={
            "recommendations": dg.AssetOut(
                key=group.key("recommendations"),
                description=f"Top {TOP} items of every user, with scores and the nearest own items as reason.",
                code_version=code_of("model.metrics", "pipeline.reasons", function=recommend),
                kinds={"parquet"},
            )
        },
        ins={"trained_model": dg.AssetIn(group.key("trained_model"))},
        partitions_def=group.partitions,
        check_specs=check_specs([*group.key("recommendations").path], CHECKS),
        group_name="recommendations",
    )
    def recommendations(
        trained_model: np.ndarray,
        users: pl.DataFrame,
        item_metadata: pl.DataFrame,
        interactions: pl.DataFrame,
        item_text_embeddings: np.ndarray,
    ) -> Iterator[dg.MaterializeResult]:
        started = time.perf_counter()
        table = recommend(trained_model, users, item_metadata, interactions, item_text_embeddings)
        seen = interactions.filter(pl.col("split") == "train").select("user", "item")
        repeated = table.join(seen, on=["user", "item"], how="semi").height
        shown = {
            "users": users.height,
            "distinct_items": table["item"].n_unique(),
            "share_with_reason": (table["reasons"].list.len() > 0).sum() / max(table.height, 1),
        }
        checks = {"nothing_seen_before": Check(repeated == 0, {"repeated": repeated})}
        yield publish(Result(table, shown, checks), started, group.key("recommendations").path)

    return recommendations


def recommend(
    embeddings: np.ndarray, users: pl.DataFrame, items: pl.DataFrame, interactions: pl.DataFrame, vectors: np.ndarray
) -> pl.DataFrame:
    """Top items of every user as a table.

    Parameters
    ----------
    embeddings
        Final embeddings, users first, (M + N, d).
    vectors
        Text vectors of the items, (N, d_t).

    Returns
    -------
    polars.DataFrame
        user, user_raw_id, rank (from 1), item, item_raw_id, title, score, reasons (titles or raw ids).
    """
    from model import metrics
    from pipeline.reasons import nearest_in_history

    history = interaction_matrix(pairs_of(interactions, "train"), (users.height, items.height))
    best, scores = metrics.recommend(embeddings[: users.height], embeddings[users.height :], history, TOP)  # (M, k)
    why = nearest_in_history(best, history, vectors)  # (M, k, 2)
    names = items.with_columns(name=pl.col("title").fill_null(pl.col("raw_id"))).select(
        "item", "raw_id", "title", "name"
    )
    table = pl.DataFrame(
        {
            "user": np.repeat(users["user"].to_numpy(), best.shape[1]),
            "rank": np.tile(np.arange(1, best.shape[1] + 1, dtype=np.int32), users.height),
            "item": best.ravel().astype(np.int32),
            "score": scores.ravel(),
            "reason_1": why[..., 0].ravel(),
            "reason_2": why[..., 1].ravel(),
        }
    ).filter(pl.col("item") >= 0)
    table = table.join(users.rename({"raw_id": "user_raw_id"}), on="user", how="left", maintain_order="left")
    table = table.join(
        names.select("item", "title", item_raw_id="raw_id"), on="item", how="left", maintain_order="left"
    )
    for reason in ("reason_1", "reason_2"):
        lookup = names.select(pl.col("item").alias(reason), pl.col("name").alias(f"{reason}_name"))
        table = table.join(lookup, on=reason, how="left", maintain_order="left")
    reasons = pl.concat_list("reason_1_name", "reason_2_name").list.drop_nulls().alias("reasons")
    return table.select("user", "user_raw_id", "rank", "item", "item_raw_id", "title", "score", reasons)
