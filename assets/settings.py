"""Settings of one dataset as the assets see them: those of the data stages, of training and of each model."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import dagster as dg
from pydantic import Field

from model.config import ModelConfig, TrainingConfig
from pipeline.settings import DatasetSettings, SettingsError, dataset_files, load_settings, validate

OVERRIDES_TAG = "scale/set"


class Dataset(DatasetSettings):
    """One dataset's YAML, whole."""

    training: TrainingConfig = TrainingConfig()
    models: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Model name -> its own settings.")


@cache
def dataset_names() -> tuple[str, ...]:
    """Every known dataset; fixed for the life of the process, since Dagster's partitions are."""
    return tuple(dataset_files())


def dataset(name: str, overrides: Mapping[str, Any] | None = None) -> Dataset:
    """Settings of a dataset, read afresh; `SettingsError` names what is wrong."""
    files = dataset_files()
    if name not in files:
        raise SettingsError(f"there is no dataset {name!r}; known: {', '.join(files)} (SCALE_DATASETS adds folders)")
    return load_settings(files[name], Dataset, overrides)


def model_config(name: str, settings: Dataset) -> ModelConfig:
    """Settings of one model: its class's defaults, its registry line's preset, then the dataset's `models.<name>`."""
    from model.registry import entry, load

    return validate(load(name).Config, {**entry(name).preset, **settings.models.get(name, {})}, f"models.{name}")


def partition_of(context: dg.AssetExecutionContext) -> dict[str, str]:
    """`{"dataset": ..., "model": ...}` of the partition being materialised; no model in the data stages."""
    key = context.partition_key
    return dict(key.keys_by_dimension) if isinstance(key, dg.MultiPartitionKey) else {"dataset": key}


def settings_of(context: dg.AssetExecutionContext) -> Dataset:
    """Settings for the partition being materialised, with the run's overrides (tag `scale/set`, JSON)."""
    overrides = json.loads(context.run.tags.get(OVERRIDES_TAG, "{}"))
    return dataset(partition_of(context)["dataset"], overrides)
