"""Item features by modality, and the graph of nearest items by them: what multimodal models share."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from scipy.sparse import csr_array
from torch import Tensor, nn

from model.base import DataError, RecData
from model.config import ModelConfig
from model.layers import degree_normalised

Modality = Literal["text", "visual"]

BLOCK = 1024  # rows of the similarity matrix that are searched at a time


class MultimodalConfig(ModelConfig):
    """Base of the settings of models that read item features."""

    modalities: tuple[Modality, ...] | None = Field(
        None, min_length=1, description="Item features to read; default: all that the dataset has."
    )

    @field_validator("modalities")
    @classmethod
    def _in_order(cls, modalities: tuple[Modality, ...] | None) -> tuple[Modality, ...] | None:
        if modalities is not None and len(set(modalities)) < len(modalities):
            raise ValueError("name each modality once, for example [text, visual]")
        return modalities and tuple(sorted(modalities))


def item_features(config: MultimodalConfig, data: RecData) -> dict[Modality, Tensor]:
    """Features (N, d_m) of every modality that the settings ask for, `text` before `visual`.

    Raises
    ------
    DataError
        When the dataset lacks a modality that is asked for by name.
    """
    found: dict[Modality, np.ndarray | None] = {"text": data.text, "visual": data.visual}
    features: dict[Modality, Tensor] = {}
    for modality, array in found.items():
        if array is None and modality in (config.modalities or ()):
            raise DataError(
                f"dataset {data.name} has no {modality} features; take {modality} out of the setting `modalities`"
            )
        if array is not None and (config.modalities is None or modality in config.modalities):
            features[modality] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return features


def nearest_items(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k items with the highest cosine to each item, itself among them: ids and cosines, (N, k) each.

    Two published codes (LATTICE, FREEDOM) count an item among its own neighbours. A zero row has cosine 0 with all.
    """
    units = torch.nn.functional.normalize(features)
    k = min(k, len(units))
    best = [torch.topk(block @ units.T, k) for block in units.split(BLOCK)]
    return torch.cat([part.indices for part in best]), torch.cat([part.values for part in best])


def neighbour_graph(features: Tensor, k: int) -> csr_array:
    """Edges (N, N) from each item to its `nearest_items`, all 1, sorted.

    A zero row, an item without features, has no neighbours and is nobody's: its cosines of 0 tell of no nearness.
    """
    described = features.any(dim=1)  # (N,)
    items = described.nonzero()[:, 0]
    ids, _ = nearest_items(features[items], k)
    columns = items[ids].sort(dim=1).values.reshape(-1).numpy()
    ends = np.concatenate([[0], np.cumsum(described.numpy() * ids.shape[1])])
    data = np.ones(len(columns), dtype=np.float32)
    return csr_array((data, columns, ends), shape=(len(features), len(features)))


def similarity_weights(ids: Tensor, cosines: Tensor) -> Tensor:
    """Weights of edges to neighbours, D^-1/2 S D^-1/2 with row sums in D: (N, k), differentiable in the cosines.

    Parameters
    ----------
    ids, cosines
        Every item's neighbours and its similarity to them, (N, k) each; a negative one counts as 0, as in LATTICE.
    """
    similarities = cosines.clamp(min=0)
    degree = similarities.sum(1)
    scale = torch.where(degree > 0, degree, 1.0).rsqrt()  # a row of zeros keeps its zeros
    # Unlike scale[ids], this sums its gradients in one order, however many threads there are.
    return scale[:, None] * similarities * nn.functional.embedding(ids, scale[:, None])[..., 0]


def similarity_graph(features: Tensor, k: int) -> csr_array:
    """Edges (N, N) from each item to its `nearest_items` with their `similarity_weights`, sorted (LATTICE, MGCN)."""
    ids, cosines = nearest_items(features, k)
    weights = similarity_weights(ids, cosines)
    count, width = ids.shape
    ends = np.arange(0, ids.numel() + 1, width)
    graph = csr_array((weights.reshape(-1).numpy(), ids.reshape(-1).numpy(), ends), shape=(count, count))
    graph.sort_indices()
    return graph


class Projections(nn.Module):
    """A linear map of every modality's features, which stay as they are, to vectors of one size.

    Parameters
    ----------
    features
        Of every modality, (N, d_m).
    size
        Numbers per projected vector.
    bias
        Whether a constant vector is added; a model whose result it cannot change goes without.
    """

    def __init__(self, features: dict[Modality, Tensor], size: int, generator: torch.Generator, *, bias: bool) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for modality, array in features.items():
            self.register_buffer(modality, array, persistent=False)
            self.weights[modality] = nn.Parameter(torch.empty(array.shape[1], size))
            nn.init.xavier_uniform_(self.weights[modality], generator=generator)
            if bias:
                self.biases[modality] = nn.Parameter(torch.zeros(size))

    def forward(self, items: Tensor | None = None) -> dict[str, Tensor]:
        """Projected features (N, size) by modality, or of `items` (U,) alone (U, size)."""
        projected: dict[str, Tensor] = {}
        for modality, weight in self.weights.items():
            features = self.get_buffer(modality)
            projected[modality] = (features if items is None else features.index_select(0, items)) @ weight
            if modality in self.biases:
                projected[modality] = projected[modality] + self.biases[modality]
        return projected


def item_graph(features: Mapping[Modality, Tensor], k: int, visual_weight: float) -> csr_array:
    """The normalised `neighbour_graph` (N, N) of the one modality, or the weighted sum of the two (FREEDOM, MENTOR)."""
    graphs = {modality: degree_normalised(neighbour_graph(part, k)) for modality, part in features.items()}
    if len(graphs) == 1:
        return next(iter(graphs.values()))
    mixed = csr_array((1 - visual_weight) * graphs["text"] + visual_weight * graphs["visual"])
    mixed.sort_indices()
    return mixed
