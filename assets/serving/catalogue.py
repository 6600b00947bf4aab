"""What a service holds of a dataset and its trained models: ids, texts, histories, graph and embeddings, in memory."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
from scipy.sparse import csr_array

from assets.model_groups import group_of
from assets.results import NothingThereError
from assets.storage import read
from assets.store import stored_path
from assets.training import evaluation_of, interaction_matrix, pairs_of
from assets.versions import INPUTS, latest, recorded_version
from model.registry import MODELS, entry
from pipeline.embeddings import normalised


class Ids:
    """Raw ids of users or items, with look-up by id and by prefix.

    Parameters
    ----------
    raw
        In row order.
    """

    def __init__(self, raw: list[str]) -> None:
        self.raw = raw
        self.rows = {name: row for row, name in enumerate(raw)}
        self._ordered = sorted(raw)

    def __len__(self) -> int:
        return len(self.raw)

    def starting_with(self, prefix: str, limit: int) -> list[str]:
        """The first `limit` ids, in the order of their characters, that start with `prefix`."""
        start = bisect_left(self._ordered, prefix)
        return [name for name in self._ordered[start : start + limit] if name.startswith(prefix)]


@dataclass(frozen=True)
class Catalogue:
    """What all models of a dataset share.

    Parameters
    ----------
    users, items
        M and N raw ids.
    titles
        Of the items; None where the data has none.
    user_profiles, item_profiles
        Profile texts; empty where there is none. No user has one before a model that reads them has been made.
    history
        Training interactions, (M, N), sorted indices.
    degrees
        Training interactions of each item, (N,) int64.
    text
        Unit text vectors of the items, (N, d_t) float32.
    semantic
        The semantic graph with every edge in both directions, (M + N, M + N), users first; None before a model that
        reads it has been made.
    """

    dataset: str
    users: Ids
    items: Ids
    titles: list[str | None]
    user_profiles: list[str]
    item_profiles: list[str]
    history: csr_array
    degrees: np.ndarray
    text: np.ndarray
    semantic: csr_array | None

    def history_of(self, user: int) -> np.ndarray:
        """Items of a user's training split, ascending, (h,) int32."""
        return self.history.indices[self.history.indptr[user] : self.history.indptr[user + 1]]

    def neighbours(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the users and of the items beside a node of the semantic graph, ascending; item j is node M + j."""
        if self.semantic is None:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        found = self.semantic.indices[self.semantic.indptr[node] : self.semantic.indptr[node + 1]]
        return found[found < len(self.users)], found[found >= len(self.users)] - len(self.users)


@dataclass(frozen=True)
class TrainedModel:
    """Final embeddings of a model, whose score of an item for a user is their dot product.

    Parameters
    ----------
    users, items
        (M, d) and (N, d), float32, all finite.
    directions
        The items' embeddings at unit length, (N, d); a zero row stays zero.
    test
        Test metric -> its mean over users, as measured after the training.
    """

    name: str
    title: str
    users: np.ndarray
    items: np.ndarray
    directions: np.ndarray
    test: dict[str, float]


def load_catalogue(dataset: str) -> Catalogue:
    """What the pipeline has stored of a dataset.

    Raises
    ------
    NothingThereError
        A stage before training has not run, or was run for other users or items since.
    """
    tables = {name: _stored(name, dataset) for name in ("users", "items", "item_metadata", "interactions")}
    users, items = Ids(tables["users"]["raw_id"].to_list()), Ids(tables["items"]["raw_id"].to_list())
    nodes = len(users) + len(items)
    graph = _stored("semantic_graph", dataset, csr_array, rows=nodes) if _exists("semantic_graph", dataset) else None
    both_ways = None if graph is None else graph.maximum(graph.T).sorted_indices()
    no_profiles = [""] * len(users)
    history = interaction_matrix(pairs_of(tables["interactions"], "train"), (len(users), len(items)))
    return Catalogue(
        dataset=dataset,
        users=users,
        items=items,
        titles=tables["item_metadata"].sort("item")["title"].to_list(),
        user_profiles=_summaries("user_profiles", dataset, users) if _exists("user_profiles", dataset) else no_profiles,
        item_profiles=_summaries("item_profiles", dataset, items),
        history=history.sorted_indices(),
        degrees=np.bincount(history.indices, minlength=len(items)),
        text=_stored("item_text_embeddings", dataset, np.ndarray, rows=len(items)),
        semantic=both_ways,
    )


def load_models(
    instance: dg.DagsterInstance, catalogue: Catalogue, names: Sequence[str] | None = None
) -> dict[str, TrainedModel]:
    """Trained models by name.

    Parameters
    ----------
    names
        Which; None for every one that is trained on the dataset.

    Raises
    ------
    NothingThereError
        Nothing is trained, a model asked for is not, or one was trained on other users or items than are stored now.
    ValueError
        There is no such model, or an embedding is not finite.
    """
    dataset = catalogue.dataset
    chosen = [name for name in MODELS if _trained(name, dataset).exists()] if names is None else dict.fromkeys(names)
    if not chosen:
        raise NothingThereError(f"no model is trained on {dataset} yet; train one with: scale run --dataset {dataset}")
    return {name: _load_model(instance, catalogue, name) for name in chosen}


def _load_model(instance: dg.DagsterInstance, catalogue: Catalogue, name: str) -> TrainedModel:
    dataset, title, path = catalogue.dataset, entry(name).title, _trained(name, catalogue.dataset)
    hint = f"scale run --dataset {dataset} --model {name}"
    if not path.exists():
        raise NothingThereError(f"{name} is not trained on {dataset}; train it with: {hint}")
    key, partition = group_of(name).key("trained_model"), f"{dataset}|{name}"
    record = latest(instance, key, partition)
    read_then = record.shown.get(INPUTS, {}) if record else {}
    read_now = {asset: recorded_version(instance, dg.AssetKey(asset), dataset) for asset in ("users", "items")}
    embeddings = read(path, np.ndarray)
    users, items = len(catalogue.users), len(catalogue.items)
    if any(read_then.get(asset) != version for asset, version in read_now.items()) or len(embeddings) != users + items:
        raise NothingThereError(
            f"{name} was trained on other users or items than {dataset} has now; train it again with: {hint}"
        )
    if not np.isfinite(embeddings).all():
        raise ValueError(f"{name}: an embedding is not finite ({path}); train it again with other settings")
    metrics = evaluation_of(read(stored_path(group_of(name).key("user_metrics"), partition), pl.DataFrame))
    own = np.ascontiguousarray(embeddings[users:])
    return TrainedModel(name, title, np.ascontiguousarray(embeddings[:users]), own, normalised(own), metrics.means)


def _trained(name: str, dataset: str) -> Path:
    return stored_path(group_of(name).key("trained_model"), f"{dataset}|{name}")


def _exists(asset: str, dataset: str) -> bool:
    return stored_path(dg.AssetKey(asset), dataset).exists()


def _stored(asset: str, dataset: str, kind: type = pl.DataFrame, rows: int | None = None) -> Any:
    """An asset of the dataset; `rows` are how many it has to have."""
    if not _exists(asset, dataset):
        raise NothingThereError(f"{dataset} has no {asset} yet; start with: scale run --dataset {dataset}")
    value = read(stored_path(dg.AssetKey(asset), dataset), kind)
    if rows is not None and value.shape[0] != rows:
        raise NothingThereError(
            f"{asset} of {dataset} has {value.shape[0]:,} rows where there are {rows:,} now; bring it up to date with: "
            f"scale refresh --dataset {dataset}"
        )
    return value


def _summaries(asset: str, dataset: str, ids: Ids) -> list[str]:
    texts: list[str] = _stored(asset, dataset, rows=len(ids))["summary"].to_list()
    return texts
