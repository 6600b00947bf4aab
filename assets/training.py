"""Training: one asset for each set of things that models read, partitioned by dataset and model.

An edit of a graph makes the models stale that read it, and no other.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl
from scipy.sparse import csr_array

from assets import home, tracking
from assets.model_groups import ModelGroup, group_of
from assets.nodes import GPU
from assets.progress import Progress
from assets.settings import Dataset, model_config, partition_of, settings_of, training_config
from assets.stage import Check, Result, check_specs, publish, takes
from assets.storage import read
from assets.store import stored_path
from assets.versions import code_of, lineage, model_content
from model.registry import MODELS
from pipeline import fingerprint

if TYPE_CHECKING:
    from model.base import RecData, Recommender
    from model.metrics import Evaluation
    from model.training import EpochRecord, TrainingResult

INPUTS: dict[str, dict[str, type]] = {
    "interactions": {"users": pl.DataFrame, "items": pl.DataFrame, "interactions": pl.DataFrame},
    "text": {"item_text_embeddings": np.ndarray},
    "user_text": {"user_text_embeddings": np.ndarray},
    "modalities": {"item_text_embeddings": np.ndarray, "item_visual_embeddings": np.ndarray},
    "semantic_graph": {
        "semantic_graph": csr_array,
        "user_subspace_graph": csr_array,
        "item_subspace_graph": csr_array,
        "user_item_subspace_graph": csr_array,
    },
}
# Fields of `RecData` -> stages that make them.
FEATURES = {
    "text": "item_text_embeddings",
    "user_text": "user_text_embeddings",
    "visual": "item_visual_embeddings",
}
CHECKS = {"better_than_popularity": "Test Recall@20 is above that of recommending the most popular items."}


def inputs_of(group: ModelGroup) -> dict[str, type]:
    """What the group's training loads: asset name -> type."""
    return {name: kind for need in sorted(group.needs) for name, kind in INPUTS[need].items()}


def training_asset(group: ModelGroup) -> dg.AssetsDefinition:
    """The asset that trains any model of a group."""
    reads = ", ".join(sorted(group.needs))
    code_version = code_of("model.training", function=_train)

    def training(
        context: dg.AssetExecutionContext, progress: Progress, **inputs: Any
    ) -> Iterator[dg.MaterializeResult]:
        yield from _train(context, progress, group, inputs)

    inputs = inputs_of(group)
    return dg.multi_asset(
        name=f"{group.name}_training",
        outs={
            "trained_model": dg.AssetOut(
                key=group.key("trained_model"),
                description=f"Final embeddings, users first, of models that read {reads}; the run is in MLflow.",
                code_version=code_version,
                kinds={"torch", "mlflow"},
            ),
            "user_metrics": dg.AssetOut(
                key=group.key("user_metrics"),
                description="Test metrics of every user with a test interaction, for paired tests.",
                code_version=code_version,
                kinds={"parquet"},
            ),
        },
        ins={name: dg.AssetIn(key=name) for name in inputs},
        deps=[group.settings_key],
        partitions_def=group.partitions,
        check_specs=check_specs([*group.key("trained_model").path], CHECKS),
        group_name="models",
        pool=GPU,
    )(takes(training, {"context": dg.AssetExecutionContext, "progress": Progress, **inputs}))


def _train(
    context: dg.AssetExecutionContext, progress: Progress, group: ModelGroup, inputs: dict[str, Any]
) -> Iterator[dg.MaterializeResult]:
    """Train one model on one dataset, log it to MLflow, give its embeddings and per-user metrics."""
    from model.training import train

    started = time.perf_counter()
    partition = partition_of(context)
    name, dataset = partition["model"], partition["dataset"]
    settings = settings_of(context)
    config = training_config(name, settings)
    data = rec_data(dataset, inputs)
    model = build(name, data, settings)
    parents = [dg.AssetKey(asset) for asset in inputs_of(group)]
    versions = lineage(context.instance, [group.settings_key, *parents], [str(context.partition_key), dataset])
    identity = fingerprint.settings_version(
        {asset: versions.get(asset) for asset in inputs}, model_content(name, settings)
    )
    checkpoint = home.checkpoint_path(dataset, name)
    run = tracking.TrainingRun(
        experiment=dataset,
        name=f"{MODELS[name].title} seed {config.seed}",
        settings={**logged_settings(settings, model, name), "training": config.model_dump(mode="json")},
        tags={
            **{f"version.{asset.replace('/', '.')}": version for asset, version in versions.items()},
            "dataset": dataset,
            "model": name,
            "dagster_run_id": context.run.run_id,
            "git_commit": tracking.git_commit(),
            "profile_history": settings.profiles.history,
        },
        resume_file=checkpoint.with_suffix(".run.json"),
        fingerprint=identity,
    )
    bar = progress.bar(context, f"training {MODELS[name].title}")
    best = 0.0

    def on_epoch(record: "EpochRecord") -> None:
        nonlocal best
        run.epoch(record)
        best = max(best, (record.validation or {}).get(config.selection_metric, 0.0))
        bar(record.epoch, config.epochs, f"best validation {config.selection_metric} {best:.4f}")

    try:
        result = train(model, data, config, on_epoch=on_epoch, checkpoint=checkpoint, fingerprint=identity)
        ids = tracking.Ids(inputs["users"], inputs["items"], pairs_of(inputs["interactions"], "train"))
        weights = {key: value.cpu().numpy() for key, value in model.weights().items()}
        run.finish(result, weights, ids)
    except BaseException:
        run.fail()
        raise
    checkpoint.unlink(missing_ok=True)
    yield from _results(group, result, data, config.seed, run, started)


