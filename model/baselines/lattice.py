"""LATTICE: item graphs learned from projected features, beside those of the features as they are.

Zhang et al., *Mining Latent Structures for Multimedia Recommendation*, ACM MM 2021. For each modality m there are the k
nearest items by cosine, weighted by it and normalised: S̃ of the features, which stays, and Ã of their projection,
which is learned. The item graph is the sum over modalities of α_m (λ S̃ + (1 - λ) Ã), α a softmax; the items' own
embeddings go through it, and their unit rows are added to LightGCN's items. By notes of the paper's readers the cosine
is eq. 1, the neighbours eq. 2, their normalisation eq. 3, the projection eq. 4, the mean of both graphs eq. 5, the sum
over modalities eq. 6, the propagation eq. 7, what is added to an item eq. 8 and the score eq. 9.

As in the published code, an epoch's first step builds the learned graphs and alone teaches the projections; the
other steps go on with the graphs as they were then, and every evaluation builds them from the projections as they
are. The code's learning rate falls by 0.96 in 50 epochs, which `learning_rate_decay` of the training does.

What differs from the code: each learned graph is normalised, then their sum is taken, as in the paper, where the
code normalises their sum; negative cosines count as 0, as in the paper; α learns in every step, not in the first
alone; LightGCN's graph is that of its own paper, without the code's self-loops and division by row sums; features
stay as they are, where the code trains them along.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, embedding_table
from model.losses import bpr, embedding_l2, unit_rows
from model.modalities import (
    MultimodalConfig,
    Projections,
    item_features,
    nearest_items,
    similarity_graph,
    similarity_weights,
)

# Of each modality: ids of the items that each item is near to, and weights of the edges to them, (N, k) each.
Neighbours = dict[str, tuple[Tensor, Tensor]]


class LatticeConfig(MultimodalConfig):
    """Settings of LATTICE."""

    layers: int = Field(2, ge=0, description="Layers on the interaction graph; the output is their mean.")
    item_layers: int = Field(1, ge=1, description="Layers on the item graph; the output is the last one.")
    neighbours: int = Field(10, ge=1, description="k: nearest items by each modality, an item itself among them.")
    initial_weight: float = Field(0.9, ge=0, lt=1, description="lambda: weight of the graphs that are not learned.")
    l2: float = Field(1e-5, ge=0, description="Weight of the L2 term on the batch's final embeddings.")


class Lattice(Recommender):
    """User = LightGCN's; item = LightGCN's + the unit rows of the propagation over the item graph."""

    Config: ClassVar[type[ModelConfig]] = LatticeConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "l2": (0.0, 1e-5, 1e-4, 1e-3),
        "training.learning_rate": (1e-4, 5e-4, 1e-3, 5e-3),
    }
    config: LatticeConfig

    def __init__(self, config: LatticeConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)
        features = item_features(config, data)
        self.projections = Projections(features, config.embedding_size, generator, bias=True)
        self.initial_graphs = nn.ModuleDict(
            {modality: SparseGraph(similarity_graph(part, config.neighbours)) for modality, part in features.items()}
        )
        self.importance = nn.Parameter(torch.zeros(len(features)))  # α before its softmax
        self._learned: Neighbours | None = None

    def before_epoch(self, epoch: int) -> None:
        """Forget the learned graphs: the first step builds them anew."""
        self._learned = None

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self.graph.layer_mean(self.embeddings, self.config.layers).split(
            [self.user_count, self.item_count]
        )
        return users, items + self._latent(self.learned_neighbours())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        learned = self._learned or self.learned_neighbours()
        self._learned = {modality: (ids, weights.detach()) for modality, (ids, weights) in learned.items()}
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        nodes = Rows.of(torch.cat(triplets), len(self.embeddings), self.device)
        propagated = self.graph.layer_mean(self.embeddings, self.config.layers, nodes)
        users, positives, negatives = nodes.take(propagated, *triplets)  # each (B, d)
        pairs = batch.positives, batch.negatives
        items = Rows.of(torch.cat(pairs), self.item_count, self.device)
        near_positives, near_negatives = items.take(self._latent(learned, items), *pairs)
        positives, negatives = positives + near_positives, negatives + near_negatives
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.l2:
            terms["l2"] = self.config.l2 * embedding_l2(users, positives, negatives)
        return terms

    def learned_neighbours(self) -> Neighbours:
        """Ã of every modality, differentiable in the projections, though not in who is near to whom."""
        learned: Neighbours = {}
        for modality, projected in self.projections().items():
            ids, _ = nearest_items(projected.detach(), self.config.neighbours)
            units = unit_rows(projected)
            cosines = (units[:, None] * F.embedding(ids, units)).sum(2)  # (N, k)
            learned[modality] = ids, similarity_weights(ids, cosines)
        return learned

    def _latent(self, learned: Neighbours, rows: Rows | None = None) -> Tensor:
        """Unit rows of the items' propagation over the item graph (N, d), or of some of its rows."""
        items = self.embeddings[self.user_count :]
        for _ in range(self.config.item_layers - 1):
            items = self._propagate(items, learned)
        return unit_rows(self._propagate(items, learned, rows))

    def _propagate(self, items: Tensor, learned: Neighbours, rows: Rows | None = None) -> Tensor:
        """The item graph times `items` (N, d), or rows of that."""
        initial_weight, parts = self.config.initial_weight, []
        # A row of equal numbers for each α: its gradient is then summed by columns, in one order with any threads.
        shares = self.importance.softmax(0)[:, None].expand(-1, items.shape[1])  # (|M|, d)
        for (modality, graph), share in zip(self.initial_graphs.items(), shares, strict=True):
            ids, weights = (part if rows is None else part.index_select(0, rows.ids) for part in learned[modality])
            near = F.embedding_bag(ids, items, per_sample_weights=weights, mode="sum")
            parts.append(share * (initial_weight * graph(items, rows) + (1 - initial_weight) * near))
        return torch.stack(parts).sum(0)
