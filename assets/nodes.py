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
    """What a node is made from, groups of settings among it, in Dagster's asset graph."""
    for key in sorted(graph.get(node.key).parent_keys):
        yield Node(key, node.partition if by_model(graph, key) else node.partition.partition("|")[0])


def by_model(graph: Any, key: dg.AssetKey) -> bool:
    """Whether an asset has a partition for each dataset and model, rather than for each dataset."""
    return isinstance(graph.get(key).partitions_def, dg.MultiPartitionsDefinition)
