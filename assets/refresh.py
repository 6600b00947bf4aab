"""Bring what is stale up to date, in waves.

After an edit the stage below it is stale; what hangs on that stage is stale only once it has run with a new result. So:
look, run what is stale, look again. A stage whose result did not change stops the wave.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import dagster as dg

from assets.failures import StageError, failed
from assets.kept_graph import asset_graph
from assets.lock import dataset_lock
from assets.nodes import Node, graph_of, parents
from assets.progress import Progress
from assets.settings import OVERRIDES_TAG, Dataset, dataset
from assets.staleness import State, evidence, inputs, materialised, survey, wanted
from assets.store import send
from assets.versions import Record, latest

TOGETHER = "computed together with a stale table"


@dataclass(frozen=True)
class Ran:
    """One node that ran.

    Attributes
    ----------
    why
        What had made it stale.
    changed
        Whether its content is another than before.
    shown
        The metadata that it left: seconds, rows, `rows_computed` and `rows_reused` where it works by row.
    """

    node: Node
    why: str
    changed: bool
    shown: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a refresh would do as things stand.

    Attributes
    ----------
    states
        Every node it looks after, in dependency order.
    surely
        Nodes that run whatever comes of those above them, with the reason.
    perhaps
        Nodes that run unless everything above them comes out unchanged.
    """

    states: Mapping[Node, State]
    surely: Mapping[Node, str]
    perhaps: list[Node]


@dataclass
class Report:
    """What a refresh did.

    Attributes
    ----------
    ran
        In order.
    cut_off
        Nodes that did not run although something above them did -> the nodes above whose result came out unchanged.
    untouched
        Nodes with nothing stale above them.
    seconds
        From start to end.
    seconds_saved
        What the nodes that did not run took when they last ran.
    """

    ran: list[Ran] = field(default_factory=list)
    cut_off: dict[Node, list[Node]] = field(default_factory=dict)
    untouched: list[Node] = field(default_factory=list)
    seconds: float = 0.0
    seconds_saved: float = 0.0

    def rows(self, count: str) -> int:
        """Sum of `rows_computed` or `rows_reused` over the stages that ran."""
        return sum(int(ran.shown.get(count, 0)) for ran in self.ran)


