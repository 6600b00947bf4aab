"""FREEDOM: a frozen item graph from features, and an interaction graph pruned anew in every epoch.

Zhou, Shen, *A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal Recommendation*, ACM MM 2023.
The item graph has an edge from each item to its k nearest by cosine in each modality, itself among them, all of the
same weight; with both modalities it is a weighted sum of the two, with one it is that one. Training propagates over
interactions that degree-sensitive pruning (Section 4.2) leaves, evaluation over all of them. By notes of the paper's
readers the cosine is eq. 1, the unweighted neighbours eq. 2, the weighted sum eq. 3, an item's final embedding eq. 8,
the projection eq. 9 and the loss eq. 10; which numbers pruning and propagation have they do not tell.

What differs from the published code: features stay as they are, as in the paper, where the code trains them along,
and their projections have no bias, which would cancel between a positive and a negative; an item without features has
no neighbours and is nobody's, where the code takes any. Nothing is regularised but by the projections' own BPR terms,
in paper and code alike. Of the published search space the defaults are rho = 0.8 and lambda = 1e-3.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, embedding_table, prune_edges
from model.losses import bpr
from model.modalities import MultimodalConfig, Projections, item_features, item_graph


class FreedomConfig(MultimodalConfig):
    """Settings of FREEDOM."""

    layers: int = Field(2, ge=0, description="L_ui: layers on the interaction graph; the output is their mean.")
    item_layers: int = Field(1, ge=1, description="L_ii: layers on the item graph; the output is the last one.")
    neighbours: int = Field(10, ge=1, description="k: nearest items by each modality, an item itself among them.")
    visual_weight: float = Field(0.1, ge=0, le=1, description="Weight of the visual graph where there is a text one.")
    pruning: float = Field(0.8, ge=0, lt=1, description="rho: share of interaction edges left out in each epoch.")
    modality_weight: float = Field(1e-3, ge=0, description="lambda: weight of BPR on projected features.")


class Freedom(Recommender):
    """User = mean over layers of the interaction graph; item = the same + propagation over the item graph."""

    Config: ClassVar[type[ModelConfig]] = FreedomConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "pruning": (0.8, 0.9),
        "modality_weight": (0.0, 1e-5, 1e-4, 1e-3),
    }
    config: FreedomConfig

    def __init__(self, config: FreedomConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self._train = data.train
        self.whole_graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.training_graph = self.whole_graph
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)
        features = item_features(config, data)
        self.item_graph = SparseGraph(item_graph(features, config.neighbours, config.visual_weight))
        self.projections = Projections(features, config.embedding_size, generator, bias=False)

    def before_epoch(self, epoch: int) -> None:
        """Draw this epoch's interaction graph."""
        if self.config.pruning:
            kept = prune_edges(self._train, self.config.pruning, self.generator)
            self.training_graph = SparseGraph(bipartite_adjacency(kept), symmetric=True).to(self.device)

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self._interaction().split([self.user_count, self.item_count])
        return users, items + self._semantic()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        nodes = Rows.of(torch.cat(triplets), len(self.embeddings), self.device)
        users, positives, negatives = nodes.take(self._interaction(nodes), *triplets)  # each (B, d)
        pairs = batch.positives, batch.negatives
        items = Rows.of(torch.cat(pairs), self.item_count, self.device)
        near_positives, near_negatives = items.take(self._semantic(items), *pairs)
        difference = positives + near_positives, negatives + near_negatives
        terms = {"bpr": bpr(*((users * part).sum(1) for part in difference))}
        if self.config.modality_weight:
            projected = [items.take(table, *pairs) for table in self.projections(items.ids).values()]
            ranked = [bpr((users * better).sum(1), (users * worse).sum(1)) for better, worse in projected]
            terms["modality_bpr"] = self.config.modality_weight * torch.stack(ranked).sum()
        return terms

    def _interaction(self, rows: Rows | None = None) -> Tensor:
        """Propagation over the interaction graph (M + N, d), or rows of it."""
        graph = self.training_graph if self.training else self.whole_graph
        return graph.layer_mean(self.embeddings, self.config.layers, rows)

    def _semantic(self, rows: Rows | None = None) -> Tensor:
        """Propagation of the items' own embeddings over the item graph (N, d), or rows of it."""
        items = self.embeddings[self.user_count :]
        for _ in range(self.config.item_layers - 1):
            items = self.item_graph(items)
        return self.item_graph(items, rows)
