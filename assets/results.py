"""Read what runs left behind: metrics, recommendations, sizes."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from assets import home, tracking
from assets.model_groups import group_of
from assets.store import stored_path
from assets.training import evaluation_of
from assets.versions import latest
from model.registry import MODELS, entry
from pipeline import parquet, row_cache
from pipeline.graphs import kept

ROW_KINDS = ("computed", "reused")
CACHED_STAGES = {
    "profiles": ("item_profiles", "user_profiles"),
    "embeddings": ("item_text_embeddings", "user_text_embeddings"),
    "graphs": (
        "user_subspace_graph",
        "item_subspace_graph",
        "user_item_subspace_graph",
        "user_similarity_graph",
        "item_text_similarity_graph",
        "item_visual_similarity_graph",
        "user_item_similarity_graph",
    ),
}


class NothingThereError(ValueError):
    """Asked for something that no run has made yet, or for an unknown id; the message says what to do."""


def latest_runs(instance: dg.DagsterInstance, dataset: str, models: Sequence[str]) -> list[dict[str, Any]]:
    """Test metrics of the trained models as they stand in the store, one row a model."""
    rows = []
    for model in models:
        key, partition = group_of(model).key("trained_model"), f"{dataset}|{model}"
        record = latest(instance, key, partition)
        assert record is not None
        metrics = {name.removeprefix(tracking.TEST): value for name, value in record.shown.items()}
        rows.append({"run": MODELS[model].title, **metrics})
    return rows


@dataclass(frozen=True)
class Cache:
    """A row cache, and the share of rows that the last run of each stage in front of it took from it."""

    dataset: str
    kind: str
    folder: Path
    size: row_cache.CacheSize
    hit_rates: dict[str, float]


def caches(instance: dg.DagsterInstance, dataset: str | None = None) -> list[Cache]:
    """Every row cache under the home folder, or those of one dataset."""
    found = []
    for kind, stages in CACHED_STAGES.items():
        for folder in sorted((home.home() / "cache" / kind).glob(dataset or "*")):
            rates = {}
            for stage in stages:
                record = latest(instance, dg.AssetKey(stage), folder.name)
                computed, reused = (record.shown.get(f"rows_{which}") if record else None for which in ROW_KINDS)
                if computed is not None and reused is not None and computed + reused:
                    rates[stage] = reused / (computed + reused)
            size = kept.size(folder) if kind == "graphs" else row_cache.size(folder)
            found.append(Cache(folder.name, kind, folder, size, rates))
    return found


def prune(cache: Cache, older_than: timedelta) -> int:
    """Delete old rows of a cache that no newest result uses; gives how many. A graph keeps its newest build alone."""
    return 0 if cache.kind == "graphs" else row_cache.prune(cache.folder, older_than)


def comparison(dataset: str) -> pl.DataFrame:
    """Models side by side over several seeds, as `scale report` left them: model, title, metric, mean, sd, seeds."""
    return parquet.read_table(stored_path(dg.AssetKey("comparison"), dataset))


def significance(dataset: str, model: str, metric: str) -> list[dict[str, Any]]:
    """One model against every other that is trained on a dataset, paired by user, on the test split.

    Returns
    -------
    list of dict
        For each other model, the best first: `model`, `users`, both means (`mean`, `other`), the mean `difference`, the
        ends of its 95 % interval (`low`, `high`), `effect_size`, and the p-values of the paired t-test and Wilcoxon's
        (`t_test`, `wilcoxon`), each after Holm's correction for as many comparisons.

    Raises
    ------
    NothingThereError
        The model, or every other one, is not trained, or nobody computed the metric.
    """
    from model.significance import compare, holm

    entry(model)
    found = {}
    for name in MODELS:
        path = stored_path(group_of(name).key("user_metrics"), f"{dataset}|{name}")
        if path.exists():
            found[name] = evaluation_of(parquet.read_table(path))
    own = found.pop(model, None)
    if own is None or not found:
        missing, name = (f"{model} is not", model) if own is None else (f"no model but {model} is", "NAME")
        hint = f"scale run --dataset {dataset} --model {name}"
        raise NothingThereError(f"{missing} trained on {dataset}; train it with: {hint}")
    if metric not in own.per_user:
        raise NothingThereError(f"no metric {metric!r} in {model}'s test metrics; there are {', '.join(own.per_user)}")
    tests = {name: compare(other, own)[metric] for name, other in found.items() if metric in other.per_user}
    t_test, wilcoxon = (
        holm({name: getattr(test, kind) for name, test in tests.items()}) for kind in ("t_test", "wilcoxon")
    )
    rows = [
        {
            "model": name,
            "users": test.users,
            "mean": own.means[metric],
            "other": found[name].means[metric],
            "difference": test.difference,
            "low": test.interval[0],
            "high": test.interval[1],
            "effect_size": test.effect_size,
            "t_test": t_test[name],
            "wilcoxon": wilcoxon[name],
        }
        for name, test in tests.items()
    ]
    return sorted(rows, key=lambda row: row["other"], reverse=True)


def recommendations(dataset: str, model: str, user: str) -> tuple[list[str], pl.DataFrame]:
    """A user's training items by title, and the stored recommendations, best first.

    Raises
    ------
    NothingThereError
        The model has no recommendations yet, or the dataset no such user.
    """
    table = _stored(dataset, model).filter(pl.col("user_raw_id") == user)
    users = parquet.read_table(stored_path(dg.AssetKey("users"), dataset))
    if user not in users["raw_id"]:
        near = difflib.get_close_matches(user, users["raw_id"].to_list(), n=3) or users["raw_id"].head(3).to_list()
        raise NothingThereError(f"{dataset} has no user {user!r} after its core filter; there are, for example: {near}")
    pairs = parquet.read_table(stored_path(dg.AssetKey("interactions"), dataset))
    items = parquet.read_table(stored_path(dg.AssetKey("item_metadata"), dataset))
    row = users.filter(pl.col("raw_id") == user)["user"].item()
    own = pairs.filter((pl.col("user") == row) & (pl.col("split") == "train")).join(items, on="item", how="left")
    return own.select(pl.coalesce("title", "raw_id"))["title"].to_list(), table.sort("rank")


def examples(dataset: str, model: str, count: int = 2) -> list[str]:
    """Raw ids of a few users, spread evenly."""
    users = _stored(dataset, model)["user_raw_id"].unique(maintain_order=True)
    return users.gather([(index + 1) * len(users) // (count + 1) for index in range(count)]).to_list()


def size(dataset: str) -> str:
    """Users x items and pairs of a dataset, or a dash where its interactions have not been made."""
    paths = [stored_path(dg.AssetKey(name), dataset) for name in ("users", "items", "interactions")]
    if not all(path.exists() for path in paths):
        return "-"
    users, items, pairs = (pl.scan_parquet(path).select(pl.len()).collect().item() for path in paths)
    return f"{users:,} x {items:,}, {pairs:,}"


def _stored(dataset: str, model: str) -> pl.DataFrame:
    entry(model)
    path = stored_path(group_of(model).key("recommendations"), f"{dataset}|{model}")
    if not path.exists():
        hint = f"scale run --dataset {dataset} --model {model}"
        raise NothingThereError(
            f"{model} has no recommendations for {dataset} under {home.store_url() or home.store()}; make them with: "
            f"{hint}"
        )
    return parquet.read_table(path)