class Refresh:
    """Runs what is stale of one dataset.

    Parameters
    ----------
    dataset, overrides
        The dataset's name, and settings on top of its file. The file is read anew for every wave.
    models
        Names of models; the targets are theirs, with all that they stand on. None: everything but evidence that has
        ever been made of the dataset.
    progress
        Where long stages report.
    tags
        Given to every run that is started.
    targets
        What of the models: what their trainings read, their recommendations, or the report about them.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        dataset: str,
        overrides: Mapping[str, Any],
        models: Sequence[str] | None,
        progress: Progress,
        tags: Mapping[str, str] | None = None,
        targets: Literal["inputs", "recommendations", "evidence"] = "recommendations",
    ) -> None:
        self._instance = instance
        self._dataset = dataset
        self._overrides = dict(overrides)
        self._tags = dict(tags or {})
        self._progress = progress
        self._graph = asset_graph()
        self._job: dg.JobDefinition | None = None
        if models is None:
            self.nodes = materialised(self._graph, instance, dataset)
        else:
            find = {"inputs": inputs, "recommendations": wanted, "evidence": evidence}[targets]
            self.nodes = find(self._graph, dataset, models)

    def states(self) -> dict[Node, State]:
        """How every node stands, in dependency order."""
        return survey(self._instance, self._graph, self.nodes, self._settings())

    def _states_in_store(self) -> dict[Node, State]:
        """`states`, once a store behind a URL holds what it lacked and this machine has."""
        states = self.states()
        for state in states.values():
            if state.unsent:
                send(state.unsent)
        return states

    def _settings(self) -> Dataset:
        return dataset(self._dataset, self._overrides)

    def plan(self) -> Plan:
        """What a refresh would do; changes nothing."""
        states = self.states()
        wave, pending = self._wave(states)
        later = {node: self._why(states, node) for node in self.nodes if node in pending and states[node].reasons}
        surely = wave | later
        return Plan(states, surely, [node for node in self.nodes if node in pending and node not in surely])

    def run(
        self,
        on_wave: Callable[[Mapping[Node, str]], None] | None = None,
        on_wait: Callable[[str], object] = print,
    ) -> Report:
        """Run waves until nothing is stale.

        Parameters
        ----------
        on_wave
            Called before each wave with what runs and why.
        on_wait
            Called with a line of text while another run holds the dataset, and for a damaged file that is made again.

        Raises
        ------
        StageError
            A stage failed, or stays stale for the same reason after it ran. What ran before it is kept.
        """
        started = time.perf_counter()
        report = Report()
        with dataset_lock(self._dataset, on_wait):
            wave: dict[Node, str] = {}
            while following := self._wave(states := self._states_in_store())[0]:
                for node, why in following.items() & wave.items():
                    if why != TOGETHER:
                        raise StageError(f"{node.name} stays stale after it ran: {why}")
                wave = following
                if on_wave:
                    on_wave(wave)
                try:
                    for partition in dict.fromkeys(node.partition for node in wave):
                        self._materialise(partition, [node.key for node in wave if node.partition == partition])
                except StageError as error:
                    if not self._found_damage(states):
                        raise
                    on_wait(f"{error}")
                    wave = {}
                    continue
                report.ran += [self._ran(node, why, states[node].record) for node, why in wave.items()]
        self._account(report, states)
        report.seconds = time.perf_counter() - started
        return report

    def _wave(self, states: Mapping[Node, State]) -> tuple[dict[Node, str], set[Node]]:
        """What runs next, with the reason, in dependency order; and what has to wait for its outcome.

        What is stale runs whatever comes of the nodes above it, so it runs together with them. What is fresh, but
        stands on something that runs, waits for the next look, and so does all that stands on it: no stage runs twice.
        """
        wave: dict[Node, str] = {}
        pending: set[Node] = set()
        for node in self.nodes:
            above = self._parents(node)
            # A run makes one partition: what reads something of single models runs after them.
            if any(
                parent in pending or (parent in wave and "|" not in node.partition and "|" in parent.partition)
                for parent in above
            ):
                pending.add(node)
            elif any(states[mate].reasons for mate in self._together(node)):
                wave[node] = self._why(states, node)
            elif any(parent in wave for parent in above):
                pending.add(node)
        return wave, pending

    def _why(self, states: Mapping[Node, State], node: Node) -> str:
        return "; ".join(states[node].reasons) or TOGETHER

    def _parents(self, node: Node) -> Iterable[Node]:
        """Stages that a node, or what is computed together with it, is made from."""
        return {parent for mate in self._together(node) for parent in parents(self._graph, mate)}

    def _together(self, node: Node) -> list[Node]:
        return [Node(key, node.partition) for key in self._graph[node.key].together]

    def _loaded(self) -> dg.JobDefinition:
        """The stages as a job; nothing before the first run needs them."""
        if self._job is None:
            from assets.stages import stages

            defs = stages(self._progress)
            self._job = defs.resolve_implicit_global_asset_job_def()
            self._graph = graph_of(defs.resolve_asset_graph())  # of the code that runs, whoever saved a file meanwhile
        return self._job

    def _materialise(self, partition: str, keys: list[dg.AssetKey]) -> None:
        overrides = {OVERRIDES_TAG: json.dumps(self._overrides)} if self._overrides else {}
        result = self._loaded().execute_in_process(
            instance=self._instance,
            partition_key=partition,
            asset_selection=keys,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={**self._tags, **overrides},
            raise_on_error=False,
        )
        if not result.success:
            raise failed(result.all_events)

    def _found_damage(self, before: Mapping[Node, State]) -> bool:
        """Whether a file that was taken for whole turned out damaged when a stage read it; it is made again then."""
        now = self.states()
        return any(state.status != "missing" and now[node].status == "missing" for node, state in before.items())

    def _ran(self, node: Node, why: str, before: Record | None) -> Ran:
        now = latest(self._instance, node.key, node.partition)
        assert now is not None
        return Ran(node, why, before is None or now.version != before.version, now.shown)

    def _account(self, report: Report, states: Mapping[Node, State]) -> None:
        """Note why everything else did not run, and what it would have taken."""
        ran = {run.node: run for run in report.ran}
        saved: dict[tuple[Any, ...], float] = {}
        for node, state in states.items():
            if node in ran:
                continue
            stopped_at: list[Node] = []
            for parent in self._parents(node):
                stopped_at += [parent] if parent in ran else report.cut_off.get(parent, [])
            if stopped_at:
                report.cut_off[node] = [above for above in self.nodes if above in stopped_at]
            else:
                report.untouched.append(node)
            if state.record is not None:  # tables that are computed together share their seconds
                together = (node.partition, *self._together(node))
                saved[together] = max(saved.get(together, 0.0), float(state.record.shown.get("seconds", 0.0)))
        report.seconds_saved = sum(saved.values())
