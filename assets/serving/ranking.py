"""Rank items for users known and new, and say why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from assets.serving.catalogue import Catalogue, TrainedModel
from model import compiled
from pipeline.reasons import nearest_in_history

NEAREST_TO_TEXT = 20  # items that a text is placed among
NOTHING = np.empty(0, np.int32)


@dataclass(frozen=True)
class Ranked:
    """Items, best first, with their scores and the nearest items of a history as reasons.

    Parameters
    ----------
    items, scores
        (k,) int64 and float32.
    reasons
        (k, 2) int32, nearest first; -1 where there is no reason.
    """

    items: np.ndarray
    scores: np.ndarray
    reasons: np.ndarray


def for_user(catalogue: Catalogue, model: TrainedModel, user: int, k: int) -> Ranked:
    """The k best items of a known user, training items left out, as in the stored recommendations."""
    history = catalogue.history_of(user)
    return _ranked(catalogue, model.items, model.users[user], history, history, k)


def for_items(catalogue: Catalogue, model: TrainedModel, items: Sequence[int], k: int) -> Ranked:
    """The k best items of a new user who has `items`, these left out; see `folded_in`."""
    history = np.unique(np.asarray(items, np.int32))
    return _ranked(catalogue, model.items, folded_in(catalogue, model, history), history, history, k)


def for_text(
    catalogue: Catalogue, model: TrainedModel, vector: np.ndarray, k: int
) -> tuple[Ranked, np.ndarray, np.ndarray]:
    """The k best items of a new user described by a text.

    The text is placed among the items by the cosine of its vector to theirs. The new user's embedding is the mean of
    the nearest items' embeddings, weighted by these cosines; nothing is left out.

    Parameters
    ----------
    vector
        The text's unit vector, (d_t,) float32.

    Returns
    -------
    ranked, nearest, cosines
        The nearest items, at most 20, and their cosines, which are above 0; they are also the ranking's reasons.
    """
    nearest, cosines = _best(catalogue.text, vector, NOTHING, min(NEAREST_TO_TEXT, len(catalogue.items)))
    nearest, cosines = nearest[cosines > 0], cosines[cosines > 0]
    user = cosines @ model.items[nearest] / max(float(cosines.sum()), np.finfo(np.float32).tiny)
    reasons = np.sort(nearest).astype(np.int32)
    return _ranked(catalogue, model.items, user, NOTHING, reasons, k), nearest, cosines


def similar(vectors: np.ndarray, item: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k items with the highest cosine to an item, itself left out: (k,) items and (k,) cosines.

    Parameters
    ----------
    vectors
        Unit vectors of the items, (N, d) float32.
    """
    return _best(vectors, vectors[item], np.array([item], np.int32), k)


def folded_in(catalogue: Catalogue, model: TrainedModel, history: np.ndarray) -> np.ndarray:
    """Embedding (d,) of a user who was not there in training, from the items of a history.

    One propagation step as LightGCN's (He et al., SIGIR 2020, eq. 3) from the items' final embeddings, with the new
    edges counted: sum over i of e_i / sqrt(|H| (d_i + 1)), where d_i are the training interactions of item i. It needs
    no training; a user who was there is better served by the embedding that was learnt.

    Parameters
    ----------
    history
        Rows of distinct items, (h,), h > 0.
    """
    degrees = catalogue.degrees[history] + 1
    weights = (1 / np.sqrt(len(history) * degrees)).astype(np.float32)
    embedding: np.ndarray = weights @ model.items[history]
    return embedding


def _ranked(
    catalogue: Catalogue, items: np.ndarray, user: np.ndarray, left_out: np.ndarray, history: np.ndarray, k: int
) -> Ranked:
    best, scores = _best(items, user, left_out, k)
    own = csr_array(
        (np.ones(len(history), np.float32), history, np.array([0, len(history)])), shape=(1, len(catalogue.items))
    )
    return Ranked(best, scores, nearest_in_history(best[None], own, catalogue.text)[0])


def _best(vectors: np.ndarray, query: np.ndarray, left_out: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the k highest dot products, ties to the lower row, and these; `left_out` is ascending, int32.

    Every product is summed by itself and in one order, so that equal rows score equally wherever they stand; a matrix
    product's kernels differ at its edges.
    """
    scores = np.einsum("nd,d->n", vectors, query)
    pointers = np.array([0, len(left_out)], np.int32)
    top, _ = compiled.top_items(scores[None], pointers, left_out, np.zeros(1, np.int64), k)
    best = top[0][top[0] >= 0]
    return best, scores[best]
