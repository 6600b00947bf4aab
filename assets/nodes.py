"""Asset partitions as the nodes of a graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg


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


def parents(graph: Any, node: Node) -> Iterator[Node]:
    """What a node is made from, groups of settings among it, in Dagster's asset graph.

    What is made for a dataset as a whole and reads something by model reads it of every model.
    """
    dataset, _, model = node.partition.partition("|")
    for key in sorted(graph.get(node.key).parent_keys):
        if not by_model(graph, key):
            yield Node(key, dataset)
        elif model:
            yield Node(key, node.partition)
        else:
            yield from (Node(key, f"{dataset}|{each}") for each in _models(graph, key))


def inputs_by_name(graph: Any, node: Node) -> dict[str, Node]:
    """A node's parents, as they are named in its record: `interactions`, or `interactions/replicates (bpr)`."""
    named = {}
    for above in parents(graph, node):
        name = above.key.to_user_string()
        model = above.partition.partition("|")[2]
        named[f"{name} ({model})" if model and "|" not in node.partition else name] = above
    return named


def by_model(graph: Any, key: dg.AssetKey) -> bool:
    """Whether an asset has a partition for each dataset and model, rather than for each dataset."""
    return isinstance(graph.get(key).partitions_def, dg.MultiPartitionsDefinition)


def _models(graph: Any, key: dg.AssetKey) -> list[str]:
    dimensions = {each.name: each.partitions_def for each in graph.get(key).partitions_def.partitions_defs}
    return list(dimensions["model"].get_partition_keys())
