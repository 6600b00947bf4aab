"""LayerGCN: every layer is weighted by its cosine to a node's own embedding, and edges are pruned by degree.

Zhou et al., *Layer-refined Graph Convolutional Networks for Recommendation*, ICDE 2023: the probability that an edge
stays is eq. 5, a refined layer eq. 6, its weight eqs. 7 and 8, the sum of layers without the own one eq. 9, the score
eq. 10, the loss eqs. 11 and 12. The paper prunes with a probability that grows with the degrees of an edge's ends; its
code does so in odd epochs and prunes uniformly in even ones, and so does this file. Pruned graphs are normalised by
their own degrees; validation and test use the whole graph. Deviation from the code: its loss is a sum over the batch,
here a mean (the L2 weight keeps its balance). The defaults are the code's depth and, of the values that it searches,
the L2 weight that was best on three of its authors' four datasets and the pruning that was best on two of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, drop_edges, embedding_table, prune_edges
from model.losses import bpr, embedding_l2, unit_rows


class LayerGCNConfig(ModelConfig):
    """Settings of LayerGCN."""

    layers: int = Field(4, ge=1, description="Propagation layers; the output is the sum of layers 1..layers.")
    pruning: float = Field(0.1, ge=0, lt=1, description="Share of interaction edges left out in each epoch.")
    l2: float = Field(1e-3, ge=0, description="Weight of the L2 term on the batch's own (layer 0) embeddings.")


class LayerGCN(Recommender):
    """H = sum of X_l over l = 1..layers, X_l = diag(cos(A X_{l-1}, X_0)) A X_{l-1}; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = LayerGCNConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "pruning": (0.0, 0.1, 0.2),
        "l2": (1e-4, 1e-3, 1e-2, 1e-1),
    }
    config: LayerGCNConfig

    def __init__(self, config: LayerGCNConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self._train = data.train
        self.whole_graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.training_graph = self.whole_graph
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)  # X_0

    def before_epoch(self, epoch: int) -> None:
        """Draw this epoch's graph: by degree in odd epochs, uniformly in even ones."""
        if self.config.pruning:
            draw = prune_edges if epoch % 2 else drop_edges
            kept = draw(self._train, self.config.pruning, self.generator)
            self.training_graph = SparseGraph(bipartite_adjacency(kept), symmetric=True).to(self.device)

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self._convolve().split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        rows = Rows.of(torch.cat(triplets), len(self.embeddings), self.device)
        users, positives, negatives = rows.take(self._convolve(rows), *triplets)  # each (B, d)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.l2:
            own = self.embeddings.index_select(0, rows.ids)
            terms["l2"] = self.config.l2 * embedding_l2(*rows.take(own, *triplets))
        return terms

    def _convolve(self, rows: Rows | None = None) -> Tensor:
        """The sum of the refined layers, or rows of it; only the last layer can be computed for those rows alone."""
        graph = self.training_graph if self.training else self.whole_graph
        layer: Tensor = self.embeddings
        lower = []
        for _ in range(self.config.layers - 1):
            layer = refine(graph(layer), self.embeddings)
            lower.append(layer)
        own = self.embeddings if rows is None else self.embeddings.index_select(0, rows.ids)
        last = refine(graph(layer, rows), own)
        if not lower:
            return last
        whole = torch.stack(lower).sum(0)
        return last + (whole if rows is None else whole.index_select(0, rows.ids))


def refine(propagated: Tensor, own: Tensor) -> Tensor:
    """Rows (n, d) times their cosine to the nodes' own embeddings (n, d) (eqs. 6 to 8)."""
    return (unit_rows(propagated) * unit_rows(own)).sum(1, keepdim=True) * propagated
