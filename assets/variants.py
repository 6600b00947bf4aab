"""What models read under other settings than the dataset's own: only stages whose result may differ run, apart.

Their results lie under `variants/`, each under a name made of all that it depends on, so that nothing is computed twice
and no result of the dataset itself is touched.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from assets import home
from assets.failures import StageError, failed
from assets.nodes import AssetGraph, Node, closed, graph_of, parents
from assets.settings import OVERRIDES_TAG, VARIANT_TAG, Dataset, dataset
from assets.storage import read, write
from assets.store import local_path, stored_path
from assets.versions import SETTINGS, latest, settings_content
from pipeline import fingerprint, parquet


@dataclass(frozen=True)
class Stored:
    """A stage's result: its file and its data version."""

    path: Path
    version: str


def stored(instance: dg.DagsterInstance, name: str, assets: Iterable[str]) -> dict[str, Stored]:
    """A dataset's own results, by asset.

    Raises
    ------
    StageError
        One of them has not been made yet.
    """
    return {asset: _here(name, key, _own(instance, name, key)) for asset in assets for key in [dg.AssetKey(asset)]}


def varied(
    instance: dg.DagsterInstance,
    name: str,
    base: Mapping[str, Any],
    variant: Mapping[str, Any],
    assets: Iterable[str],
) -> dict[str, Stored]:
    """Results of a dataset with a variant's settings, by asset; what is missing is made.

    A stage runs apart if a setting that it reads is another one, or the content of something above it.

    Parameters
    ----------
    base, variant
        Settings by dotted key: those with which the dataset's own results were made, and those on top of them.

    Raises
    ------
    StageError
        A stage fails with these settings.
    """
    _, graph, _ = _pipeline()
    wanted = [dg.AssetKey(asset) for asset in assets]
    keys = [node.key for node in closed(graph, [Node(key, name) for key in wanted])]
    own = {key: _own(instance, name, key) for key in keys}
    overrides = {**base, **variant}
    before, now = (_contents(dataset(name, settings)) for settings in (base, overrides))
    changed = {group for group in now if now[group] != before[group]}
    found: dict[dg.AssetKey, Stored] = {}
    for key in keys:
        if key in found:
            continue
        together = graph[key].together
        parents_here = sorted({parent.key for mate in together for parent in parents(graph, Node(mate, name))})
        read_here = {parent: found[parent] for parent in parents_here if parent in found}
        groups = {parent.path[-1] for parent in parents_here if parent not in found}
        if not groups & changed and all(result == own[parent] for parent, result in read_here.items()):
            found |= {mate: own[mate] for mate in together}
            continue
        contents = {group: now[group] for group in sorted(groups)}
        versions = {parent.to_user_string(): result.version for parent, result in read_here.items()}
        identity = fingerprint.settings_version([graph[key].code_version, contents, versions])
        folder = home.variants_folder(name)
        paths = {mate: folder.joinpath(*mate.path, f"{identity}.parquet") for mate in together}
        if not all(path.exists() for path in paths.values()):
            read_from = {parent: _here(name, parent, result).path for parent, result in read_here.items()}
            _run(name, overrides, paths, read_from)
        made = {mate: Stored(path, parquet.stored_version(path)) for mate, path in paths.items()}
        # The same content as the dataset's own: what stands on it need not run.
        found |= {mate: own[mate] if own[mate].version == result.version else result for mate, result in made.items()}
    return {asset: _here(name, key, found[key]) for asset in assets for key in [dg.AssetKey(asset)]}


def _contents(settings: Dataset) -> dict[str, dict[str, Any]]:
    """What every group of stages reads of the settings."""
    return {group: settings_content(group, settings) for group in SETTINGS}


@cache
def _pipeline() -> tuple[dg.JobDefinition, AssetGraph, "_Files"]:
    """The job of all stages, their graph, and where the job keeps results."""
    from assets.progress import Progress
    from assets.stages import stages  # they, in turn, use variants

    files = _Files()
    defs = stages(Progress(), files)
    return defs.resolve_implicit_global_asset_job_def(), graph_of(defs.resolve_asset_graph()), files


def _own(instance: dg.DagsterInstance, name: str, key: dg.AssetKey) -> Stored:
    record = latest(instance, key, name)
    if record is None or record.version is None:
        raise StageError(f"{key.to_user_string()} has not been made for {name} yet; start with: scale report -d {name}")
    return Stored(local_path(key, name), record.version)


def _here(name: str, key: dg.AssetKey, result: Stored) -> Stored:
    """A result whose file can be read: one of the dataset's own is fetched from a store behind a URL."""
    own = result.path == local_path(key, name)
    return Stored(stored_path(key, name), result.version) if own else result


def _run(
    name: str,
    overrides: Mapping[str, Any],
    outputs: Mapping[dg.AssetKey, Path],
    inputs: Mapping[dg.AssetKey, Path],
) -> None:
    """Run one stage, from and to given files; nothing of it goes on record."""
    job, _, files = _pipeline()
    files.paths = {**inputs, **outputs}
    with dg.DagsterInstance.ephemeral() as apart:
        result = job.execute_in_process(
            instance=apart,
            partition_key=name,
            asset_selection=list(outputs),
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={OVERRIDES_TAG: json.dumps(dict(overrides)), VARIANT_TAG: "true"},
            raise_on_error=False,
        )
        if not result.success:
            raise failed(result.all_events)


class _Files(dg.IOManager):
    """Keeps each asset in the file that is named for it."""

    def __init__(self) -> None:
        self.paths: Mapping[dg.AssetKey, Path] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        path = self.paths[context.asset_key]
        path.parent.mkdir(parents=True, exist_ok=True)
        write(obj, path)

    def load_input(self, context: dg.InputContext) -> Any:
        return read(self.paths[context.asset_key], context.dagster_type.typing_type)
