"""LightGCN: mean over layers of linear propagation on the interaction graph.

He et al., *LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation*, SIGIR 2020: its
propagation is eq. 3, the mean over layers eq. 4, the score eq. 5, all of it as matrices eqs. 6 to 8, and the loss with
its L2 term on layer 0 eq. 15. No deviation in the model; the defaults (2 layers, L2 weight 1e-4) are those usual in
multimodal comparisons.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, embedding_table
from model.losses import bpr, embedding_l2


class LightGCNConfig(ModelConfig):
    """Settings of LightGCN."""

    layers: int = Field(2, ge=1, description="Propagation layers; the output is the mean of layers 0..layers.")
    l2: float = Field(1e-4, ge=0, description="Weight of the L2 term on the batch's own (layer 0) embeddings.")


class LightGCN(Recommender):
    """H = mean of A^l Z over l = 0..layers; score = dot product."""

    Config: ClassVar[type[LightGCNConfig]] = LightGCNConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "layers": (1, 2, 3, 4),
        "l2": (1e-4, 1e-3, 1e-2, 1e-1),
        "training.learning_rate": (5e-4, 1e-3, 5e-3),
    }
    config: LightGCNConfig

    def __init__(self, config: LightGCNConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self.propagate(self.embeddings).split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.terms(self.embeddings, batch)[0]

    def propagate(self, inputs: Tensor, rows: Rows | None = None) -> Tensor:
        """H from layer 0, (M + N, d) -> (M + N, d), or rows of it; a model built on this one has its own layer 0."""
        return self.graph.layer_mean(inputs, self.config.layers, rows)

    def terms(self, inputs: Tensor, batch: Batch, *others: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """The loss from layer 0 `inputs` (M + N, d), and the rows of H for each of `others`, node numbers on the CPU.

        The L2 term is that of the ID embeddings Z, whatever layer 0 is made of.
        """
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        rows = Rows.of(torch.cat([*triplets, *others]), len(inputs), self.device)
        taken = rows.take(self.propagate(inputs, rows), *triplets, *others)
        users, positives, negatives = taken[:3]  # each (B, d)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.l2:
            own = self.embeddings.index_select(0, rows.ids)
            terms["l2"] = self.config.l2 * embedding_l2(*rows.take(own, *triplets))
        return terms, taken[3:]
