"""Unit rows and their similarities, a block of rows at a time, within a memory budget.

No BLAS takes part, so the kernels' thread pool is the only one that is busy (see `kernels`).
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.graphs import kernels

if TYPE_CHECKING:
    import torch

LARGEST_BLOCK = 2 * kernels.TILE  # rows; enough work for every thread, small enough for a lively progress bar


def accelerator(device: str) -> "torch.device | None":
    """The GPU that `device` names, or None for the CPU. `auto`: the GPU that torch finds.

    Raises
    ------
    ValueError
        If this machine, or this build of torch, has no such device.
    """
    if device == "cpu":
        return None
    import torch

    if device == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else None
    try:
        torch.empty(0, device=device)
    except Exception as error:  # a wrong name, no such device, a torch built without it
        raise ValueError(f"resources.device = {device!r} cannot be used: {error}; choose auto or cpu") from error
    return torch.device(device)


class UnitRows(NamedTuple):
    """Rows that have a direction: `units` (r, d) float32 of norm 1, `kept` (r,) int32, their places among `total`."""

    units: np.ndarray
    kept: np.ndarray
    total: int


def unit_rows(features: np.ndarray, name: str) -> UnitRows:
    """L2-normalise, and leave out zero rows: they have no direction and hence no neighbours.

    Parameters
    ----------
    features
        (n, d) floating point.
    name
        What to call them in an error.

    Raises
    ------
    ValueError
        If the shape is not (n, d) with d > 0, or a value is NaN or infinite (names the row).
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"{name}: expected features of shape (rows, dimensions), found {features.shape}")
    rows = np.ascontiguousarray(features, dtype=np.float32)
    squares = np.empty(rows.shape[0], np.float64)
    kernels.squared_norms(rows, squares)
    bad = np.flatnonzero(~np.isfinite(squares))
    if bad.size:
        raise ValueError(f"{name}: row {bad[0]} holds NaN or infinite values ({bad.size} such rows); encode it again")
    kept = np.flatnonzero(squares > 0).astype(np.int32)
    units = np.empty((kept.size, rows.shape[1]), np.float32)
    kernels.scale_rows(rows, kept, np.sqrt(squares), units)
    return UnitRows(units, kept, rows.shape[0])


def unit_pair(queries: np.ndarray, candidates: np.ndarray | None) -> tuple[UnitRows, UnitRows]:
    """Unit rows of both sides, which are one and the same object if `candidates` is None."""
    if candidates is None:
        rows = unit_rows(queries, "features")
        return rows, rows
    if queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            f"queries have shape {queries.shape}, candidates {candidates.shape}: encode both with the same model"
        )
    return unit_rows(queries, "queries"), unit_rows(candidates, "candidates")


def gram(units: np.ndarray, budget: float) -> np.ndarray | None:
    """Products of all rows (m, m) float32, or None where they and one block of rows exceed `budget` bytes."""
    size = units.shape[0]
    if 4 * size * (size + kernels.ROWS) > budget:
        return None
    out = np.empty((size, size), np.float32)
    kernels.multiply_self(kernels.pack(units, kernels.ROWS), kernels.pack(units, kernels.COLUMNS), out)
    return out


def nearest_by_sweep(
    units: np.ndarray, k: int, budget: float, progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Neighbours of each row among the others with half the products: the one set's similarities are symmetric.

    A sample gives every row a floor that its k nearest should reach; only products that do are kept. See `kernels`.

    Returns
    -------
    tuple or None
        Ids (n, k) int32 and similarities (n, k) float32 as in `knn.Neighbours`; ids of -1 also in a row whose sample
        misled, which is to be searched another way. None where the set is too small to gain by this, or the budget
        (bytes) too small for the lists of candidates.
    """
    n = units.shape[0]
    rank = kernels.likely_rank(k, n)
    likely = rank * n / kernels.SAMPLE
    capacity = int(likely * (1 + 4 / rank**0.5)) + 16
    rows = LARGEST_BLOCK
    if n < 8 * rows or capacity > n // 2 or 8 * n * capacity + 4 * rows * n > budget:
        return None
    left, right = kernels.pack(units, kernels.ROWS), kernels.pack(units, kernels.COLUMNS)
    floors, counts = np.empty(n, np.float32), np.zeros(n, np.int32)
    sample = np.ascontiguousarray(units[:: n // kernels.SAMPLE])
    for first, last, block in similarity_blocks(units, sample, None, budget):
        kernels.find_floors(block, rank, floors[first:last])
    ids, values = np.empty((n, capacity), np.int32), np.empty((n, capacity), np.float32)
    chosen, similarities = np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)
    buffer = np.empty(rows * n, np.float32)
    for first in range(0, n, rows):
        last = min(n, first + rows)
        strip = buffer[: (last - first) * (n - first)].reshape(last - first, n - first)
        kernels.sweep(left, right, first // kernels.TILE, strip, floors, ids, values, counts)
        kernels.finish(strip, first, floors, ids, values, counts, chosen, similarities)
        if progress is not None:
            progress(last, n)
    return chosen, similarities


def similarity_blocks(
    queries: np.ndarray, candidates: np.ndarray, products: np.ndarray | None, budget: float
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield `first, last, similarities` (last - first, m) over all queries; the array is only good until the next.

    Parameters
    ----------
    queries, candidates
        (n, d) and (m, d) unit rows.
    products
        The similarities, if they are there already.
    budget
        Bytes that a block may take; it has at least one row.
    """
    n, m = queries.shape[0], candidates.shape[0]
    if products is not None:
        for first in range(0, n, LARGEST_BLOCK):
            last = min(n, first + LARGEST_BLOCK)
            yield first, last, products[first:last]
        return
    if n == 0:
        return
    rows = int(min(max(budget // (4 * m), 1), LARGEST_BLOCK, n))
    right = kernels.pack(candidates, kernels.COLUMNS)
    buffer = np.empty((rows, m), np.float32)
    for first in range(0, n, rows):
        last = min(n, first + rows)
        block = buffer[: last - first]
        kernels.multiply(kernels.pack(queries[first:last], kernels.ROWS), right, block)
        yield first, last, block
