"""MGCN: behaviour purifies features, and decides how much of each modality counts.

Yu et al., *Multi-View Graph Convolutional Network for Multimedia Recommendation*, ACM MM 2023. Numbers of
equations are those that readers' notes on the paper give.

- User-item view (eqs. 3 to 5): LightGCN on ID embeddings.
- Behaviour-guided purifier (eqs. 1 and 2): an item's ID embedding, gated by its projected features, for each modality.
- Item-item view (eqs. 6 to 9): the purified features go through that modality's graph of nearest items, the k nearest
  by cosine, weighted by it; users take those of their items, normalised as in the user-item view (eq. 10).
- Behaviour-aware fuser (eqs. 11 to 14): attention over modalities gives what they share; what sets each apart from that
  is gated by the user-item view. The mean of the parts, side information (eq. 15), is added to the user-item view
  (eq. 17).
- Side information and user-item view of the same users, and of the same items, are contrasted (eq. 16); eq. 19 is the
  sum of the losses.

What differs from the published code: features stay as they are, where the code trains them along; their projection
has no bias, since the gate behind it has one; the contrast's targets are the batch's distinct users and positive
items, where the code takes them as often as the batch holds them; negative cosines count as 0. The parts are divided
by their number, one more than there are modalities, as in the code. One modality alone has attention 1, nothing sets
it apart, and both gates and attention have no effect. The code's learning rate falls by 0.96 in 50 epochs, which
`learning_rate_decay` of the training does. The weight of the contrast is one of three that the code searches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from scipy.sparse import csr_array, eye_array, vstack
from torch import Tensor, nn

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, embedding_table, linear
from model.losses import bpr, embedding_l2, infonce
from model.modalities import MultimodalConfig, Projections, item_features, similarity_graph


class MGCNConfig(MultimodalConfig):
    """Settings of MGCN."""

    layers: int = Field(2, ge=0, description="Layers on the interaction graph; the output is their mean.")
    item_layers: int = Field(1, ge=1, description="Layers on the item graphs; the output is the last one.")
    neighbours: int = Field(10, ge=1, description="k: nearest items by each modality, an item itself among them.")
    contrast_weight: float = Field(0.01, ge=0, description="lambda_c: weight of the contrast.")
    temperature: float = Field(0.2, gt=0, description="tau: of the contrast.")
    l2: float = Field(1e-4, ge=0, description="Weight of the L2 term on the batch's final embeddings.")


class MGCN(Recommender):
    """H = user-item view + side information; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = MGCNConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "contrast_weight": (0.001, 0.01, 0.1),
        "training.learning_rate": (5e-4, 1e-3),
    }
    config: MGCNConfig

    def __init__(self, config: MGCNConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        size = config.embedding_size
        adjacency = bipartite_adjacency(data.train)
        self.graph = SparseGraph(adjacency, symmetric=True)
        # Items' features to all nodes (M + N, N): users take their items', items have their own.
        of_users = adjacency[: data.user_count, data.user_count :]
        own = eye_array(data.item_count, format="csr", dtype=of_users.dtype)
        self.spread = SparseGraph(csr_array(vstack([of_users, own], format="csr")))
        self.embeddings = embedding_table((data.user_count, data.item_count), size, generator)
        features = item_features(config, data)
        self.projections = Projections(features, size, generator, bias=False)
        self.item_graphs = nn.ModuleDict(
            {modality: SparseGraph(similarity_graph(part, config.neighbours)) for modality, part in features.items()}
        )
        self.purifiers = nn.ModuleDict({modality: linear(size, size, generator) for modality in features})
        self.preferences = nn.ModuleDict({modality: linear(size, size, generator) for modality in features})
        self.query = linear(size, size, generator)
        self.attention = nn.Parameter(torch.empty(size, 1))
        nn.init.xavier_uniform_(self.attention, generator=generator)

    def embed(self) -> tuple[Tensor, Tensor]:
        behaviour, side = self._views()
        users, items = (behaviour + side).split([self.user_count, self.item_count])
        return users, items

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        triplets = [batch.users, batch.positives + self.user_count, batch.negatives + self.user_count]
        rows = Rows.of(torch.cat(triplets), len(self.embeddings), self.device)
        behaviour, side = self._views(rows)
        users, positives, negatives = rows.take(behaviour + side, *triplets)  # each (B, d)
        terms = {"bpr": bpr((users * positives).sum(1), (users * negatives).sum(1))}
        if self.config.contrast_weight:
            kinds = triplets[0].unique(), triplets[1].unique()
            views = zip(rows.take(side, *kinds), rows.take(behaviour, *kinds), strict=True)
            contrasts = [infonce(anchors, candidates, self.config.temperature) for anchors, candidates in views]
            terms["contrast"] = self.config.contrast_weight * torch.stack(contrasts).sum()
        if self.config.l2:
            terms["l2"] = self.config.l2 * embedding_l2(users, positives, negatives)
        return terms

    def purified(self) -> dict[str, Tensor]:
        """The items' ID embeddings, gated by the features of each modality: (N, d) each."""
        items = self.embeddings[self.user_count :]
        return {
            modality: items * torch.sigmoid(self.purifiers[modality](projected))
            for modality, projected in self.projections().items()
        }

    def fuse(self, behaviour: Tensor, modalities: dict[str, Tensor]) -> Tensor:
        """Side information (n, d) of nodes from their user-item view (n, d) and their features (n, d) by modality."""
        stacked = torch.stack(list(modalities.values()))  # (|M|, n, d)
        weights = (torch.tanh(self.query(stacked)) @ self.attention).softmax(0)  # (|M|, n, 1)
        shared = (weights * stacked).sum(0)
        parts = [shared]
        for modality, features in modalities.items():
            parts.append(torch.sigmoid(self.preferences[modality](behaviour)) * (features - shared))
        return torch.stack(parts).mean(0)

    def _views(self, rows: Rows | None = None) -> tuple[Tensor, Tensor]:
        """User-item view and side information (M + N, d), or rows of them."""
        behaviour = self.graph.layer_mean(self.embeddings, self.config.layers, rows)
        modalities = {}
        for modality, items in self.purified().items():
            for _ in range(self.config.item_layers):
                items = self.item_graphs[modality](items)
            modalities[modality] = self.spread(items, rows)
        return behaviour, self.fuse(behaviour, modalities)
