"""What is fresh, stale or missing, and why: every version on record against what it would be now.

Dagster judges much the same way in its UI (a test holds both together). But it says neither how a setting changed nor
that a file is gone or damaged, the versions of partitioned inputs that it records leave observations out, and its
resolver is not public.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from assets import home
from assets.model_groups import group_of
from assets.nodes import AssetGraph, Node, closed, inputs_by_name
from assets.settings import SUBJECT, Dataset, dataset_names
from assets.store import (
    FILE_STATE,
    file_state,
    is_intact,
    local_path,
    remote_store,
    states_in_store,
    stored_at,
    stored_path,
)
from assets.versions import (
    CODE,
    CODE_VERSION,
    INPUTS,
    SETTINGS,
    Record,
    Records,
    model_content,
    observed_content,
    settings_content,
)
from pipeline import fingerprint
from pipeline.files import StoredFileError

EVIDENCE = ("replicates", "evidence")
REPORT = dg.AssetKey("report")
NEVER = "never materialised"
SHOWN_CHANGES = 4
SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class State:
    """How a node stands.

    Attributes
    ----------
    status
        `missing` also where a file is gone or damaged: what stands on it cannot run before it is made again.
    reasons
        Why it is not fresh.
    record
        Its newest materialisation.
    unsent
        Its file, where this machine has it and the store behind a URL may lack it.
    """

    status: Literal["fresh", "stale", "missing"]
    reasons: tuple[str, ...] = ()
    record: Record | None = None
    unsent: Path | None = None


def wanted(graph: AssetGraph, dataset: str, models: Iterable[str]) -> list[Node]:
    """The models' recommendations, all that these stand on, and what is computed together with that."""
    return closed(graph, [Node(group_of(m).key("recommendations"), f"{dataset}|{m}") for m in models])


def inputs(graph: AssetGraph, dataset: str, models: Iterable[str]) -> list[Node]:
    """What the models' trainings read, and all that it stands on."""
    read = {key for model in models for key in graph[group_of(model).key("trained_model")].parents}
    return closed(graph, [Node(key, dataset) for key in sorted(read) if graph[key].made])


def evidence(graph: AssetGraph, dataset: str, models: Iterable[str]) -> list[Node]:
    """The report with every table in it, trainings of the models with several seeds, and all that these stand on."""
    chosen = list(models)
    tables = [key for key, asset in graph.items() if asset.made and asset.group == "evidence"]
    kept = [key for key in tables if SUBJECT in chosen or graph[key].whatever_there_is]
    seeds = [Node(group_of(model).key("replicates"), f"{dataset}|{model}") for model in chosen]
    return closed(graph, [*seeds, *(Node(key, dataset) for key in kept)])


def materialised(graph: AssetGraph, instance: dg.DagsterInstance, dataset: str) -> list[Node]:
    """Every node of a dataset that has ever been made, all that these stand on, and what is computed with that.

    Evidence is left out: an edit would repeat hundreds of trainings, so it comes when it is asked for.
    """
    stages = [key for key, asset in graph.items() if asset.made and asset.group not in EVIDENCE]
    records = Records(instance, stages)
    made = [Node(key, dataset) for key in stages if not graph[key].models and records.latest(key, dataset)]
    made += [
        Node(key, partition)
        for key in stages
        if graph[key].models
        for partition in records.partitions(key)
        if partition.partition("|")[0] == dataset
    ]
    return closed(graph, made)


def made_datasets(instance: dg.DagsterInstance) -> list[str]:
    """Datasets of which something has been made."""
    return sorted(instance.get_materialized_partitions(dg.AssetKey("raw_reviews")) & set(dataset_names()))


def survey(
    instance: dg.DagsterInstance, graph: AssetGraph, nodes: Iterable[Node], settings: Dataset
) -> dict[Node, State]:
    """State of every node, in the order given. Reads records and file times; changes nothing."""
    look = _Look(instance, graph, settings)
    return {node: look.state(node) for node in nodes}


