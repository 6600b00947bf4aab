"""The contract between data, models and training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from model.config import ModelConfig

# What a model may need besides interactions, as messages call it.
INPUTS = {
    "text": "texts of items",
    "user_text": "texts of users",
    "modalities": "texts or images of items",
    "semantic_graph": "a semantic graph",
}


class DataError(ValueError):
    """A dataset that a model or the training cannot use; the message names the dataset and what is wrong."""


@dataclass(frozen=True)
class SemanticGraphs:
    """The semantic graph and the OMP supports it was fused from (ALGORITHM 5, 6).

    Parameters
    ----------
    fused
        Ĝ, shape (M + N, M + N), users first; its within-kind blocks are directed.
    users, items, users_to_items
        C^U (M, M), C^I (N, N) and C^UI (M, N): row t holds the support of target t.
    """

    fused: csr_array
    users: csr_array
    items: csr_array
    users_to_items: csr_array


@dataclass(frozen=True)
class RecData:
    """One dataset as models see it.

    Parameters
    ----------
    name
        The dataset's name, for messages.
    train, valid, test
        Interactions, shape (M, N), float32, binary.
    text, user_text
        Unit text vectors of items (N, d_t) and users (M, d_t), float32.
    visual
        Unit image vectors of items (N, d_v), float32.
    semantic
        Semantic graphs.

    Raises
    ------
    DataError
        On shapes that do not fit, values other than 1, or an empty graph.
    """

    name: str
    train: csr_array
    valid: csr_array
    test: csr_array
    text: np.ndarray | None = None
    user_text: np.ndarray | None = None
    visual: np.ndarray | None = None
    semantic: SemanticGraphs | None = None

    def __post_init__(self) -> None:
        users, items = self.train.shape
        for split in ("train", "valid", "test"):
            self._check_graph(split, getattr(self, split), (users, items))
        if self.train.nnz == 0:
            raise DataError(f"dataset {self.name}: train has no interactions")
        for field, rows in (("text", items), ("user_text", users), ("visual", items)):
            array = getattr(self, field)
            if array is not None and (array.ndim != 2 or len(array) != rows):
                raise DataError(f"dataset {self.name}: {field} has shape {array.shape}, expected {rows} rows")
        if self.semantic is not None:
            nodes = users + items
            self._check_graph("semantic.fused", self.semantic.fused, (nodes, nodes))
            self._check_graph("semantic.users", self.semantic.users, (users, users))
            self._check_graph("semantic.items", self.semantic.items, (items, items))
            self._check_graph("semantic.users_to_items", self.semantic.users_to_items, (users, items))
            if self.semantic.fused.nnz == 0:
                raise DataError(f"dataset {self.name}: semantic.fused has no edges; look at the fusion settings")

    @property
    def user_count(self) -> int:
        return int(self.train.shape[0])

    @property
    def item_count(self) -> int:
        return int(self.train.shape[1])

    @property
    def offers(self) -> frozenset[str]:
        """What a model may ask for in its `needs`."""
        modalities = self.text if self.visual is None else self.visual  # any kind of item features
        optional = {
            "text": self.text,
            "user_text": self.user_text,
            "modalities": modalities,
            "semantic_graph": self.semantic,
        }
        return frozenset({"interactions", *(name for name, value in optional.items() if value is not None)})

    def _check_graph(self, field: str, graph: csr_array, shape: tuple[int, int]) -> None:
        if graph.shape != shape:
            raise DataError(f"dataset {self.name}: {field} has shape {graph.shape}, expected {shape}")
        if graph.nnz and not (graph.data == 1).all():
            wrong = graph.data[graph.data != 1][0]
            raise DataError(f"dataset {self.name}: {field} holds the value {wrong}; only 1 may be stored")
        if not graph.has_canonical_format:
            raise DataError(f"dataset {self.name}: {field} has unsorted or repeated entries; call sum_duplicates()")


@dataclass(frozen=True)
class Batch:
    """One training step's triplets: int64 tensors of one length B, on the CPU, where models prepare their indices."""

    users: Tensor
    positives: Tensor
    negatives: Tensor


class Recommender(nn.Module):
    """Base of every model.

    Parameters
    ----------
    config
        Settings, an instance of the class's `Config`.
    data
        The dataset; it has to offer everything in `needs`.
    generator
        CPU generator behind everything the model draws: first its weights, later pruning and sampling. The
        model keeps it, so that a checkpoint can hold its state.
    """

    Config: ClassVar[type[ModelConfig]]
    needs: ClassVar[frozenset[str]]
    # What a sweep tries by default: setting (`training.learning_rate` for one of training) -> values.
    search: ClassVar[Mapping[str, Sequence[Any]]]

    generator: torch.Generator

    def __init__(self, config: ModelConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__()
        name = type(self).__name__
        if type(config) is not self.Config:
            raise TypeError(f"{name} takes a {self.Config.__qualname__}, not a {type(config).__qualname__}")
        if missing := sorted(self.needs - data.offers):
            raise DataError(
                f"{name} needs {' and '.join(INPUTS[need] for need in missing)}, which dataset {data.name} lacks; add "
                "them to its source, or choose a model that reads interactions only, for example lightgcn"
            )
        self.config = config
        self.user_count = data.user_count
        self.item_count = data.item_count
        self.generator = generator
        self._embeddings: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def embed(self) -> tuple[Tensor, Tensor]:
        """Final embeddings of users (M, d) and items (N, d)."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised."""
        raise NotImplementedError

    def scores(self, users: Tensor) -> Tensor:
        """Scores of every item for `users` (B,) -> (B, N).

        Embeddings are computed once per call of `eval()` and kept until `train()`, `eval()` or
        `load_state_dict()` is called again.
        """
        if self.training:
            user_embeddings, item_embeddings = self.embed()
        else:
            if self._embeddings is None:
                with torch.no_grad():
                    self._embeddings = self.embed()
            user_embeddings, item_embeddings = self._embeddings
        return user_embeddings[users] @ item_embeddings.T

    def before_epoch(self, epoch: int) -> None:
        """Prepare an epoch (counted from 1), for example draw a pruned graph."""

    def weights(self) -> dict[str, Tensor]:
        """Tensors that scores follow from, by name: of `state_dict` all but the state of an optimizer of its own."""
        return self.state_dict()

    def train(self, mode: bool = True) -> Self:
        self._embeddings = None
        return super().train(mode)
