"""Versions of code and settings: what a stage's result depends on besides its inputs.

Code versions are fixed at import. Settings differ by dataset, and Dagster's code version is per asset, not per
partition: so each group of settings is an external asset, observed with a data version per partition.
"""

import ast
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import dagster as dg

from assets.home import PROJECT
from assets.kept import kept
from assets.partitions import DATASETS
from assets.settings import Dataset, training_config
from model.registry import MODELS
from pipeline import fingerprint
from pipeline.settings import EmbeddingSettings, ProfileSettings, local_folder

DATA_VERSION = "dagster/data_version"
CODE_VERSION = "dagster/code_version"
INPUT_VERSION = "dagster/input_data_version/"
CONTENT = "content"
CODE = "code"
INPUTS = "inputs"

# Settings count by value, a model by its own file, and storage, hashing and where work is done do not change what is
# stored.
NOT_COUNTED = {
    "pipeline.settings",
    "pipeline.compute",
    "pipeline.parquet",
    "pipeline.files",
    "pipeline.content",
    "pipeline.fingerprint",
    "pipeline.row_cache",
    "model.registry",
}


# ---------------------------------------------------------------------------------------------------- code


# Code version -> what it is made of: module, or function of this room -> version.
_CODE_PARTS: dict[str, dict[str, str]] = {}
_SHOWN_DIGITS = 12

# How a look at a module is taken, and by which Python: one that was taken otherwise does not count.
_LOOK = fingerprint.settings_version(
    [sys.version, *(Path(file).read_text() for file in (__file__, fingerprint.__file__))]
)

# How results are shown, stored and logged changes no result.
PLUMBING = {
    f"assets.{name}"
    for name in (
        "failures",
        "home",
        "kept",
        "partitions",
        "plots",
        "progress",
        "reporting.picture",
        "settings",
        "stage",
        "storage",
        "store",
        "tracking",
        "versions",
        "workers",
    )
}


def code_of(*modules: str, function: Callable[..., Any]) -> str:
    """Code version of a stage's function with what it uses of this room, of `modules`, and of all that these import."""
    parts = _own_code(function.__module__, function.__qualname__) | _modules(*modules)
    version = fingerprint.settings_version(parts)
    _CODE_PARTS[version] = {name: part[:_SHOWN_DIGITS] for name, part in sorted(parts.items())}
    return version


def code_parts(version: str | None) -> dict[str, str]:
    """What a code version of this process is made of: module -> version."""
    return _CODE_PARTS.get(version or "", {})


def _modules(*modules: str) -> dict[str, str]:
    """Version of each of `modules` and of everything of this project that they import."""
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in reached and name not in NOT_COUNTED:
            reached.add(name)
            waiting += _imports(name)
    return {name: _module_version(name) for name in sorted(reached)}


def modules_version(*modules: str) -> str:
    """Version of modules and of everything of this project that they import."""
    return fingerprint.settings_version(_modules(*modules))


def package(name: str) -> list[str]:
    """Every module of a package, for one that imports its modules by name when they are needed."""
    return [name, *(f"{name}.{path.stem}" for path in sorted(_source(name).parent.glob("*.py")) if path.stem[0] != "_")]


@cache
def _module_version(module: str) -> str:
    """Version of a module's code; for a package, of the data files beside it too."""
    source = _source(module)
    data = sorted((*source.parent.glob("*.yaml"), *source.parent.glob("*.j2"))) if source.stem == "__init__" else []
    texts = {path.name: path.read_text(encoding="utf-8") for path in data}
    return fingerprint.settings_version(texts, _looked_at(module).version)


@cache
def _imports(module: str) -> list[str]:
    """Modules of the lower rooms that a module imports, anywhere in its text."""
    return [name for name in _looked_at(module).imports if _is_module(name)]


def _is_module(name: str) -> bool:
    path = PROJECT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _source(module: str) -> Path:
    path = PROJECT.joinpath(*module.split("."))
    if not _is_module(module):
        raise ValueError(f"{module} is not a module of this project")
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def _own_code(module: str, function: str) -> dict[str, str]:
    """Versions of a function and of the functions, classes and constants of this room that it uses, by name."""
    found: dict[str, str] = {}
    waiting = [(module, function)]
    while waiting:
        module, name = waiting.pop()
        looked = _looked_at(module)
        if (source := looked.sources.get(name, "")).startswith("assets.") and source not in PLUMBING:
            waiting.append((source, name))
        if name in looked.definitions and f"{module}.{name}" not in found:
            found[f"{module}.{name}"] = looked.definitions[name]
            waiting += [(module, used) for used in looked.uses[name]]
    return found


