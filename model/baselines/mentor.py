"""MENTOR: features and IDs on the interaction graph, aligned through their distributions and made robust by noise.

Xu et al., *MENTOR: Multi-level Self-supervised Learning for Multimodal Recommendation*, AAAI 2025. Each modality, and
the IDs beside them, is propagated for itself; the modalities are put next to each other, users' weighted; items also
hear from their nearest items. Four tasks: BPR on what is fused; alignment, the distances of mean and variance between
each two of IDs, modalities and fusion; feature masking, a predictor meets the fused rows after dropout; graph
perturbation, InfoNCE between two propagations with noise.

What differs from the published code: masking and perturbation train what is recommended, which is what the paper wants
of them, where the code computes masking without gradients and gives every noisy propagation weights of its own, so
that of all that is recommended only the users' weights feel it (weights of 0 here come near to that); the target of
masking is not trained, as in BM3; both tasks are means over the batch's users and positive items, not over all; BPR
takes natural logarithms, not those to base 2; variances are divided by n, and IDs are not doubled before; users'
weights start equal; linear layers start with Xavier weights and zero bias; an item without features has no neighbours
and is nobody's. Edges that the code drops without using what is left are not dropped. All else, graphs, encoders,
fusion and the terms of the loss, is as there.

The published settings are a grid in two places; the defaults here are 1e-3 of {1e-4, 1e-3} for the weight of
perturbation and 0.2 of {0.2, 0.4, 0.6} for its temperature. The published step size is 1e-4.
The authors stop on Recall@10; here it is the metric of the training, Recall@20 unless set.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import SparseGraph, bipartite_adjacency, dropout, linear, take_rows, to_device
from model.losses import bpr, infonce, unit_rows
from model.modalities import MultimodalConfig, item_features, item_graph

HIDDEN = 4  # width of the features' hidden layer, in embedding sizes


class MENTORConfig(MultimodalConfig):
    """Settings of MENTOR; a weight of 0 is the ablation without that task."""

    layers: int = Field(2, ge=1, description="Layers on the interaction graph; their sum counts, with layer 0.")
    item_layers: int = Field(1, ge=1, description="Layers on the graph of nearest items; the last is added.")
    neighbours: int = Field(10, ge=1, description="Nearest items of an item, itself among them.")
    visual_weight: float = Field(0.1, ge=0, le=1, description="Share of images in the graph of nearest items.")
    alignment_weight: float = Field(0.1, ge=0, description="Weight of the alignment of distributions.")
    masking_weight: float = Field(1.5, ge=0, description="Weight of feature masking.")
    masking: float = Field(0.5, ge=0, lt=1, description="Share of the fused features that is masked.")
    perturbation_weight: float = Field(1e-3, ge=0, description="Weight of the contrast of two noisy propagations.")
    noise: float = Field(0.1, ge=0, description="Length of the noise that is added to a row in a layer.")
    temperature: float = Field(0.2, gt=0, description="tau of that contrast.")
    l2: float = Field(1e-3, ge=0, description="Weight of the mean squares of users' preferences and weights.")


class MENTOR(Recommender):
    """H = every modality's propagated rows side by side; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = MENTORConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "alignment_weight": (0.1, 1.0),
        "masking_weight": (0.5, 1.5),
        "perturbation_weight": (1e-3, 1e-2),
        "training.learning_rate": (1e-4, 1e-3),
    }
    config: MENTORConfig
    predictor: nn.Linear

    def __init__(self, config: MENTORConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        size, features = config.embedding_size, item_features(config, data)
        self.graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.item_graph = SparseGraph(item_graph(features, config.neighbours, config.visual_weight))
        self.user_weights = nn.Parameter(torch.full((data.user_count, len(features)), 1 / len(features)))
        self.preferences, self.encoders = nn.ParameterDict(), nn.ModuleDict()
        for modality, part in features.items():
            self.register_buffer(f"{modality}_features", part, persistent=False)
            self._add_encoder(modality, part.shape[1])
        if config.alignment_weight:  # nothing else reads the IDs
            self.item_ids = nn.Parameter(torch.empty(data.item_count, size))
            nn.init.xavier_normal_(self.item_ids, generator=generator)
            self._add_encoder("id", size)
        if config.masking_weight:
            self.predictor = linear(size * len(features), size * len(features), generator)

    def embed(self) -> tuple[Tensor, Tensor]:
        nodes = self._fuse(self._relate(self._propagate(self._modal())))
        users, items = nodes.split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        encoded = self._modal()
        modal = self._relate(self._propagate(encoded))
        fused = self._fuse(modal)  # (M + N, m d)
        parts = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        users, positives, negatives = take_rows(fused, *parts)  # each (B, m d)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if config.alignment_weight:
            ids = self._relate(self._propagate(self._encode("id", self.item_ids)))
            tables = [fused, ids, *modal.split(config.embedding_size, dim=1)]
            terms["alignment"] = config.alignment_weight * alignment(tables)
        kinds = [batch.users.unique(), batch.positives.unique() + self.user_count]
        if config.masking_weight:
            masked = [self._masking(rows) for rows in take_rows(fused, *kinds)]
            terms["masking"] = config.masking_weight * torch.stack(masked).sum()
        if config.perturbation_weight:
            noisy = [self._fuse(self._relate(self._propagate(encoded, config.noise))) for _ in range(2)]
            views = zip(*(take_rows(nodes, *kinds) for nodes in noisy), strict=True)
            contrasts = [infonce(first, second, config.temperature) for first, second in views]
            terms["perturbation"] = config.perturbation_weight * torch.stack(contrasts).sum()
        if config.l2:
            terms["l2"] = config.l2 * self._regulariser(batch)
        return terms

    def _add_encoder(self, name: str, width: int) -> None:
        """Free preferences of users, and two layers on the items' features (N, width)."""
        size = self.config.embedding_size
        self.preferences[name] = nn.Parameter(torch.empty(self.user_count, size))
        nn.init.xavier_normal_(self.preferences[name], generator=self.generator)
        layers = linear(width, HIDDEN * size, self.generator), linear(HIDDEN * size, size, self.generator)
        self.encoders[name] = nn.Sequential(layers[0], nn.LeakyReLU(), layers[1])

    def _encode(self, name: str, features: Tensor) -> Tensor:
        """Unit rows (M + N, d) of preferences and of what the encoder makes of features (N, w)."""
        return unit_rows(torch.cat([self.preferences[name], self.encoders[name](features)]))

    def _modal(self) -> Tensor:
        """What is known of nodes before propagation, modality by modality (M + N, m d)."""
        names = [name for name in self.encoders if name != "id"]
        return torch.cat([self._encode(name, self.get_buffer(f"{name}_features")) for name in names], dim=1)

    def _propagate(self, nodes: Tensor, noise: float = 0.0) -> Tensor:
        """Sum of layers 0..layers (M + N, w); `noise` moves each row of a layer away from zero, in each modality."""
        if not noise:
            return self.graph.layer_mean(nodes, self.config.layers) * (self.config.layers + 1)
        total = nodes
        for _ in range(self.config.layers):
            nodes = self.graph(nodes)
            uniform = torch.rand(nodes.shape, generator=self.generator)
            direction = unit_rows(to_device(uniform, self.device).unflatten(1, (-1, self.config.embedding_size)))
            nodes = nodes + noise * nodes.sign() * direction.flatten(1)
            total = total + nodes
        return total

    def _relate(self, nodes: Tensor) -> Tensor:
        """`nodes` (M + N, w) with what items hear from their nearest items."""
        users, items = nodes.split([self.user_count, self.item_count])
        related = items
        for _ in range(self.config.item_layers):
            related = self.item_graph(related)
        return torch.cat([users, items + related])

    def _fuse(self, nodes: Tensor) -> Tensor:
        """`nodes` (M + N, m d) with each user's weights of the modalities."""
        users, items = nodes.split([self.user_count, self.item_count])
        return torch.cat([users * self.user_weights.repeat_interleave(self.config.embedding_size, dim=1), items])

    def _masking(self, rows: Tensor) -> Tensor:
        """1 - cosine of predicted rows with masked ones, a mean over rows (n, w)."""
        target = dropout(rows.detach(), self.config.masking, self.generator)
        return 1 - (unit_rows(self.predictor(rows)) * unit_rows(target)).sum(1).mean()

    def _regulariser(self, batch: Batch) -> Tensor:
        tables = [take_rows(table, batch.users)[0] for name, table in self.preferences.items() if name != "id"]
        return torch.stack([moments(table.square())[0] for table in (*tables, self.user_weights)]).sum()


def moments(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of all numbers of a table (n, w)."""
    # Column by column first: a sum of many numbers at once would be split between threads, and round by their number.
    mean = table.mean(0).mean()
    return mean, (table - mean).square().mean(0).mean()


def alignment(tables: list[Tensor]) -> Tensor:
    """Sum over pairs of tables (n, w) of how far their means and their variances are apart; widths may differ."""
    found = torch.stack([torch.stack(moments(table)) for table in tables])  # (t, 2)
    first, second = zip(*combinations(range(len(tables)), 2), strict=True)
    return (found[list(first)] - found[list(second)]).abs().sum()
