"""SCALE: subspace-aware semantic graphs and contrastive alignment (the paper's equations 7-13).

Where the paper leaves a choice, the reading is: every loss term is a mean over its targets, so a weight does not
depend on the batch size; a relation target gets one positive from its OMP support (C, not Ĝ) per step; the batch's
users and positive items are the targets of both alignments; validation and test use the unpruned graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_array
from torch import Tensor

from model.base import Batch, DataError, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, degree_normalised, embedding_table, prune_edges
from model.losses import bpr, embedding_l2, infonce, relation_contrast
from model.sampling import ComplementSampler, SupportSampler


class ScaleConfig(ModelConfig):
    """Settings of SCALE; a weight of 0 is the ablation without that term."""

    interaction_layers: int = Field(2, ge=0, description="L_I: layers on the interaction graph.")
    semantic_layers: int = Field(1, ge=1, description="L_S: layers on the semantic graph.")
    pruning: float = Field(0.6, ge=0, lt=1, description="rho: share of interaction edges left out in each epoch.")
    semantic_weight: float = Field(1e-2, ge=0, description="lambda_s: weight of the semantic alignment.")
    semantic_temperature: float = Field(0.6, gt=0, description="tau_s.")
    contrast_size: int | None = Field(
        None, ge=2, description="Users and items drawn from a batch for the semantic alignment; default: all of it."
    )
    relation_weight: float = Field(5e-2, ge=0, description="lambda_r: weight of the relation alignment.")
    relation_temperature: float = Field(0.2, gt=0, description="tau_r.")
    negatives: int = Field(1, ge=1, description="|V|: unrelated entities drawn per relation target.")
    l2: float = Field(0.0, ge=0, description="Weight of an L2 term on the batch's ID embeddings; the paper has none.")


class Scale(Recommender):
    """H = H̃ (interaction graph) + Ĥ (semantic graph), both from the same ID embeddings Z; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = ScaleConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "semantic_graph"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {  # the paper's Fig. 5
        "semantic_weight": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "relation_weight": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "interaction_layers": (1, 2, 3),
        "negatives": (1, 5),
    }
    config: ScaleConfig

    def __init__(self, config: ScaleConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        assert data.semantic is not None  # the base class has checked `needs`
        self._train = data.train
        self.whole_graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.training_graph = self.whole_graph
        self.semantic_graph = SparseGraph(degree_normalised(data.semantic.fused))
        self.embeddings = embedding_table((data.user_count, data.item_count), config.embedding_size, generator)  # Z
        supports = data.semantic.users, data.semantic.items, data.semantic.users_to_items
        if config.relation_weight and not any(support.nnz for support in supports):
            raise DataError(f"dataset {data.name}: all OMP supports are empty; set relation_weight to 0 without them")
        items = data.user_count  # the first item's node number
        self._relations = [
            _Relation(support, targets=first_target, entities=first_entity, negatives=config.negatives)
            for support, first_target, first_entity in zip(supports, (0, items, 0), (0, items, items), strict=True)
        ]

    def before_epoch(self, epoch: int) -> None:
        """Draw this epoch's interaction graph: degree-sensitive pruning, as in FREEDOM."""
        if self.config.pruning:
            kept = prune_edges(self._train, self.config.pruning, self.generator)
            self.training_graph = SparseGraph(bipartite_adjacency(kept), symmetric=True).to(self.device)

    def embed(self) -> tuple[Tensor, Tensor]:
        interaction, semantic = self._convolve()
        users, items = (interaction + semantic).split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        users, items = batch.users.unique(), batch.positives.unique() + self.user_count
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        contrasted = [self._sample(nodes) for nodes in (users, items)] if self.config.semantic_weight else []
        drawn = self._draw_relations(users, items) if self.config.relation_weight else []
        relations = [nodes for relation in drawn for nodes in relation]
        rows = Rows.of(torch.cat([*triplets, *contrasted, *relations]), len(self.embeddings), self.device)

        interaction, semantic = self._convolve(rows)  # rows of H̃ and Ĥ, (U, d) each
        taken = rows.take(interaction + semantic, *triplets, *relations)  # rows of H
        users, positives, negatives = taken[:3]  # (B, d) each
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}  # (12)
        if self.config.semantic_weight:
            views = zip(rows.take(interaction, *contrasted), rows.take(semantic, *contrasted), strict=True)
            alignment = [infonce(near, far, self.config.semantic_temperature) for near, far in views]  # (8)
            terms["semantic_alignment"] = self.config.semantic_weight * torch.stack(alignment).sum()  # (9)
        if self.config.relation_weight:
            terms["relation_alignment"] = self.config.relation_weight * self._relation_alignment(taken[3:])
        if self.config.l2:
            own = self.embeddings.index_select(0, rows.ids)
            terms["l2"] = self.config.l2 * embedding_l2(*rows.take(own, *triplets))
        return terms  # their sum is (13)

    def _convolve(self, rows: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Both graph convolutions (7), or rows of them: the mean over layers of one graph, the last of the other."""
        graph = self.training_graph if self.training else self.whole_graph
        interaction = graph.layer_mean(self.embeddings, self.config.interaction_layers, rows)
        semantic: Tensor = self.embeddings
        for _ in range(self.config.semantic_layers - 1):
            semantic = self.semantic_graph(semantic)
        return interaction, self.semantic_graph(semantic, rows)

    def _sample(self, nodes: Tensor) -> Tensor:
        """At most `contrast_size` of `nodes`."""
        size = self.config.contrast_size
        if size is None or size >= len(nodes):
            return nodes
        return nodes[torch.randperm(len(nodes), generator=self.generator)[:size]]

    def _relation_alignment(self, rows: tuple[Tensor, ...]) -> Tensor:
        """Sum over relations (11) of the contrast of their targets, positives and negatives (10)."""
        total = self.embeddings.new_zeros(())
        for targets, positives, negatives in zip(rows[0::3], rows[1::3], rows[2::3], strict=True):
            negatives = negatives.unflatten(0, (len(targets), self.config.negatives))  # (T, |V|, d)
            total = total + relation_contrast(targets, positives, negatives, self.config.relation_temperature)
        return total

    def _draw_relations(self, users: Tensor, items: Tensor) -> list[list[Tensor]]:
        """Node numbers of targets, positives and negatives for uu, ii and ui; one without targets is left out."""
        drawn = [
            relation.draw(nodes.numpy(), self.generator)
            for relation, nodes in zip(self._relations, (users, items, users), strict=True)
        ]
        return [[torch.from_numpy(part) for part in parts] for parts in drawn if len(parts[0])]


class _Relation:
    """Samples of one relation: positives from a target's OMP support, negatives outside it (never the target itself).

    `targets` and `entities` are the node numbers at which the kinds of the rows and of the columns begin.
    """

    def __init__(self, support: csr_array, targets: int, entities: int, negatives: int) -> None:
        self._targets = targets
        self._entities = entities
        self._count = negatives
        self._positives = SupportSampler(support)
        self._negatives = ComplementSampler(support, exclude_self=targets == entities)
        # A target with an empty support, or with nothing outside it, takes no part.
        self._usable = (self._positives.sizes > 0) & (self._negatives.sizes > 0)

    def draw(self, nodes: np.ndarray, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Node numbers of the T usable targets among `nodes`, T positives, and T * |V| negatives (target by target)."""
        targets = nodes - self._targets
        targets = targets[self._usable[targets]]
        positives = self._positives.draw(targets, generator)
        negatives = self._negatives.draw(targets.repeat(self._count), generator)
        return targets + self._targets, positives + self._entities, negatives + self._entities
