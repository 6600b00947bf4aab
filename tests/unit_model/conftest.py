"""Small datasets whose right answer is known."""

from collections.abc import Iterator

import numba
import numpy as np
import pytest
import torch
from scipy.sparse import block_array, csr_array

from model.base import RecData, SemanticGraphs

USERS, ITEMS = 30, 22


def binary(dense: np.ndarray) -> csr_array:
    return csr_array(dense.astype(np.float32))


def checkerboard_data() -> RecData:
    """Users like the items of their own parity. One such item of each user is valid, one is test, the rest train."""
    rng = np.random.default_rng(0)
    like = (np.arange(USERS)[:, None] + np.arange(ITEMS)) % 2 == 0
    splits = {name: np.zeros((USERS, ITEMS), dtype=bool) for name in ("valid", "test")}
    for user in range(USERS):
        valid, test = rng.choice(np.flatnonzero(like[user]), size=2, replace=False)
        splits["valid"][user, valid] = splits["test"][user, test] = True
    train = like & ~splits["valid"] & ~splits["test"]
    same_users = _sparse_relation(np.arange(USERS), np.arange(USERS), rng)
    same_items = _sparse_relation(np.arange(ITEMS), np.arange(ITEMS), rng)
    across = _sparse_relation(np.arange(USERS), np.arange(ITEMS), rng)
    fused = block_array([[same_users, across], [across.T, same_items]], format="csr")
    fused.sort_indices()
    return RecData(
        name="checkerboard",
        train=binary(train),
        valid=binary(splits["valid"]),
        test=binary(splits["test"]),
        text=_features(ITEMS, 8, rng),
        user_text=_features(USERS, 8, rng),
        visual=_features(ITEMS, 5, rng),
        semantic=SemanticGraphs(csr_array(fused), same_users, same_items, across),
    )


def _features(count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors that point one way for even numbers, the other for odd ones, and a little elsewhere."""
    features = 0.2 * rng.standard_normal((count, width))
    features[:, 0] += 1 - 2.0 * (np.arange(count) % 2)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def _sparse_relation(rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> csr_array:
    """Each row is related to three columns of its parity other than itself."""
    dense = np.zeros((len(rows), len(columns)))
    for row in rows:
        choices = columns[(columns % 2 == row % 2) & (columns != row)]
        dense[row, rng.choice(choices, size=3, replace=False)] = 1
    return binary(dense)


@pytest.fixture
def checkerboard() -> RecData:
    return checkerboard_data()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Toy graphs are too small to share out; waiting threads would cost more than the work on a busy machine."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])
