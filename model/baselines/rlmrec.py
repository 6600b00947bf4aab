"""RLMRec: text vectors of users and items aligned with the embeddings of a backbone, in one of two ways.

Ren et al., *Representation Learning with Large Language Models for Recommendation*, WWW 2024. Contrastive alignment
(RLMRec-Con, eq. 16) maps the text vectors into the embedding space and contrasts them with the final embeddings;
generative alignment (RLMRec-Gen, eq. 17) replaces the ID embeddings of some nodes by a mask token and rebuilds their
text vectors from their final embeddings. Either is added to the backbone's loss (eq. 18). Text takes no part in the
scores.

As in the authors' code, both alignments are InfoNCE of cosines, and the network between the spaces is one for users and
items: two layers with a LeakyReLU, the inner as wide as the mean of both spaces. Masked nodes are drawn anew in every
step and stay masked for the whole of the backbone's loss. The defaults of the alignments, with what the registry sets
for single variants, are that code's settings for Amazon-book. Size and training are not: that code takes d = 32,
batches of 4,096, a look at validation every 3 epochs and a patience of 5 looks; here they are those of all models,
unless set: 64, 2,048, every epoch and 20.

Deviations from the code: each contrastive term (users, positive items, negative items) is a mean over the batch's
distinct nodes with these as the candidates, where the code takes triplets with their repeats and, for users alone,
every user as a candidate; the network's biases start at 0. `model.baselines.backbone` names those of the backbones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData
from model.baselines.backbone import BackboneConfig, OnBackbone
from model.config import ModelConfig
from model.layers import linear, to_device
from model.losses import infonce


class ContrastiveConfig(BackboneConfig):
    """Settings of RLMRec-Con."""

    alignment_weight: float = Field(1e-2, gt=0, description="Weight of the alignment with the text vectors.")
    alignment_temperature: float = Field(0.2, gt=0, description="Temperature of the alignment.")


class GenerativeConfig(BackboneConfig):
    """Settings of RLMRec-Gen."""

    alignment_weight: float = Field(0.1, gt=0, description="Weight of the rebuilding of text vectors.")
    alignment_temperature: float = Field(0.5, gt=0, description="Temperature of the rebuilding.")
    masking: float = Field(0.15, gt=0, lt=1, description="Share of users and items that a step masks, one at least.")


class Contrastive(OnBackbone):
    """InfoNCE between final embeddings and text vectors mapped to d numbers (eqs. 16 and 18)."""

    Config: ClassVar[type[ModelConfig]] = ContrastiveConfig
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "alignment_weight": (1e-3, 1e-2, 1e-1),
        "alignment_temperature": (0.2, 0.5),
        "l2": (1e-5, 1e-4, 1e-3),
    }
    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.encoder = _network(self.text.shape[1], config.embedding_size, generator)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        users, positives, negatives = (part.unique() for part in (batch.users, batch.positives, batch.negatives))
        nodes = [users, positives + self.user_count, negatives + self.user_count]
        terms, embeddings = self.backbone.terms(self.backbone.embeddings, batch, *nodes)
        alignments = [
            infonce(part, self.encoder(self.text[to_device(own, self.device)]), self.config.alignment_temperature)
            for part, own in zip(embeddings, nodes, strict=True)
        ]
        return {**terms, "alignment": self.config.alignment_weight * torch.stack(alignments).sum()}


class Generative(OnBackbone):
    """InfoNCE between text vectors of masked nodes and those rebuilt from their final embeddings (eqs. 17, 18)."""

    Config: ClassVar[type[ModelConfig]] = GenerativeConfig
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "alignment_weight": (1e-3, 1e-2, 1e-1),
        "alignment_temperature": (0.2, 0.5),
        "l2": (1e-5, 1e-4, 1e-3),
    }
    config: GenerativeConfig

    def __init__(self, config: GenerativeConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.mask_token = nn.Parameter(torch.zeros(config.embedding_size))
        self.decoder = _network(config.embedding_size, self.text.shape[1], generator)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        nodes = self.user_count + self.item_count
        count = max(int(nodes * self.config.masking), 1)
        masked = torch.randperm(nodes, generator=self.generator)[:count]
        ids = to_device(masked, self.device)
        inputs = self.backbone.embeddings.index_copy(0, ids, self.mask_token.expand(count, -1))
        terms, (embeddings,) = self.backbone.terms(inputs, batch, masked)
        rebuilding = infonce(self.decoder(embeddings), self.text[ids], self.config.alignment_temperature)
        return {**terms, "alignment": self.config.alignment_weight * rebuilding}


def _network(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    inner = (inputs + outputs) // 2
    return nn.Sequential(linear(inputs, inner, generator), nn.LeakyReLU(), linear(inner, outputs, generator))