class _Look:
    """One look at the records; each is read once."""

    def __init__(self, instance: dg.DagsterInstance, graph: AssetGraph, settings: Dataset) -> None:
        self.instance, self.graph, self.settings = instance, graph, settings
        self._records = Records(instance, [key for key, asset in graph.items() if asset.made])
        self._contents: dict[Node, dict[str, Any] | None] = {}
        self._in_store = states_in_store()

    def state(self, node: Node) -> State:
        record = self._records.latest(node.key, node.partition)
        if record is None:
            return State("missing", (NEVER,))
        if problem := self._file_problem(node, record):
            return State("missing", (problem,), record)
        reasons = [*self._code_changes(node, record), *self._input_changes(node, record)]
        path = local_path(node.key, node.partition)
        unsent = path if remote_store() and path not in self._in_store else None
        return State("stale" if reasons else "fresh", tuple(reasons), record, unsent)

    def _file_problem(self, node: Node, record: Record) -> str | None:
        """Why a file is not what is on record; None where it is."""
        if node.key == REPORT and not (page := home.report_folder(node.partition) / "report.html").exists():
            return f"its page is gone ({page})"
        path, on_record = local_path(node.key, node.partition), record.shown.get(FILE_STATE)
        if on_record and self._in_store.get(path) == on_record:
            return None  # a store behind a URL: no copy is needed to tell
        try:
            stored_path(node.key, node.partition)
        except StoredFileError as error:
            return str(error)
        if not path.exists():
            return f"its file is gone ({stored_at(path)})"
        if on_record != file_state(path) and not is_intact(path, record.version):
            return f"its file was damaged or changed by hand ({path})"
        return None

    def _code_changes(self, node: Node, record: Record) -> Iterator[str]:
        asset = self.graph[node.key]
        if record.tags.get(CODE_VERSION) == asset.code_version:
            return
        before, now = record.shown.get(CODE, {}), asset.code
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        yield f"edited code: {_some(changed)}"

    def _input_changes(self, node: Node, record: Record) -> Iterator[str]:
        above = inputs_by_name(self.graph, node)
        before: Mapping[str, str] = record.shown.get(INPUTS, {})
        yield from (f"no longer reads {name}" for name in sorted(before.keys() - above.keys()))
        for name, parent in above.items():
            content = self._content(parent)
            if content is None:
                above_record = self._records.latest(parent.key, parent.partition)
                if above_record is not None and above_record.version != before.get(name):
                    yield f"{name} changed" if name in before else f"now reads {name}"
            elif fingerprint.settings_version(content) != before.get(name):
                yield from self._setting_changes(parent, before.get(name), content)

    def _content(self, node: Node) -> dict[str, Any] | None:
        """What an external asset holds now; None for a stage."""
        if node not in self._contents:
            self._contents[node] = self._read(node)
        return self._contents[node]

    def _read(self, node: Node) -> dict[str, Any] | None:
        if self.graph[node.key].made:
            return None
        group, model = node.key.path[-1], node.partition.partition("|")[2]
        return settings_content(group, self.settings) if group in SETTINGS else model_content(model, self.settings)

    def _setting_changes(self, node: Node, before: str | None, now: dict[str, Any]) -> Iterator[str]:
        old = observed_content(self.instance, node.key, node.partition, before) if before else None
        if old is None:
            yield f"settings {node.key.path[-1]} changed"
            return
        changes = list(differences(old, now, node.key.path[-1].partition("_")[0]))
        yield from changes[:SHOWN_CHANGES]
        if len(changes) > SHOWN_CHANGES:
            yield f"and {len(changes) - SHOWN_CHANGES} more settings"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], kind: str = "") -> Iterator[str]:
    """What changed between two contents of a group of settings, a line each: `subspace.sparsity: 10 -> 4`.

    Parameters
    ----------
    kind
        `item` or `user`: whose prompt a prompt is.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    for place in sorted(before.keys() | after.keys()):
        was, now = before.get(place), after.get(place)
        if was == now:
            continue
        if place[0] == "code":
            yield f"edited code: {place[-1]}"
        elif place[0] == "files":
            yield f"file {place[-1]}: {was or 'none'} -> {now or 'none'}"
        elif place == ("prompt",) and isinstance(was, str) and isinstance(now, str):
            yield f"{kind} prompt edited: {_first_difference(was, now)}"
        else:
            yield f"{'.'.join(place)}: {_short(was)} -> {_short(now)}"


def _flat(content: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, (*above, name))
        else:
            yield (*above, name), value


def _first_difference(old: str, new: str) -> str:
    before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    changes = [c for c in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if c[0] != "equal"]
    _, start, end, new_start, new_end = changes[0]
    was, now = "".join(before[start:end]).strip("\n"), "".join(after[new_start:new_end]).strip("\n")
    more = f", and {len(changes) - 1} more places" if len(changes) > 1 else ""
    return f"{_short(was)} -> {_short(now)}{more}"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN_CHANGES]) or "of the stage"
    return shown if len(names) <= SHOWN_CHANGES else f"{shown} and {len(names) - SHOWN_CHANGES} more"
