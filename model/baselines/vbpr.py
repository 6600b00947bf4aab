"""VBPR: matrix factorisation with a second pair of factors that reads item features.

He, McAuley, *VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback*, AAAI 2016: its predictor (eq. 4), user
and item factors plus user factors for projected features (eq. 3), and its loss (eqs. 6 and 7). As in MMRec, the
features are those of every modality, side by side (there is one projection for each, and their sum is the projection of
the whole), both pairs of factors have the same size, and the paper's biases (user, item and visual) are left out.

What differs from MMRec's code: the projection has no bias, as in the paper, since one adds the same to all scores of
a user; the regulariser is half the squared norm of the batch's embeddings, a mean over triplets, as the paper
penalises squares, where the code has their norm over the batch size; weights start by Xavier's uniform rule, where
the code's projection has his normal one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, to_device
from model.losses import bpr, embedding_l2
from model.modalities import MultimodalConfig, Projections, item_features


class VBPRConfig(MultimodalConfig):
    """Settings of VBPR; a user has `embedding_size` numbers for items as such, and as many for their features."""

    l2: float = Field(1e-4, ge=0, description="Weight of the L2 term on the batch's embeddings.")


class VBPR(Recommender):
    """Score = γ_u · γ_i + θ_u · E f_i, as one dot product of vectors (2d,)."""

    Config: ClassVar[type[ModelConfig]] = VBPRConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "l2": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "training.learning_rate": (5e-4, 1e-3, 5e-3),
    }
    config: VBPRConfig

    def __init__(self, config: VBPRConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        size = config.embedding_size
        self.user_embeddings = nn.Parameter(torch.empty(data.user_count, 2 * size))
        self.item_embeddings = nn.Parameter(torch.empty(data.item_count, size))
        nn.init.xavier_uniform_(self.user_embeddings, generator=generator)
        nn.init.xavier_uniform_(self.item_embeddings, generator=generator)
        self.projections = Projections(item_features(config, data), size, generator, bias=False)

    def embed(self) -> tuple[Tensor, Tensor]:
        return self.user_embeddings, torch.cat([self.item_embeddings, self._project()], dim=1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        users = self.user_embeddings.index_select(0, to_device(batch.users, self.device))  # (B, 2d)
        rows = Rows.of(torch.cat([batch.positives, batch.negatives]), self.item_count, self.device)
        items = torch.cat([self.item_embeddings.index_select(0, rows.ids), self._project(rows.ids)], dim=1)  # (U, 2d)
        positives, negatives = rows.take(items, batch.positives, batch.negatives)  # each (B, 2d)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.l2:
            terms["l2"] = self.config.l2 * embedding_l2(users, positives, negatives)
        return terms

    def _project(self, items: Tensor | None = None) -> Tensor:
        """E f (eq. 3) of all items (N, d), or of `items` (U, d)."""
        return torch.stack(list(self.projections(items).values())).sum(0)
