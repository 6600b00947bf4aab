"""Partitions of the assets: datasets, and dataset x model for what is trained."""

import dagster as dg

from assets.settings import dataset_names

DATASETS = dg.StaticPartitionsDefinition(dataset_names())


def by_dataset_and_model(models: list[str]) -> dg.MultiPartitionsDefinition:
    """One partition for each dataset and each of `models`."""
    return dg.MultiPartitionsDefinition({"dataset": DATASETS, "model": dg.StaticPartitionsDefinition(models)})
