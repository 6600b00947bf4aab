"""Bring what is stale up to date, in waves.

Dagster's staleness reaches one hop: after an edit the stage below it reads stale, and what hangs on that stage only
once it has run with a new result. So: observe settings, run what is stale and stands on fresh ground, look again.
A stage whose result did not change stops the wave. What has never run needs no second look: it runs in the same wave
as what it stands on.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.observation import observe_settings
from assets.progress import Progress
from assets.settings import OVERRIDES_TAG, Dataset
from assets.storage import stored_path
from assets.training import group_of


class StageError(RuntimeError):
    """A stage stopped with an error; the message is the stage's own."""


@dataclass(frozen=True)
class Node:
    """One asset partition."""

    key: dg.AssetKey
    partition: str

    @property
    def name(self) -> str:
        """`item_profiles`, or `trained_model (scale)`."""
        _, _, model = self.partition.partition("|")
        return f"{self.key.path[-1]} ({model})" if model else self.key.path[-1]


@dataclass(frozen=True)
class Finding:
    """Why a node has to run."""

    missing: bool
    reason: str


TOGETHER = Finding(False, "computed together with a stale table")


class Refresh:
    """Runs what is stale of one dataset and some models.

    Parameters
    ----------
    dataset, settings, overrides
        The dataset's name, its settings with `overrides` applied, and the overrides themselves.
    models
        Names of models; their recommendations are the targets, with all that they stand on.
    progress
        Where long stages report.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        dataset: str,
        settings: Dataset,
        overrides: Mapping[str, Any],
        models: Sequence[str],
        progress: Progress,
    ) -> None:
        from assets.definitions import definitions

        defs = definitions(progress)
        self._instance = instance
        self._dataset = dataset
        self._settings = settings
        self._overrides = dict(overrides)
        self._models = list(models)
        self._job = defs.resolve_implicit_global_asset_job_def()
        self._graph = defs.resolve_asset_graph()
        order = {key: position for position, key in enumerate(self._graph.toposorted_asset_keys)}
        self.nodes = sorted(set(self._wanted()), key=lambda node: (order[node.key], node.partition))

    def _wanted(self) -> Iterable[Node]:
        """The models' targets, all that these stand on, and what is computed together with that."""
        for model in self._models:
            target = group_of(model).key("recommendations")
            for reached in self._graph.get_ancestor_asset_keys(target, include_self=True):
                if not self._graph.get(reached).is_materializable:
                    continue
                for key in self._graph.get(reached).execution_set_asset_keys:
                    by_model = isinstance(self._graph.get(key).partitions_def, dg.MultiPartitionsDefinition)
                    yield Node(key, f"{self._dataset}|{model}" if by_model else self._dataset)

    def observe(self) -> None:
        """Record the current version of the dataset's settings and of the models'."""
        observe_settings(self._instance, self._dataset, self._settings, self._models)

    def stale(self) -> dict[Node, Finding]:
        """Every wanted node that is missing or stale, with the reason, in dependency order."""
        # Dagster has no public call for this; this function is the one place that reaches inside.
        from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
        from dagster._core.loader import LoadingContextForTest

        resolver = CachingStaleStatusResolver(self._instance, self._graph, LoadingContextForTest(self._instance))
        found: dict[Node, Finding] = {}
        for node in self.nodes:
            status = resolver.get_status(node.key, node.partition)
            if status == StaleStatus.MISSING:
                found[node] = Finding(True, "never materialised")
            elif not stored_path(node.key, node.partition).exists():
                found[node] = Finding(True, "its file is gone")
            elif status == StaleStatus.STALE:
                causes = resolver.get_stale_causes(node.key, node.partition)
                found[node] = Finding(False, "; ".join(sorted({_explain(cause) for cause in causes})))
        return found

    def run(self, on_wave: Callable[[Mapping[Node, Finding]], None] | None = None) -> list[Node]:
        """Run waves until nothing is stale; gives what ran, in order.

        Raises
        ------
        StageError
            A stage failed, or stays stale after it ran. What ran before it is kept.
        """
        self.observe()
        ran: list[Node] = []
        while stale := self.stale():
            wave = self._wave(stale)
            for node in wave:
                if node in ran:
                    raise StageError(f"{node.name} stays stale after it ran: {stale.get(node, TOGETHER).reason}")
            if on_wave:
                on_wave({node: stale.get(node, TOGETHER) for node in wave})
            for partition in dict.fromkeys(node.partition for node in wave):
                self._materialise(partition, [node.key for node in wave if node.partition == partition])
            ran += wave
        return ran

    def _wave(self, stale: Mapping[Node, Finding]) -> list[Node]:
        """What can run now, with what is computed together with it, in dependency order."""
        wave: set[Node] = set()
        for node, finding in stale.items():
            parents = {parent for parent in self._parents(node) if parent in stale}
            ready = parents <= wave if finding.missing else not parents
            if ready:
                together = self._graph.get(node.key).execution_set_asset_keys
                wave |= {Node(key, node.partition) for key in together}
        return [node for node in self.nodes if node in wave]

    def _parents(self, node: Node) -> list[Node]:
        keys = self._graph.get(node.key).parent_keys
        return [Node(key, partition) for key in keys for partition in {node.partition, self._dataset}]

    def _materialise(self, partition: str, keys: list[dg.AssetKey]) -> None:
        result = self._job.execute_in_process(
            instance=self._instance,
            partition_key=partition,
            asset_selection=keys,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            tags={OVERRIDES_TAG: json.dumps(self._overrides)} if self._overrides else None,
            raise_on_error=False,
        )
        for event in result.all_events:
            if event.is_step_failure:
                raise StageError(_failure(event))
        if not result.success:
            raise StageError(f"the run {result.run_id} failed before its first stage; its log has the cause")


def _explain(cause: Any) -> str:
    dependency = f" ({cause.dependency.asset_key.to_user_string()})" if cause.dependency else ""
    return f"{cause.reason}{dependency}"


def _failure(event: dg.DagsterEvent) -> str:
    """The innermost error of a failed step, as its author worded it."""
    error = event.step_failure_data.error
    while error is not None and error.cause is not None:
        error = error.cause
    return f"{event.step_key}: {error.message.strip() if error else 'failed'}"