class _Module(NamedTuple):
    """What one look at a module's text finds.

    version
        Of its code.
    imports
        All that it may import of the lower rooms: modules, and names in them.
    definitions, uses
        Of a module of this room, name -> version of what it defines under it, and the names that this uses.
    sources
        Name -> the module that it is imported from at the top level.
    """

    version: str
    imports: list[str]
    definitions: dict[str, str]
    uses: dict[str, list[str]]
    sources: dict[str, str]


@cache
def _looked_at(module: str) -> _Module:
    """A look at a module; what the last one found is kept while its text and Python stay the same.

    To parse the whole project takes as long as half of all else that a short command does.
    """
    text = _source(module).read_text(encoding="utf-8")
    state = fingerprint.settings_version([_LOOK, text])
    looked: _Module = kept(
        module,
        lambda: state,
        lambda: _look(text, module.startswith("assets."))._asdict(),
        lambda found: _Module(**found),
    )
    return looked


def _look(text: str, in_this_room: bool) -> _Module:
    imports: set[str] = set()
    definitions: dict[str, str] = {}
    uses: dict[str, list[str]] = {}
    sources: dict[str, str] = {}
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for node in tree.body if in_this_room else ():
        if isinstance(node, ast.ImportFrom):
            sources |= {alias.asname or alias.name: node.module or "" for alias in node.names}
            continue
        names: list[str] = []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
            node.decorator_list = []  # they say how it is shown, not what it computes
        for name in names:
            definitions[name] = fingerprint.code_version(ast.unparse(node))
            inputs = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
            uses[name] = sorted({each.id for each in ast.walk(node) if isinstance(each, ast.Name)} - inputs)
    below = sorted(name for name in imports if name.split(".")[0] in ("pipeline", "model"))
    return _Module(fingerprint.code_version(text), below, definitions, uses, sources)


# ------------------------------------------------------------------------------------------------ settings


def _source_files(settings: Dataset) -> dict[str, Any]:
    """The source's settings, and size and time of its local files: a changed file is a changed version."""
    source = settings.source.model_dump(mode="json")
    files: dict[str, dict[str, str]] = {}
    for name, value in source.items():
        if isinstance(value, dict) and value.get("path"):
            path = Path(value["path"])
            files[name] = fingerprint.file_states(path)
            value["path"] = path.name  # where the folder lies makes no difference
    return {"source": source, "raw": settings.raw.model_dump(mode="json"), "files": files}


def _profiles(settings: ProfileSettings, prompt: str, kind: Literal["item", "user"]) -> dict[str, Any]:
    """What a profile depends on: not how answers are fetched, nor how often that is tried."""
    counted = {"backend", "history"} if kind == "user" else {"backend"}
    if settings.backend == "extractive":
        return {"profiles": settings.model_dump(include=counted)}
    counted.add("prompt_words" if settings.tokenizer is None else "prompt_tokens")
    if settings.backend in ("given", "metadata"):
        return {"profiles": settings.model_dump(include=counted)}
    from pipeline.profiles.prompts import load_template

    kept = settings.model_dump(include=counted | {"model"})
    del kept["model"]["attempts"]
    files = {"model": _model_files(settings.model.name), "tokenizer": _model_files(settings.tokenizer)}
    return {"profiles": kept, "files": files, "prompt": load_template(prompt, kind).text}


def _embeddings(settings: EmbeddingSettings) -> dict[str, Any]:
    """The encoder's settings, and the state of a local model's files: a changed file is a changed version."""
    if settings.encoder == "lsa":
        return {"embeddings": settings.model_dump(include={"encoder", "dimensions"})}
    kept = settings.model_dump(exclude={"dimensions", "batch_size", "device"})
    return {"embeddings": kept, "files": _model_files(settings.model)}


def _model_files(name: str | None) -> dict[str, str]:
    """State of a local model's files; a hub model is known by its name and revision."""
    folder = local_folder(name) if name else None
    return fingerprint.file_states(folder) if folder else {}


def _group(name: str) -> Callable[[Dataset], dict[str, Any]]:
    return lambda settings: {name: getattr(settings, name).model_dump(mode="json")}


# What each group of stages reads of a dataset's settings, nested as in the YAML file.
SETTINGS: dict[str, Callable[[Dataset], dict[str, Any]]] = {
    "source": _source_files,
    "interactions": _group("interactions"),
    "item_profiles": lambda settings: _profiles(settings.profiles, settings.profiles.item_prompt, "item"),
    "user_profiles": lambda settings: _profiles(settings.profiles, settings.profiles.user_prompt, "user"),
    "embeddings": lambda settings: _embeddings(settings.embeddings),
    "similarity": _group("similarity"),
    # What is not set is the default: one more setting makes no graph stale.
    "subspace": lambda settings: {"subspace": settings.subspace.model_dump(mode="json", exclude_none=True)},
    "index": _group("index"),
    "fusion": _group("fusion"),
    "evidence": lambda settings: {"evidence": settings.evidence.model_dump(include={"seeds"})},
    "sensitivity": lambda settings: {
        "evidence": settings.evidence.model_dump(include={"sensitivity", "sensitivity_seeds"})
    },
}


