"""BPR-MF: matrix factorisation under the BPR loss.

Rendle et al., *BPR: Bayesian Personalized Ranking from Implicit Feedback*, UAI 2009: its criterion BPR-Opt
(Section 4.1) of score differences (Section 4.3) on matrix factorisation (Section 4.3.1); of these the paper numbers no
equation. Deviations: Adam instead of plain SGD, Xavier start, no item bias (as in the multimodal literature's
comparisons).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import to_device
from model.losses import bpr, embedding_l2


class BPRConfig(ModelConfig):
    """Settings of BPR-MF."""

    l2: float = Field(1e-4, ge=0, description="Weight of the L2 term on the batch's embeddings.")


class BPR(Recommender):
    """Score = dot product of two free embeddings."""

    Config: ClassVar[type[ModelConfig]] = BPRConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "l2": (0.0, 1e-4, 1e-3, 1e-2, 1e-1),
        "training.learning_rate": (5e-4, 1e-3, 5e-3),
    }
    config: BPRConfig

    def __init__(self, config: BPRConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.user_embeddings = nn.Parameter(torch.empty(data.user_count, config.embedding_size))
        self.item_embeddings = nn.Parameter(torch.empty(data.item_count, config.embedding_size))
        nn.init.xavier_uniform_(self.user_embeddings, generator=generator)
        nn.init.xavier_uniform_(self.item_embeddings, generator=generator)

    def embed(self) -> tuple[Tensor, Tensor]:
        return self.user_embeddings, self.item_embeddings

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        users = self.user_embeddings.index_select(0, to_device(batch.users, self.device))  # (B, d)
        items = to_device(torch.cat([batch.positives, batch.negatives]), self.device)
        positives, negatives = self.item_embeddings.index_select(0, items).chunk(2)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.l2:
            terms["l2"] = self.config.l2 * embedding_l2(users, positives, negatives)
        return terms
