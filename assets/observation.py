"""Settings go on record before anything runs by them, from the command line and from the UI alike; edits, once seen.

Dagster notices a changed version only against one that was on record when a stage ran. The content is recorded with
the version, so that a change can be told in words.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from assets.lock import dataset_lock, dataset_lock_if_free
from assets.model_groups import group_of, model_groups
from assets.settings import OVERRIDES_TAG, SUBJECT, Dataset, dataset
from assets.staleness import differences, made_datasets
from assets.versions import CONTENT, DATA_VERSION, SETTINGS, latest, model_content, settings_content, settings_key
from pipeline import fingerprint
from pipeline.profiles.prompts import TemplateError
from pipeline.settings import SettingsError

PARTITION_TAG = "dagster/partition"
CHANGES = "changes"
LOOK_SECONDS = 15


def observe_settings(instance: dg.DagsterInstance, name: str, settings: Dataset, models: Iterable[str]) -> None:
    """Record the current version of every group of a dataset's settings, and of those of some models.

    A version that is on record already is passed by; a new one is recorded with what changed.
    """
    contents = {(settings_key(group), name): settings_content(group, settings) for group in SETTINGS}
    contents |= {(group_of(each).settings_key, f"{name}|{each}"): model_content(each, settings) for each in models}
    for (key, partition), content in contents.items():
        version, before = fingerprint.settings_version(content), latest(instance, key, partition)
        if before is None or before.version != version:
            shown: dict[str, Any] = {CONTENT: dg.MetadataValue.json(dict(content))}
            if before is not None and isinstance(old := before.shown.get(CONTENT), Mapping):
                shown[CHANGES] = "; ".join(differences(old, content, key.path[-1].partition("_")[0]))
            instance.report_runless_asset_event(
                dg.AssetObservation(key, partition=partition, tags={DATA_VERSION: version}, metadata=shown)
            )


@dg.sensor(
    name="record_edits",
    minimum_interval_seconds=LOOK_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Records edits of prompts, settings files and raw files of what has been made, so that pages of stages "
    "say Unsynced. It runs nothing.",
)
def edits_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Observe the settings of every made dataset on which no run works: a run's own settings stand until it is over."""
    passed_by: list[str] = []
    for name in made_datasets(context.instance):
        with dataset_lock_if_free(name) as held:
            if not held:
                passed_by.append(f"a run is working on {name}")
                continue
            try:
                observe_settings(context.instance, name, dataset(name), _trained_models(context.instance, name))
            except (SettingsError, TemplateError) as error:  # being edited: look again later
                passed_by.append(str(error))
    return dg.SkipReason("; ".join(passed_by) or "edits are on record; this sensor starts no run")


def _trained_models(instance: dg.DagsterInstance, name: str) -> list[str]:
    """Models that have been trained on a dataset."""
    stages = [group.key(stage) for group in model_groups() for stage in ("trained_model", "replicates")]
    parts = {part.partition("|") for stage in stages for part in instance.get_materialized_partitions(stage)}
    return sorted({model for dataset, _, model in parts if dataset == name})


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