def settings_key(group: str) -> dg.AssetKey:
    """Key of the external asset that stands for a group of settings."""
    return dg.AssetKey(["settings", group])


def settings_spec(key: dg.AssetKey, partitions: dg.PartitionsDefinition = DATASETS) -> dg.AssetSpec:
    """External asset of a group of settings, or of the settings and code of a group of models."""
    return dg.AssetSpec(key, partitions_def=partitions, group_name="settings", kinds={"yaml"})


def settings_content(group: str, settings: Dataset) -> dict[str, Any]:
    """What a group of stages reads of one dataset's settings, nested as in the YAML file."""
    return SETTINGS[group](settings)


def model_content(model: str, settings: Dataset) -> dict[str, Any]:
    """What one model's training depends on besides data: its settings, training's, its code."""
    chosen = {**MODELS[model].preset, **settings.models.get(model, {})}
    return {
        "training": training_config(model, settings).model_dump(
            mode="json", exclude={"threads", "device", "checkpoint_every"}
        ),
        "models": {model: {key: value for key, value in chosen.items() if key != "training"}},
        "code": _modules(MODELS[model].path.split(":")[0]),
    }


def observed_content(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str, version: str
) -> dict[str, Any] | None:
    """What an external asset held when it was observed with `version`; None where that is not on record."""
    where = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    cursor, more = None, True
    while more:
        found = instance.fetch_observations(where, limit=100, cursor=cursor)
        for record in found.records:
            event = record.asset_observation
            if event is not None and (event.tags or {}).get(DATA_VERSION) == version and CONTENT in event.metadata:
                return dict(event.metadata[CONTENT].value)  # type: ignore[arg-type]
        cursor, more = found.cursor, found.has_more
    return None


# ----------------------------------------------------------------------------------------------- on record


@dataclass(frozen=True)
class Record:
    """The newest materialisation, or observation, of an asset partition.

    Attributes
    ----------
    tags
        Dagster's: versions of data, code and inputs.
    shown
        Metadata by name, as plain values.
    made_at
        Seconds since 1970.
    """

    tags: Mapping[str, str]
    shown: Mapping[str, Any]
    made_at: float

    @property
    def version(self) -> str | None:
        """Data version."""
        return self.tags.get(DATA_VERSION)


def latest(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> Record | None:
    """The newest materialisation of an asset partition, or observation of an external one."""
    where = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        for found in fetch(where, limit=1).records:
            if record := _record(found):
                return record
    return None


def _record(found: dg.EventLogRecord) -> Record | None:
    event = found.asset_materialization or found.asset_observation
    if event is None:
        return None
    shown = {name: value.value for name, value in event.metadata.items()}
    return Record(event.tags or {}, shown, found.timestamp)


class Records:
    """The newest materialisations of stages, each read once.

    Of every stage the newest of all its partitions comes with one query; most often it is the one that is asked for.
    """

    def __init__(self, instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey]) -> None:
        self._instance = instance
        self._made: set[dg.AssetKey] = set()
        self._found: dict[tuple[dg.AssetKey, str], Record | None] = {}
        for asset in instance.get_asset_records(keys):
            newest = asset.asset_entry.last_materialization_record
            if newest is not None:
                self._made.add(asset.asset_entry.asset_key)
                if newest.partition_key is not None:
                    self._found[asset.asset_entry.asset_key, newest.partition_key] = _record(newest)

    def latest(self, key: dg.AssetKey, partition: str) -> Record | None:
        """The newest materialisation of one partition."""
        if key not in self._made:
            return None
        if (key, partition) not in self._found:
            self._found[key, partition] = latest(self._instance, key, partition)
        return self._found[key, partition]

    def partitions(self, key: dg.AssetKey) -> set[str]:
        """Every partition that has been made."""
        return self._instance.get_materialized_partitions(key) if key in self._made else set()


def recorded_version(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> str | None:
    """Data version of the newest materialisation, or observation, of an asset partition."""
    record = latest(instance, key, partition)
    return record.version if record else None


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
        record = next((found for part in partitions if (found := latest(instance, key, part))), None)
        if record is None or record.version is None:
            continue
        versions[key.to_user_string()] = record.version
        inputs = [name.removeprefix(INPUT_VERSION) for name in record.tags if name.startswith(INPUT_VERSION)]
        waiting += [dg.AssetKey.from_user_string(name) for name in inputs]
    return dict(sorted(versions.items()))
