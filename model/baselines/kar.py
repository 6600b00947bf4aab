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
scores one way; weights start by Xavier's rule, biases at 0. The defaults are the sizes of that code. The
adaptor is all of it that can be held against that code, since a training there is one of click prediction.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
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
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "l2": (1e-5, 1e-4, 1e-3),
        "own_experts": (2, 5),
        "training.learning_rate": (5e-4, 1e-3, 5e-3),
    }
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
        return self.backbone.embeddings + self.adaptor(*self.text.split([self.user_count, self.item_count]))


class HybridExperts(nn.Module):
    """For users and items each, a gated mixture of shared experts and experts of their own.

    Parameters
    ----------
    width
        d_t, numbers per text vector.
    """

    def __init__(self, config: KARConfig, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.count = config.shared_experts + config.own_experts  # E, in one mixture
        self.shared = Experts(config.shared_experts, width, config, generator)
        self.users = Experts(config.own_experts, width, config, generator)
        self.items = Experts(config.own_experts, width, config, generator)
        self.user_gate = linear(width, self.count, generator)
        self.item_gate = linear(width, self.count, generator)

    def forward(self, user_text: Tensor, item_text: Tensor) -> Tensor:
        """Text vectors (M, d_t) and (N, d_t) -> (M + N, d), users first."""
        users = self._mix(user_text, self.users, self.user_gate)
        return torch.cat([users, self._mix(item_text, self.items, self.item_gate)])

    def _mix(self, text: Tensor, own: "Experts", gate: nn.Linear) -> Tensor:
        """Sum over experts of share * output, (n, d); as products of all experts at once.

        By itself the gate's gradient would be a product of few rows and columns, which BLAS sums in an order that
        depends on the number of threads.
        """
        inner = torch.cat([self.shared.inner, own.inner, gate.weight])  # (E h + E, d_t)
        bias = torch.cat([self.shared.inner_bias, own.inner_bias, gate.bias])
        hidden, gated = F.linear(text, inner, bias).split([len(inner) - self.count, self.count], dim=1)
        shares = gated.softmax(1)  # (n, E), the shared experts first
        weighted = hidden.relu().unflatten(1, (self.count, -1)) * shares[:, :, None]  # (n, E, h)
        outer = torch.cat([self.shared.outer, own.outer, self.shared.outer_bias, own.outer_bias])  # (E h + E, d)
        return torch.cat([weighted.flatten(1), shares], dim=1) @ outer


class Experts(nn.Module):
    """Weights of K networks of two layers, one expert below the other: (K h, d_t), (K h,), (K h, d) and (K, d)."""

    def __init__(self, count: int, width: int, config: KARConfig, generator: torch.Generator) -> None:
        super().__init__()
        inner = [linear(width, config.hidden_size, generator).weight for _ in range(count)]
        outer = [linear(config.hidden_size, config.embedding_size, generator).weight.T for _ in range(count)]
        self.inner = nn.Parameter(torch.cat(inner).detach())
        self.inner_bias = nn.Parameter(torch.zeros(count * config.hidden_size))
        self.outer = nn.Parameter(torch.cat(outer).detach())
        self.outer_bias = nn.Parameter(torch.zeros(count, config.embedding_size))
