"""BM3: agreement between an online view and a perturbed target view, without negatives.

Zhou et al., *Bootstrap Latent Representations for Multi-modal Recommendation*, WWW 2023. The online view of users and
items is LightGCN's on their ID embeddings, items with a residual, through a linear predictor; the target view is the
same before the predictor, under dropout, and takes no gradient. A user and an item that belong together agree across
the views, both ways; so do an item's projected features, through the same predictor, with the item's target
(alignment between modalities) and with their own target (alignment within one). The score is the dot product of
the online views.

What differs from the published code: features stay as they are, where the code trains them along; weights start by
Xavier's uniform rule, where the code's predictor and projections have his normal one; dropout is drawn for the
batch's users and items alone, which are all that the loss reads. The regulariser is the code's: norms of all users'
and of all items' representations, not their squares, over the number of items. The defaults are those that the
authors give for Baby.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, dropout, embedding_table, linear
from model.losses import unit_rows
from model.modalities import MultimodalConfig, Projections, item_features


class BM3Config(MultimodalConfig):
    """Settings of BM3."""

    layers: int = Field(1, ge=0, description="Layers on the interaction graph; the output is their mean.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of a target's numbers that are set to 0.")
    alignment_weight: float = Field(2.0, ge=0, description="Weight of the alignment between and within modalities.")
    l2: float = Field(0.1, ge=0, description="Weight of the norms of all representations over the number of items.")


class BM3(Recommender):
    """H = predictor of LightGCN's users and of LightGCN's items + their ID embeddings; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = BM3Config
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "layers": (1, 2),
        "dropout": (0.3, 0.5),
        "l2": (0.1, 0.01),
    }
    config: BM3Config

    def __init__(self, config: BM3Config, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)
        self.projections = Projections(item_features(config, data), config.embedding_size, generator, bias=True)
        self.predictor = linear(config.embedding_size, config.embedding_size, generator)

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self._represent()
        return self.predictor(users), self.predictor(items)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        all_users, all_items = self._represent()
        users = Rows.of(batch.users, self.user_count, self.device)
        items = Rows.of(batch.positives, self.item_count, self.device)
        own_users, own_items = all_users.index_select(0, users.ids), all_items.index_select(0, items.ids)  # (U, d)
        (user,) = users.take(self._online(own_users), batch.users)  # (B, d), as all that follow
        (user_target,) = users.take(self._target(own_users), batch.users)
        (item,) = items.take(self._online(own_items), batch.positives)
        (item_target,) = items.take(self._target(own_items), batch.positives)
        terms = {"reconstruction": disagreement(user, item_target) + disagreement(item, user_target)}
        if self.config.alignment_weight:
            alignment = []
            for projected in self.projections(items.ids).values():
                (features,) = items.take(self._online(projected), batch.positives)
                (features_target,) = items.take(self._target(projected), batch.positives)
                alignment += [disagreement(features, item_target), disagreement(features, features_target)]
            terms["alignment"] = self.config.alignment_weight * torch.stack(alignment).sum()
        if self.config.l2:
            # By columns first: a sum of many numbers at once would be split between threads, and round by their number.
            norms = [part.square().sum(0).sum().sqrt() for part in (all_users, all_items)]
            terms["l2"] = self.config.l2 * torch.stack(norms).sum() / self.item_count
        return terms

    def _represent(self) -> tuple[Tensor, Tensor]:
        """Users (M, d) and items (N, d) before the predictor."""
        users, items = self.graph.layer_mean(self.embeddings, self.config.layers).split(
            [self.user_count, self.item_count]
        )
        return users, items + self.embeddings[self.user_count :]

    def _online(self, rows: Tensor) -> Tensor:
        """Unit rows (U, d) of what the predictor makes of `rows` (U, d)."""
        return unit_rows(self.predictor(rows))

    def _target(self, rows: Tensor) -> Tensor:
        """Unit rows (U, d) of `rows` (U, d) under dropout, without a gradient."""
        return unit_rows(dropout(rows.detach(), self.config.dropout, self.generator))


def disagreement(online: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of unit rows (B, d), a mean over them."""
    return 1 - (online * target).sum(1).mean()
