"""Asset partitions as the nodes of a graph."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.versions import code_parts

WHATEVER_THERE_IS = "scale/reads_whatever_there_is"
GPU = "gpu"  # the pool of what takes a GPU where there is one
# In the order in which they stand on each other.
GROUPS = (
    "raw", "interactions", "profiles", "embeddings", "graphs", "models", "recommendations", "replicates", "evidence"
)  # fmt: skip


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
class Asset:
    """What has to be known of an asset to tell what it needs and whether it is stale.

    Attributes
    ----------
    group
        As in Dagster.
    made
        Whether it is a stage; settings are observed.
    code_version, code
        None for settings; and what it is made of: module, or function of this room -> version.
    parents
        What it is made from.
    together
        What is computed with it, itself among it.
    models
        Those that it has a partition of, for each dataset; empty where it has one for each dataset.
    whatever_there_is
        Whether asking for it asks for none of what it reads.
    """

    group: str
    made: bool
    code_version: str | None
    code: Mapping[str, str]
    parents: tuple[dg.AssetKey, ...]
    together: tuple[dg.AssetKey, ...]
    models: tuple[str, ...]
    whatever_there_is: bool


# In dependency order.
AssetGraph = Mapping[dg.AssetKey, Asset]


def graph_of(assets: Any) -> AssetGraph:
    """What Dagster's asset graph says."""
    return {key: _asset(assets.get(key)) for key in assets.toposorted_asset_keys}


def _asset(node: Any) -> Asset:
    models: Sequence[str] = ()
    if isinstance(node.partitions_def, dg.MultiPartitionsDefinition):
        dimensions = {each.name: each.partitions_def for each in node.partitions_def.partitions_defs}
        models = dimensions["model"].get_partition_keys()
    return Asset(
        node.group_name,
        node.is_materializable,
        node.code_version,
        code_parts(node.code_version),
        tuple(sorted(node.parent_keys)),
        tuple(sorted(node.execution_set_asset_keys)),
        tuple(models),
        WHATEVER_THERE_IS in node.tags,
    )


def parents(graph: AssetGraph, node: Node) -> Iterator[Node]:
    """What a node is made from, groups of settings among it.

    What is made for a dataset as a whole and reads something by model reads it of every model.
    """
    dataset, _, model = node.partition.partition("|")
    for key in graph[node.key].parents:
        if not (models := graph[key].models):
            yield Node(key, dataset)
        elif model:
            yield Node(key, node.partition)
        else:
            yield from (Node(key, f"{dataset}|{each}") for each in models)


def inputs_by_name(graph: AssetGraph, node: Node) -> dict[str, Node]:
    """A node's parents, as they are named in its record: `interactions`, or `interactions/replicates (bpr)`."""
    named = {}
    for above in parents(graph, node):
        name = above.key.to_user_string()
        model = above.partition.partition("|")[2]
        named[f"{name} ({model})" if model and "|" not in node.partition else name] = above
    return named


def closed(graph: AssetGraph, targets: Iterable[Node]) -> list[Node]:
    """Targets, what they cannot be made without, and what is computed together with that, in order."""
    found: set[Node] = set()
    waiting = list(targets)
    while waiting:
        node = waiting.pop()
        if node in found or not graph[node.key].made:
            continue
        together = {Node(key, node.partition) for key in graph[node.key].together}
        found |= together
        for each in together:
            if not graph[each.key].whatever_there_is:
                waiting += parents(graph, each)
    order = {key: position for position, key in enumerate(graph)}
    return sorted(found, key=lambda node: (GROUPS.index(graph[node.key].group), node.partition, order[node.key]))
