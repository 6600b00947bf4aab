"""SGL: LightGCN with a contrast between two views of the interaction graph, each with some edges dropped.

Wu et al., *Self-supervised Graph Learning for Recommendation*, SIGIR 2021, in its variant with edge dropout (SGL-ED):
the views are those of its Section 3.1, the contrast that of Section 3.2, added to the main loss as in Section 3.3.
As in the paper and its authors' code, both views are drawn once per epoch and normalised by their own degrees, the
contrast is InfoNCE of cosines with every user (or item) as a candidate, the anchors are the batch's users and positive
items, and the recommendation loss and the scores use the whole graph. The defaults are those of the code.

Deviation: a contrast is a mean over the batch's distinct nodes, where the code sums over triplets. RLMRec's SGL differs
in more: it draws both views anew in every step, drops the two directions of an edge separately, keeps the degrees of
the whole graph, takes negative items for anchors too, leaves out 20 % of the edges, and its L2 term holds every
parameter.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from model.base import Batch, RecData
from model.baselines.lightgcn import LightGCN, LightGCNConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, drop_edges, to_device
from model.losses import infonce


class SGLConfig(LightGCNConfig):
    """Settings of SGL."""

    layers: int = Field(3, ge=1, description="Propagation layers; the output is the mean of layers 0..layers.")
    dropping: float = Field(0.1, gt=0, lt=1, description="Share of interaction edges that each view leaves out.")
    contrast_weight: float = Field(0.1, gt=0, description="Weight of the contrast between the views.")
    contrast_temperature: float = Field(0.2, gt=0, description="Temperature of the contrast between the views.")


class SGL(LightGCN):
    """LightGCN's scores and loss, and InfoNCE between a batch's nodes in one view and all nodes in the other."""

    Config: ClassVar[type[SGLConfig]] = SGLConfig
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "dropping": (0.1, 0.2, 0.4),
        "contrast_weight": (0.01, 0.1, 0.5),
        "contrast_temperature": (0.1, 0.2, 0.5),
    }
    config: SGLConfig

    def __init__(self, config: SGLConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self._train = data.train
        self.first_view = self.second_view = self.graph

    def before_epoch(self, epoch: int) -> None:
        """Draw this epoch's two views."""
        self.first_view, self.second_view = self._draw_view(), self._draw_view()

    def terms(self, inputs: Tensor, batch: Batch, *others: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        terms, taken = super().terms(inputs, batch, *others)
        return {**terms, "contrast": self.config.contrast_weight * self._contrast(inputs, batch)}, taken

    def _draw_view(self) -> SparseGraph:
        kept = drop_edges(self._train, self.config.dropping, self.generator)
        return SparseGraph(bipartite_adjacency(kept), symmetric=True).to(self.device)

    def _contrast(self, inputs: Tensor, batch: Batch) -> Tensor:
        """Sum of the contrasts of users and of items."""
        users, items = batch.users.unique(), batch.positives.unique()
        nodes = [users, items + self.user_count]
        rows = Rows.of(torch.cat(nodes), len(inputs), self.device)
        anchors = rows.take(self.first_view.layer_mean(inputs, self.config.layers, rows), *nodes)
        candidates = self.second_view.layer_mean(inputs, self.config.layers).split([self.user_count, self.item_count])
        terms = [
            infonce(anchor, candidate, self.config.contrast_temperature, to_device(matches, self.device))
            for anchor, candidate, matches in zip(anchors, candidates, (users, items), strict=True)
        ]
        return torch.stack(terms).sum()
