"""Seeded sampling, vectorised and exact: no rejection, so no draw is ever wrong or repeated."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_array, eye_array

from model.base import Batch


class SamplingError(ValueError):
    """Something to be drawn does not exist."""


class SupportSampler:
    """Draws uniformly from the stored columns of a row.

    Parameters
    ----------
    matrix
        Shape (n, m).
    """

    def __init__(self, matrix: csr_array) -> None:
        self._indptr = matrix.indptr.astype(np.int64)
        self._indices = matrix.indices
        self.sizes = np.diff(self._indptr)  # (n,) columns to choose from

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """One stored column for each of `rows` (B,), each of which has at least one."""
        offset = _uniform_integers(self.sizes[rows], generator)
        return self._indices[self._indptr[rows] + offset].astype(np.int64)


class ComplementSampler:
    """Draws uniformly from the columns that a row does *not* store.

    The r-th free column of a row with sorted members m_0 < m_1 < ... is r plus the number of j with
    m_j - j <= r. These keys grow along a row; made to grow over all rows, one `searchsorted` counts for every draw.

    Parameters
    ----------
    matrix
        Shape (n, m), canonical CSR.
    exclude_self
        A row never draws its own number (for a square matrix).
    """

    def __init__(self, matrix: csr_array, exclude_self: bool = False) -> None:
        if exclude_self:
            matrix = csr_array(matrix + eye_array(matrix.shape[0], format="csr", dtype=matrix.dtype))
            matrix.sum_duplicates()
        self._columns = matrix.shape[1]
        self._indptr = matrix.indptr.astype(np.int64)
        sizes = np.diff(self._indptr)
        self.sizes = self._columns - sizes  # (n,) columns to choose from
        rows = np.repeat(np.arange(matrix.shape[0]), sizes)
        position = np.arange(matrix.nnz) - self._indptr[rows]
        # A row's keys lie in [row * (m + 1), row * (m + 1) + m], so rows do not overlap.
        self._keys = rows * (self._columns + 1) + matrix.indices - position

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """One free column for each of `rows` (B,), int64.

        Raises
        ------
        SamplingError
            For a row that has no free column.
        """
        sizes = self.sizes[rows]
        if len(rows) and sizes.min() < 1:
            full = rows[int(sizes.argmin())]
            raise SamplingError(f"row {full} holds all {self._columns} columns, so no negative can be drawn for it")
        rank = _uniform_integers(sizes, generator)
        smaller = np.searchsorted(self._keys, rows * (self._columns + 1) + rank, side="right") - self._indptr[rows]
        return rank + smaller


class TripletSampler:
    """Training interactions in random order, each with one uniform negative of its user (eq. 12).

    Parameters
    ----------
    train
        Shape (M, N).
    batch_size
        Triplets per batch; the last batch of an epoch may be smaller.

    Raises
    ------
    SamplingError
        For a user who has every item.
    """

    def __init__(self, train: csr_array, batch_size: int) -> None:
        full = np.flatnonzero(np.diff(train.indptr) == train.shape[1])
        if len(full):
            raise SamplingError(
                f"user {full[0]} has all {train.shape[1]} items in train, so no negative can be drawn ({len(full)} "
                "such users); leave them out of the data, or hold some of their items out"
            )
        self._users = np.repeat(np.arange(train.shape[0]), np.diff(train.indptr))
        self._items = train.indices.astype(np.int64)
        self._negatives = ComplementSampler(train)
        self._batch_size = batch_size

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self._users) / self._batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of one epoch."""
        order = torch.randperm(len(self._users), generator=generator).numpy()
        users = self._users[order]
        negatives = self._negatives.draw(users, generator)
        triplets = torch.from_numpy(np.stack([users, self._items[order], negatives]))  # (3, |E|)
        for part in triplets.split(self._batch_size, dim=1):
            yield Batch(users=part[0], positives=part[1], negatives=part[2])


def _uniform_integers(sizes: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """One integer in [0, size) for each of `sizes`, all at least 1."""
    uniform = torch.rand(len(sizes), dtype=torch.float64, generator=generator).numpy()
    return np.minimum((uniform * sizes).astype(np.int64), sizes - 1)
