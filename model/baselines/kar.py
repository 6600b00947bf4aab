"""KAR: text vectors, condensed by mixtures of experts, added to the ID embeddings of a backbone.

Xi et al., *Towards Open-World Recommendation with Knowledge Augmentation from Large Language Models*, RecSys 2024. Its
hybrid-expert adaptor condenses text vectors into vectors of the embedding size: for each kind of text there are experts
of its own and experts shared by all kinds, all of them networks of two layers, and a gate, a softmax of a linear layer
over the same text vector, that mixes them. Here the kinds are user texts and item texts, as in the original.

KAR is made for click prediction and reranking, where the augmented vectors are further inputs of a network. What is
done here follows RLMRec, which compares itself to KAR on LightGCN and SGL over one set of text vectors: experts and
gates are fed with those, and the augmented vectors enter the backbone beside the ID embeddings. With Z the ID
embeddings and F the augmented vectors, layer 0 of the backbone is Z + F, in training (in SGL's views too) and in the
scores alike; the loss is the backbone's alone. RLMRec has published no code for it; its authors speak of a
concatenation of Z and F, of which a sum is the case with a fixed map back to d numbers.

Deviations from KAR's code: an expert's last layer has no ReLU, since a summand without negative numbers would push all
scores one way; weights start by Xavier's rule, biases at 0. The defaults are the sizes of that code.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData
from model.baselines.backbone import BackboneConfig, OnBackbone
from model.config import ModelConfig
from model.layers import linear


class KARConfig(BackboneConfig):
    """Settings of KAR."""

    shared_experts: int = Field(2, ge=1, description="Experts that see the texts of users and of items.")
    own_experts: int = Field(5, ge=1, description="Further experts for the texts of users, and as many for items'.")
    hidden_size: int = Field(128, ge=1, description="Width of an expert's hidden layer.")


class KAR(OnBackbone):
    """Backbone with layer 0 = ID embeddings + adapted text vectors."""

    Config: ClassVar[type[ModelConfig]] = KARConfig
    config: KARConfig

    def __init__(self, config: KARConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.adaptor = HybridExperts(config, self.text.shape[1], generator)

    def embed(self) -> tuple[Tensor, Tensor]:
        users, items = self.backbone.propagate(self._inputs()).split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.backbone.terms(self._inputs(), batch)[0]

    def _inputs(self) -> Tensor:
        """Z + F, shape (M + N, d)."""
        return self.backbone.embeddings + self.adaptor(self.text.split([self.user_count, self.item_count]))


class HybridExperts(nn.Module):
    """For users and items each, a gated mixture of shared experts and experts of their own.

    Parameters
    ----------
    width
        d_t, numbers per text vector.
    """

    def __init__(self, config: KARConfig, width: int, generator: torch.Generator) -> None:
        super().__init__()

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(
                    linear(width, config.hidden_size, generator),
                    nn.ReLU(),
                    linear(config.hidden_size, config.embedding_size, generator),
                )
                for _ in range(count)
            )

        self.shared = experts(config.shared_experts)
        self.users, self.items = experts(config.own_experts), experts(config.own_experts)
        count = config.shared_experts + config.own_experts
        self.gates = nn.ModuleList([linear(width, count, generator) for _ in range(2)])

    def forward(self, texts: Sequence[Tensor]) -> Tensor:
        """Text vectors of users (M, d_t) and of items (N, d_t) -> (M + N, d), users first."""
        mixed = []
        for text, own, weights in zip(texts, (self.users, self.items), self.weights(texts), strict=True):
            outputs = torch.stack([expert(text) for expert in (*self.shared, *own)], dim=1)  # (n, E, d)
            mixed.append((weights[:, None] @ outputs)[:, 0])
        return torch.cat(mixed)

    def weights(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """Shares of the experts in the mixtures, (M, E) and (N, E): the shared ones first; every row sums to 1."""
        return [gate(text).softmax(1) for gate, text in zip(self.gates, texts, strict=True)]
