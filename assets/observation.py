"""Settings go on record before anything runs by them, from the command line and from the UI alike.

Dagster notices a changed version only against one that was on record when a stage ran. The content is recorded with
the version, so that a change can be told in words.
"""

import json
from collections.abc import Iterable, Iterator

import dagster as dg

from assets.lock import dataset_lock
from assets.model_groups import group_of
from assets.settings import OVERRIDES_TAG, SUBJECT, Dataset, dataset
from assets.versions import SETTINGS, model_content, observe, settings_content, settings_key
from pipeline.profiles.prompts import TemplateError
from pipeline.settings import SettingsError

PARTITION_TAG = "dagster/partition"


def observe_settings(instance: dg.DagsterInstance, name: str, settings: Dataset, models: Iterable[str]) -> None:
    """Record the current version of every group of a dataset's settings, and of those of some models."""
    for group in SETTINGS:
        observe(instance, settings_key(group), name, settings_content(group, settings))
    for model in models:
        observe(instance, group_of(model).settings_key, f"{name}|{model}", model_content(model, settings))


@dg.resource(description="Locks the dataset and records the settings by which a run works, before its first stage.")
def settings_on_record(context: dg.InitResourceContext) -> Iterator[None]:
    """Observe the settings of the dataset, and of the model, whose partition the run makes; no other run meanwhile."""
    if context.run is None or context.instance is None or PARTITION_TAG not in context.run.tags:
        yield
        return
    name, _, model = context.run.tags[PARTITION_TAG].partition("|")
    with dataset_lock(name, lambda text: context.log.info(text) if context.log else None):
        try:
            settings = dataset(name, json.loads(context.run.tags.get(OVERRIDES_TAG, "{}")))
            observe_settings(context.instance, name, settings, [model or SUBJECT])
        except (SettingsError, TemplateError):
            pass  # the first stage reads them too, and its failure shows the message under its own name
        yield
