"""Full-ranking evaluation: Recall@k and NDCG@k over all items, training items masked (ALGORITHM 9)."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from model import compiled, kernels

logger = logging.getLogger(__name__)

# Users scored at a time: 64 x 7,050 scores are 1.8 MB, which are still in a cache when they are read.
BLOCK = 64
GPU_BLOCK = 1024  # a GPU wants work enough to be busy

Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split.

    Parameters
    ----------
    users
        Shape (U,), the users with at least one held-out item, ascending.
    per_user
        Metric name (`recall_at_20`) -> shape (U,), float64.
    """

    users: np.ndarray
    per_user: dict[str, np.ndarray]

    @property
    def means(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.per_user.items()}


def evaluate(
    scores: Scores,
    train: csr_array,
    held_out: csr_array,
    top_k: Sequence[int] = (10, 20),
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Rank all items for every user with a held-out item.

    Parameters
    ----------
    scores
        Users (B,), int64, on `device` -> scores of every item (B, N).
    train
        Shape (M, N); its items are masked, and only they.
    held_out
        Shape (M, N); the split that is measured.
    top_k
        Cut-offs.

    Raises
    ------
    ValueError
        When nothing is held out, or a score is NaN.
    """
    users = np.flatnonzero(np.diff(held_out.indptr))
    if len(users) == 0:
        raise ValueError("the split to evaluate has no interactions")
    top = _top_items(scores, train, users, max(top_k), device)
    return Evaluation(users=users, per_user=ranking_metrics(top, held_out, users, top_k))


def ranking_metrics(
    top: np.ndarray, held_out: csr_array, users: np.ndarray, top_k: Sequence[int]
) -> dict[str, np.ndarray]:
    """Recall and NDCG of given rankings.

    Recall@k is the share of a user's held-out items among the first k; NDCG@k divides the sum of 1 / log2(rank + 1)
    over hits by that of an ideal ranking, which has min(k, held-out items) hits.

    Parameters
    ----------
    top
        Item ids, best first, shape (U, K) with K >= max(top_k); -1 where there is no further item.
    held_out
        Shape (M, N), sorted indices.
    users
        Shape (U,); each has a held-out item.
    """
    items = held_out.shape[1]
    held_rows = np.repeat(np.arange(held_out.shape[0], dtype=np.int64), np.diff(held_out.indptr))
    keys = held_rows * items + held_out.indices  # ascending
    wanted = users[:, None].astype(np.int64) * items + top
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    hits = (keys[position] == wanted) & (top >= 0)  # (U, K)
    relevant = np.diff(held_out.indptr)[users]
    discounts = 1 / np.log2(np.arange(2, top.shape[1] + 2))
    ideal = np.cumsum(discounts)
    metrics: dict[str, np.ndarray] = {}
    for k in top_k:
        metrics[f"recall_at_{k}"] = hits[:, :k].sum(1) / relevant
    for k in top_k:
        metrics[f"ndcg_at_{k}"] = (hits[:, :k] * discounts[:k]).sum(1) / ideal[np.minimum(k, relevant) - 1]
    return metrics


def popularity(train: csr_array) -> Scores:
    """A score function that ranks every user's items by their number of training interactions."""
    counts = torch.from_numpy(np.bincount(train.indices, minlength=train.shape[1]).astype(np.float32))

    def scores(users: Tensor) -> Tensor:
        return counts.expand(len(users), -1)

    return scores


def recommend(
    user_embeddings: np.ndarray, item_embeddings: np.ndarray, train: csr_array, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best items of every user by dot product, training items left out.

    Parameters
    ----------
    user_embeddings, item_embeddings
        (M, d) and (N, d), float32.
    train
        Shape (M, N), sorted indices.

    Returns
    -------
    items, scores
        (M, k) int64 and float32, best first, ties to the lower id; -1 and NaN where there is no further item.
    """
    users, items = torch.tensor(user_embeddings), torch.tensor(item_embeddings)
    best = _top_items(lambda block: users[block] @ items.T, train, np.arange(len(users)), k, "cpu")
    scores = np.einsum("ud,ukd->uk", user_embeddings, item_embeddings[best])
    return best, np.where(best >= 0, scores, np.nan).astype(np.float32)


def _top_items(scores: Scores, train: csr_array, users: np.ndarray, k: int, device: torch.device | str) -> np.ndarray:
    """The k best unmasked items of each of `users`, (U, k) int64; ties go to the lower id, -1 fills up.

    On a CPU every thread takes a block of users at a time, alone from scores to items. Threads that shared each block
    would wait for one another twice a block, and for long where other processes keep the machine busy. A block for
    which there is no memory is halved.
    """

    def best(part: np.ndarray) -> np.ndarray:
        try:
            return _top_items_of_block(scores, train, part, k, device)
        except (MemoryError, RuntimeError) as error:
            if not _is_short_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryError(
                    f"no memory for one user's scores of {train.shape[1]:,} items: free memory on this machine or its "
                    "GPU, or train on a larger one"
                ) from None
        # Outside of the handler: until it ends, the error holds on to all that the failed attempt had allocated.
        logger.warning("no memory to score %d users at once: half as many are; the result is the same", len(part))
        return np.concatenate([best(half) for half in np.array_split(part, 2)])

    on_cpu = torch.device(device).type == "cpu"
    first, *rest = np.array_split(users, max(1, -(-len(users) // (BLOCK if on_cpu else GPU_BLOCK))))
    found = [best(first)]  # here a model makes its embeddings, with all threads
    threads = torch.get_num_threads() if on_cpu else 1
    if threads == 1:
        return np.concatenate([*found, *map(best, rest)])
    torch.set_num_threads(1)  # of each thread
    try:
        with ThreadPoolExecutor(threads) as pool:
            return np.concatenate([*found, *pool.map(best, rest)])
    finally:
        torch.set_num_threads(threads)


def _is_short_of_memory(error: Exception) -> bool:
    """Torch has an error for a GPU's memory, and for the machine's own nothing but a sentence."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _top_items_of_block(
    scores: Scores, train: csr_array, users: np.ndarray, k: int, device: torch.device | str
) -> np.ndarray:
    with torch.no_grad():
        block = scores(torch.from_numpy(users).to(device))
    if not kernels.are_compiled(block):
        top, damaged = _top_items_torch(block, train, users, k), bool(block.isnan().any())
    else:
        top, rows = compiled.top_items(block.contiguous().numpy(), train.indptr, train.indices, users, k)
        damaged = bool(rows.any())
    if damaged:
        raise ValueError("a score is NaN; the model's weights are damaged")
    return top


def _top_items_torch(block: Tensor, train: csr_array, users: np.ndarray, k: int) -> np.ndarray:
    """`_top_items` as tensor operations, for a GPU: sorts by one int64 made of the score's order and the item."""
    part = train[users]
    rows = np.repeat(np.arange(len(users)), np.diff(part.indptr))
    bits = block.float().contiguous().view(torch.int32).long()
    ordered = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))  # grows with the float; -0.0 equals 0.0
    items = torch.arange(block.shape[1], device=block.device)
    keys = ordered * 2**31 - items
    lowest = torch.iinfo(torch.int64).min
    keys[torch.from_numpy(rows).to(block.device), torch.from_numpy(part.indices.astype(np.int64)).to(block.device)] = (
        lowest
    )
    best, found = keys.topk(min(k, block.shape[1]), dim=1)
    top = torch.full((len(users), k), -1)
    top[:, : found.shape[1]] = found.masked_fill(best == lowest, -1).cpu()
    return top.numpy()
