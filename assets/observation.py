"""Settings go on record before anything runs by them, from the command line and from the UI alike.

Dagster notices a changed version only against one that was on record when a stage ran.
"""

import json
from collections.abc import Iterable

import dagster as dg

from assets.settings import OVERRIDES_TAG, Dataset, dataset
from assets.training import group_of
from assets.versions import SETTINGS, model_version, observe, settings_key, settings_version
from pipeline.settings import SettingsError

PARTITION_TAG = "dagster/partition"


def observe_settings(instance: dg.DagsterInstance, name: str, settings: Dataset, models: Iterable[str]) -> None:
    """Record the current version of every group of a dataset's settings, and of those of some models."""
    for group in SETTINGS:
        observe(instance, settings_key(group), name, settings_version(group, settings))
    for model in models:
        observe(instance, group_of(model).settings_key, f"{name}|{model}", model_version(model, settings))


@dg.resource(description="Records the version of the settings by which a run works, before its first stage.")
def settings_on_record(context: dg.InitResourceContext) -> None:
    """Observe the settings of the dataset, and of the model, whose partition the run makes."""
    if context.run is None or context.instance is None or PARTITION_TAG not in context.run.tags:
        return
    name, _, model = context.run.tags[PARTITION_TAG].partition("|")
    try:
        settings = dataset(name, json.loads(context.run.tags.get(OVERRIDES_TAG, "{}")))
    except SettingsError:
        return  # the first stage reads them too, and its failure shows the message under its own name
    observe_settings(context.instance, name, settings, [model] if model else [])
