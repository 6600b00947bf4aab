"""LGMRec: local embeddings on the interaction graph and global ones through learned hyperedges.

Guo et al., *LGMRec: Local and Global Graph Learning for Multimodal Recommendation*, AAAI 2024. Local: the mean over
layers of the ID embeddings' propagation, plus, for each modality, the unit rows of its projected features after
propagation. Global: for each modality a soft assignment of users and items to hyperedges, over which the items'
collaborative embeddings are passed.

What differs from the published code: noise enters the assignment in training alone, where the code draws it while
evaluating, too; the contrast is a mean over the batch's triplets, so its weight is the published 1e-4, which goes with
a sum over 2,048 of them, times 2,048; the regulariser is half the squared norm of the final embeddings, a mean over
triplets, where the code has their norm over the batch size; one modality is enough, and then has nothing to be
contrasted with, where the code would fall back on the collaborative embeddings alone; a global embedding shorter than
1e-12, which a node may be left with that drops its nearest hyperedge, counts as zero in the contrast, where the code
divides it by 1e-12. The noise is Gumbel's, as in the code.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, dropout, embedding_table, take_rows, to_device
from model.losses import bpr, embedding_l2, infonce, unit_rows
from model.modalities import MultimodalConfig, item_features


class LGMRecConfig(MultimodalConfig):
    """Settings of LGMRec."""

    layers: int = Field(2, ge=0, description="Layers of the ID embeddings on the interaction graph; the mean counts.")
    modality_layers: int = Field(2, ge=1, description="Layers of the features on the same graph; the last one counts.")
    hypergraph_layers: int = Field(1, ge=1, description="Passes from items over hyperedges to items and users.")
    hyperedges: int = Field(4, ge=1, description="Learned hyperedges of each modality.")
    keep_rate: float = Field(0.5, gt=0, le=1, description="Share of the assignments to hyperedges that training keeps.")
    global_weight: float = Field(0.3, ge=0, description="alpha: weight of the global embeddings' unit rows.")
    contrast_weight: float = Field(0.2048, ge=0, description="Weight of the contrast between two global embeddings.")
    temperature: float = Field(0.2, gt=0, description="tau: of the assignment and of the contrast.")
    l2: float = Field(1e-6, ge=0, description="Weight of the L2 term on the batch's final embeddings.")


class LGMRec(Recommender):
    """H = collaborative + sum over modalities of local features + alpha * global; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = LGMRecConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "hyperedges": (4, 8),
        "keep_rate": (0.3, 0.5),
        "global_weight": (0.3, 0.6),
        "l2": (1e-6, 1e-4),
    }
    config: LGMRecConfig

    def __init__(self, config: LGMRecConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.interactions = SparseGraph(data.train)  # R
        degree = np.diff(data.train.indptr).clip(min=1)[:, None]  # a user without items has a zero row in any case
        self.register_buffer("user_degree", torch.from_numpy(degree.astype(np.float32)), persistent=False)
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)
        self.projections, self.hyperedges = nn.ParameterDict(), nn.ParameterDict()
        for modality, features in item_features(config, data).items():
            self.register_buffer(f"{modality}_features", features, persistent=False)
            for weights, width in ((self.projections, config.embedding_size), (self.hyperedges, config.hyperedges)):
                weights[modality] = nn.Parameter(torch.empty(features.shape[1], width))
                nn.init.xavier_uniform_(weights[modality], generator=generator)

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self._represent()[0].split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        rows = Rows.of(torch.cat(triplets), len(self.embeddings), self.device)
        final, views = self._represent(rows)
        users, positives, negatives = rows.take(final, *triplets)  # each (B, d)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.contrast_weight and len(views) > 1:
            terms["contrast"] = self.config.contrast_weight * self._contrast(views, batch)
        if self.config.l2:
            terms["l2"] = self.config.l2 * embedding_l2(users, positives, negatives)
        return terms

    def _represent(self, rows: Rows | None = None) -> tuple[Tensor, list[Tensor]]:
        """Final embeddings (M + N, d), or rows of them, and every modality's global embeddings (M + N, d)."""
        collaborative = self.graph.layer_mean(self.embeddings, self.config.layers)
        local, views = [], []
        for modality, projection in self.projections.items():
            weights = torch.cat([projection, self.hyperedges[modality]], dim=1)  # so that features are read once
            both = self.get_buffer(f"{modality}_features") @ weights  # (N, d + K)
            projected, logits = both.tensor_split([projection.shape[1]], dim=1)
            local.append(unit_rows(self._local(projected, rows)))
            views.append(self._pass_over(self._assign(logits), collaborative[self.user_count :]))
        tables = [collaborative, torch.stack(views).sum(0)]
        own, total = tables if rows is None else (rows.select(table) for table in tables)
        return own + torch.stack(local).sum(0) + self.config.global_weight * unit_rows(total), views

    def _local(self, items: Tensor, rows: Rows | None) -> Tensor:
        """Projected features (N, d), and their means over each user's items, after propagation."""
        users = self.interactions(items) / self.get_buffer("user_degree")
        nodes = torch.cat([users, items])
        for _ in range(self.config.modality_layers - 1):
            nodes = self.graph(nodes)
        return self.graph(nodes, rows)

    def _assign(self, items: Tensor) -> Tensor:
        """How far each node belongs to each hyperedge (M + N, K), from the items' logits (N, K); users sum theirs."""
        logits = torch.cat([self.interactions(items), items])
        if not self.training:
            return (logits / self.config.temperature).softmax(1)
        noise = torch.empty(logits.shape).exponential_(generator=self.generator).log_().neg_()  # Gumbel
        assignment = ((logits + to_device(noise, self.device)) / self.config.temperature).softmax(1)
        return dropout(assignment, 1 - self.config.keep_rate, self.generator)

    def _pass_over(self, assignment: Tensor, items: Tensor) -> Tensor:
        """Global embeddings (M + N, d): items give to hyperedges, and those to items and users."""
        of_items = assignment[self.user_count :]
        for _ in range(self.config.hypergraph_layers - 1):
            items = of_items @ (of_items.T @ items)
        return assignment @ (of_items.T @ items)

    def _contrast(self, views: list[Tensor], batch: Batch) -> Tensor:
        """A batch's users, and its positive items, against all of another modality's."""
        total = self.embeddings.new_zeros(())
        for candidates, anchors in combinations(views, 2):  # visual anchors among text, where there are both
            chosen = take_rows(anchors, batch.users, batch.positives + self.user_count)  # (B, d) each
            kinds = candidates.split([self.user_count, self.item_count])
            for rows, kind, nodes in zip(chosen, kinds, (batch.users, batch.positives), strict=True):
                total = total + infonce(rows, kind, self.config.temperature, to_device(nodes, self.device))
        return total