def _results(
    group: ModelGroup,
    result: "TrainingResult",
    data: "RecData",
    seed: int,
    run: tracking.TrainingRun,
    started: float,
) -> Iterator[dg.MaterializeResult]:
    from model.metrics import evaluate, popularity

    means = result.test.means
    baseline = evaluate(popularity(data.train), data.train, data.test, (20,)).means["recall_at_20"]
    ours = means.get("recall_at_20", float("nan"))
    checks = {
        "better_than_popularity": Check(ours > baseline, {"recall_at_20": ours, "popularity_recall_at_20": baseline})
    }
    shown = {
        **{f"test_{name}": value for name, value in means.items()},
        "seed": seed,
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "stopped_by": result.stopped_by,
        "mlflow_run_id": run.run_id,
    }
    embeddings = np.concatenate([result.user_embeddings, result.item_embeddings])
    yield publish(Result(embeddings, shown, checks), started, group.key("trained_model").path)
    metrics = pl.DataFrame({"user": result.test.users.astype(np.int32), **result.test.per_user})
    yield publish(Result(metrics), started, group.key("user_metrics").path)


def stored_data(dataset: str, model: str) -> "RecData":
    """What a model reads of a dataset, from the store."""
    kinds = inputs_of(group_of(model))
    return rec_data(
        dataset, {name: read(stored_path(dg.AssetKey(name), dataset), kind) for name, kind in kinds.items()}
    )


def rec_data(dataset: str, inputs: dict[str, Any]) -> "RecData":
    """The dataset as models see it, from the stages' tables, embeddings and graphs.

    Features that are all zero, those of texts that say nothing, are none.
    """
    from model.base import RecData, SemanticGraphs

    shape = (inputs["users"].height, inputs["items"].height)
    splits = {
        name: interaction_matrix(pairs_of(inputs["interactions"], name), shape) for name in ("train", "valid", "test")
    }
    semantic = None
    if "semantic_graph" in inputs:
        semantic = SemanticGraphs(
            fused=inputs["semantic_graph"],
            users=inputs["user_subspace_graph"],
            items=inputs["item_subspace_graph"],
            users_to_items=inputs["user_item_subspace_graph"],
        )
    found = {field: inputs.get(name) for field, name in FEATURES.items()}
    features = {field: array for field, array in found.items() if array is not None and array.any()}
    return RecData(name=dataset, **splits, **features, semantic=semantic)


def build(name: str, data: "RecData", settings: Dataset) -> "Recommender":
    """A freshly initialised model; its settings are the dataset's `models.<name>`."""
    import torch

    from model.registry import load

    model_class = load(name)
    seed = training_config(name, settings).seed
    return model_class(model_config(name, settings), data, torch.Generator().manual_seed(seed))


def logged_settings(settings: Dataset, model: "Recommender", name: str) -> dict[str, Any]:
    """Settings as MLflow's parameters have them, apart from those of training."""
    kept = settings.model_dump(
        mode="json", exclude={"title", "description", "models", "sweep", "evidence", "published"}
    )
    return {**kept, "model": {"name": name, **model.config.model_dump(mode="json")}}


def pairs_of(interactions: pl.DataFrame, split: str) -> pl.DataFrame:
    """The (user, item) pairs of one split."""
    return interactions.filter(pl.col("split") == split).select("user", "item")


def evaluation_of(metrics: pl.DataFrame) -> "Evaluation":
    """Stored metrics of users as an `Evaluation`."""
    from model.metrics import Evaluation

    return Evaluation(metrics["user"].to_numpy(), {name: metrics[name].to_numpy() for name in metrics_of(metrics)})


def metrics_of(users: pl.DataFrame) -> list[str]:
    """Columns of stored metrics of users that are metrics: all but `seed`, `user` and `top`."""
    return [name for name in users.columns if name not in ("seed", "user", "top")]


def interaction_matrix(pairs: pl.DataFrame, shape: tuple[int, int]) -> csr_array:
    """Pairs as a binary (M, N) matrix, float32."""
    rows, columns = pairs["user"].to_numpy(), pairs["item"].to_numpy()
    return csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
