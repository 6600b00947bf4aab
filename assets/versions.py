"""Versions of code and settings: what a stage's result depends on besides its inputs.

Code versions are fixed at import. Settings differ by dataset, and Dagster's code version is per asset, not per
partition: so each group of settings is an external asset, observed with a data version per partition.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from assets.home import PROJECT
from assets.partitions import DATASETS
from assets.settings import Dataset
from model.registry import MODELS
from pipeline import fingerprint
from pipeline.settings import EmbeddingSettings, ProfileSettings

DATA_VERSION = "dagster/data_version"
INPUT_VERSION = "dagster/input_data_version/"

# Settings count by value, and storage and hashing do not change what is stored.
NOT_COUNTED = {"pipeline.settings", "pipeline.parquet", "pipeline.fingerprint", "pipeline.row_cache"}


# ---------------------------------------------------------------------------------------------------- code


def code_of(*modules: str, function: Callable[..., Any] | None = None) -> str:
    """Code version of `modules`, everything of this project that they import, and the body of `function`."""
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in reached and name not in NOT_COUNTED:
            reached.add(name)
            waiting += _imports(name)
    versions = {name: _module_version(name) for name in reached}
    return fingerprint.settings_version(versions, fingerprint.code_version(_body(function)) if function else "")


def package(name: str) -> list[str]:
    """Every module of a package, for one that imports its modules by name when they are needed."""
    return [name, *(f"{name}.{path.stem}" for path in sorted(_source(name).parent.glob("*.py")) if path.stem[0] != "_")]


@cache
def _module_version(module: str) -> str:
    """Version of a module's code; for a package, of the data files beside it too."""
    source = _source(module)
    data = sorted(source.parent.glob("*.yaml")) if source.stem == "__init__" else []
    texts = {path.name: path.read_text(encoding="utf-8") for path in data}
    return fingerprint.settings_version(texts, fingerprint.code_version(source.read_text(encoding="utf-8")))


@cache
def _imports(module: str) -> list[str]:
    """Modules of the lower rooms that a module imports, anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_source(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted(name for name in found if name.split(".")[0] in ("pipeline", "model") and _is_module(name))


def _is_module(name: str) -> bool:
    path = PROJECT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _source(module: str) -> Path:
    path = PROJECT.joinpath(*module.split("."))
    if not _is_module(module):
        raise ValueError(f"{module} is not a module of this project")
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def _body(function: Callable[..., Any]) -> str:
    """Source of a function without its decorators, which say how it is shown, not what it computes."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    return ast.unparse(tree)


# ------------------------------------------------------------------------------------------------ settings


def _source_state(settings: Dataset) -> list[Any]:
    """The source's settings, and size and time of its local files: a changed file is a changed version."""
    files = [value for value in settings.source.model_dump().values() if isinstance(value, dict) and value.get("path")]
    states = [(file["path"], stat.st_size, stat.st_mtime_ns) for file in files for stat in _stat(Path(file["path"]))]
    return [settings.source.model_dump(), settings.raw.model_dump(), states]


def _stat(path: Path) -> list[Any]:
    if path.is_dir():
        return [file.stat() for file in sorted(path.rglob("*")) if file.is_file()]
    return [path.stat()] if path.exists() else []


def _profiles(settings: ProfileSettings, prompt: str, kind: Literal["item", "user"]) -> Any:
    if settings.backend != "openai":
        return settings.model_dump(include={"backend", "history", "prompt_words"})
    from pipeline.profiles import load_template

    kept = settings.model_dump(include={"backend", "history", "prompt_words", "openai"})
    for name in ("base_url", "api_key_variable", "concurrency", "timeout_seconds", "attempts"):
        del kept["openai"][name]  # how the answer is fetched, not what it is
    return [kept, load_template(prompt, kind).text]


def _embeddings(settings: EmbeddingSettings) -> Any:
    if settings.encoder == "lsa":
        return settings.model_dump(include={"encoder", "dimensions"})
    return settings.model_dump(exclude={"dimensions", "batch_size", "device"})


SETTINGS: dict[str, Callable[[Dataset], Any]] = {
    "source": _source_state,
    "interactions": lambda settings: settings.interactions,
    "item_profiles": lambda settings: _profiles(settings.profiles, settings.profiles.item_prompt, "item"),
    "user_profiles": lambda settings: _profiles(settings.profiles, settings.profiles.user_prompt, "user"),
    "embeddings": lambda settings: _embeddings(settings.embeddings),
    "similarity": lambda settings: settings.similarity,
    "subspace": lambda settings: settings.subspace,
    "fusion": lambda settings: settings.fusion,
}


def settings_key(group: str) -> dg.AssetKey:
    """Key of the external asset that stands for a group of settings."""
    return dg.AssetKey(["settings", group])


def settings_spec(key: dg.AssetKey, partitions: dg.PartitionsDefinition = DATASETS) -> dg.AssetSpec:
    """External asset of a group of settings, or of the settings and code of a group of models."""
    return dg.AssetSpec(key, partitions_def=partitions, group_name="settings", kinds={"yaml"})


def settings_version(group: str, settings: Dataset) -> str:
    """Data version of a group of settings of one dataset."""
    return fingerprint.settings_version(SETTINGS[group](settings))


def model_version(model: str, settings: Dataset) -> str:
    """Data version of what one model's training depends on besides data: its settings, training's, its code."""
    training = settings.training.model_dump(exclude={"threads", "device", "checkpoint_every"})
    module = MODELS[model].path.split(":")[0]
    return fingerprint.settings_version(
        {"training": training, "model": settings.models.get(model, {})}, code_of(module)
    )


def observe(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str, version: str) -> None:
    """Record the version of an external asset's partition, unless it is the one on record."""
    if recorded_version(instance, key, partition) != version:
        tags = {DATA_VERSION: version}
        instance.report_runless_asset_event(dg.AssetObservation(key, partition=partition, tags=tags))


def recorded_version(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> str | None:
    """Data version of the newest materialisation, or observation, of an asset partition."""
    return _tags(instance, key, partition).get(DATA_VERSION)


def lineage(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey], partitions: Sequence[str]) -> dict[str, str]:
    """Versions of `keys` and of everything that they were made from, as recorded: asset name -> data version.

    Parameters
    ----------
    partitions
        Where to look for each asset: the first of these partitions that has a record.
    """
    versions: dict[str, str] = {}
    waiting = list(keys)
    while waiting:
        key = waiting.pop()
        if key.to_user_string() in versions:
            continue
        tags = next((found for part in partitions if (found := _tags(instance, key, part))), {})
        if DATA_VERSION not in tags:
            continue
        versions[key.to_user_string()] = tags[DATA_VERSION]
        inputs = [name.removeprefix(INPUT_VERSION) for name in tags if name.startswith(INPUT_VERSION)]
        waiting += [dg.AssetKey.from_user_string(name) for name in inputs]
    return dict(sorted(versions.items()))


def _tags(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> Mapping[str, str]:
    where = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        records = fetch(where, limit=1).records
        if records:
            event = records[0].asset_materialization or records[0].asset_observation
            return (event.tags if event else None) or {}
    return {}
