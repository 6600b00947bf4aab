"""SLMRec: IDs and each modality on the interaction graph, with self-supervision between augmented views of them.

Tao et al., *Self-Supervised Learning for Multimedia Recommendation*, IEEE Transactions on Multimedia 2022. IDs and
projected features are propagated side by side, with the same embeddings for users, and fused by a linear layer. The
main task is InfoNCE between users and their items within a batch. A second one compares views of a node that one of
three augmentations makes: `FAC` contrasts items in a fine space, where one modality meets the IDs, and a coarser one,
where text meets the two of them; `FD` drops entries after every layer; `FM` leaves out all items' IDs or features of
one kind, another one in either view.

What differs from the code in MMRec, which is where the setting without sound comes from: the step of `FAC` that took
sound along is left out whole, where MMRec keeps its linear map; `FD` and `FM`, which MMRec carries along without
being able to run them, are as in the authors' code, with text and images. Adam's weight decay is written as what it
is there, an L2 term on all weights. Linear layers start with zero bias, and one of the two that meet in `FAC` has
none: it would change nothing. Scores go through no sigmoid, which would change no ranking. The authors' choice of `FD`
and `FM` in the same training (`FD+FM`) is left out.

The defaults of the model are the authors'. Their step size is 0.01; here it is that of the training, 0.001 unless set,
and the search space has both.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from model.base import Batch, RecData, Recommender
from model.config import ModelConfig
from model.layers import Rows, SparseGraph, bipartite_adjacency, dropout, embedding_table, linear, to_device
from model.losses import infonce
from model.modalities import MultimodalConfig, item_features


class SLMRecConfig(MultimodalConfig):
    """Settings of SLMRec."""

    layers: int = Field(3, ge=0, description="Propagation layers; the output is the mean of layers 0..layers.")
    temperature: float = Field(0.2, gt=0, description="tau of the main task.")
    augmentation: Literal["FAC", "FD", "FM"] = Field(
        "FAC", description="Views to contrast: fine and coarse spaces, feature dropout or feature masking."
    )
    contrast_weight: float = Field(0.1, ge=0, description="Weight of the contrast of views (ssl_alpha).")
    contrast_temperature: float = Field(0.2, gt=0, description="tau of the contrast of views (ssl_temp).")
    dropping: float = Field(0.3, ge=0, lt=1, description="Share of entries that `FD` drops after a layer.")
    l2: float = Field(1e-4, ge=0, description="Weight of half the squared norm of all weights (weight decay).")


class SLMRec(Recommender):
    """H = linear layer, one for users and one for items, on propagated IDs and features; score = dot product."""

    Config: ClassVar[type[ModelConfig]] = SLMRecConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "modalities"})
    search: ClassVar[Mapping[str, Sequence[Any]]] = {
        "contrast_weight": (0.01, 0.05, 0.1, 0.5, 1.0),
        "contrast_temperature": (0.1, 0.2, 0.5, 1.0),
        "training.learning_rate": (1e-4, 1e-3, 1e-2),
    }
    config: SLMRecConfig

    def __init__(self, config: SLMRecConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        size = config.embedding_size
        self.graph = SparseGraph(bipartite_adjacency(data.train), symmetric=True)
        self.embeddings = embedding_table((data.user_count, data.item_count), size, generator)
        self.projections = nn.ModuleDict()
        for modality, features in item_features(config, data).items():
            self.register_buffer(f"{modality}_features", F.normalize(features), persistent=False)
            self.projections[modality] = linear(features.shape[1], size, generator)
        kinds = 1 + len(self.projections)
        self.fuse_users, self.fuse_items = (linear(kinds * size, size, generator) for _ in range(2))
        if config.contrast_weight and config.augmentation == "FAC":
            self.coarser, self.finer = nn.ModuleList(), nn.ParameterList()
            for number in range(len(self.projections)):
                width = size if number == 0 else (size + 1) // 2
                self.coarser.append(linear(size, width, generator))
                self.finer.append(nn.init.xavier_uniform_(torch.empty(size, width), generator=generator))

    def embed(self) -> tuple[Tensor, Tensor]:
        nodes = self.graph.layer_mean(self._encode(), self.config.layers)
        users, items = nodes.split([self.user_count, self.item_count])
        return self.fuse_users(users), self.fuse_items(items)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        pairs = [batch.users, batch.positives + self.user_count]
        rows = Rows.of(torch.cat(pairs), len(self.embeddings), self.device)
        encoded = self._encode()
        users, items = rows.take(self.graph.layer_mean(encoded, self.config.layers, rows), *pairs)  # (B, k d) each
        terms = {"infonce": infonce(self.fuse_users(users), self.fuse_items(items), self.config.temperature)}
        if self.config.contrast_weight:
            if self.config.augmentation == "FAC":
                contrast = self._fine_and_coarse(items)
            else:
                contrast = self._contrast(*(self._view(inputs, rows, pairs) for inputs in self._augment(encoded)))
            terms["contrast"] = self.config.contrast_weight * contrast
        if self.config.l2:
            # Column by column first, so that no sum is split between threads.
            norms = [weight.square().sum(0).sum() for weight in self.parameters()]
            terms["l2"] = self.config.l2 / 2 * torch.stack(norms).sum()
        return terms

    def _encode(self) -> Tensor:
        """Before propagation (M + N, k d): users' embeddings beside items' IDs, images and text, in this order."""
        users, items = self.embeddings.split([self.user_count, self.item_count])
        found = {name: layer(self.get_buffer(f"{name}_features")) for name, layer in self.projections.items()}
        of_items = torch.cat([items, *reversed(found.values())], dim=1)
        return torch.cat([users.repeat(1, 1 + len(found)), of_items])

    def _fine_and_coarse(self, items: Tensor) -> Tensor:
        """Contrast of a batch's items, their IDs with the first modality, then both with the second, by products."""
        coarse, *fine = items.split(self.config.embedding_size, dim=1)  # IDs, and each modality (B, d)
        total, own = self.embeddings.new_zeros(()), torch.arange(len(items), device=self.device)
        for part, coarser, finer in zip(fine, self.coarser, self.finer, strict=True):
            coarse = coarser(coarse)
            logits = coarse @ (part @ finer).T / self.config.contrast_temperature  # (B, B)
            total = total + F.cross_entropy(logits, own)
        return total

    def _augment(self, encoded: Tensor) -> list[Tensor]:
        """What two views start from: the same for `FD`, for `FM` each without items of another kind."""
        if self.config.augmentation == "FD":
            return [encoded, encoded]
        users, items = encoded.split([self.user_count, self.item_count])
        kinds = items.unflatten(1, (-1, self.config.embedding_size))  # (N, k, d)
        views = []
        for masked in torch.randperm(kinds.shape[1], generator=self.generator)[:2]:
            kept = to_device((torch.arange(kinds.shape[1]) != masked).float(), self.device)
            views.append(torch.cat([users, (kinds * kept[:, None]).flatten(1)]))
        return views

    def _view(self, nodes: Tensor, rows: Rows, pairs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """A view of a batch's users and items (B, d): propagated, with dropout for `FD`, and fused."""
        if self.config.augmentation == "FD":
            total = nodes
            for _ in range(self.config.layers):
                nodes = dropout(self.graph(nodes), self.config.dropping, self.generator)
                total = total + nodes
            selected = rows.select(total) / (self.config.layers + 1)
        else:
            selected = self.graph.layer_mean(nodes, self.config.layers, rows)
        users, items = rows.take(selected, *pairs)
        return self.fuse_users(users), self.fuse_items(items)

    def _contrast(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        """InfoNCE between two views of users and of items."""
        kinds = zip(first, second, strict=True)
        return torch.stack([infonce(*views, self.config.contrast_temperature) for views in kinds]).sum()
