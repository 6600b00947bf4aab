"""Unit rows and their similarities, a block of rows at a time, within a memory budget.

No BLAS takes part, so the kernels' thread pool is the only one that is busy (see `kernels`).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.graphs import kernels, shortage

if TYPE_CHECKING:
    import torch

    from pipeline.compute import Cluster

LEAST_ROOM = 2.5e8  # bytes that a stage works in beside copies of its features, whatever its budget
LARGEST_BLOCK = 960  # rows, whole tiles; enough work for every thread, small enough for a lively progress bar
SWEPT_AT_A_TIME = 480  # rows, whole tiles; a strip is as wide as the set, and touching its memory first costs time

Group = tuple[np.ndarray, np.ndarray]  # rows of queries, and the candidates to compare them with


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


def memory_left(budget_gb: float, features: int, warn: Callable[[str], None]) -> float:
    """What this process leaves of `resources.memory_gb` for a graph, in 10^9 bytes: the graph functions' `memory_gb`.

    Parameters
    ----------
    budget_gb
        The whole process's budget, in 10^9 bytes.
    features
        Bytes of the features, which are loaded already.
    warn
        Called with a sentence where copies of the features and a little room to work in would not keep the budget;
        that much is given all the same.
    """
    statm = Path("/proc/self/statm")  # where a system has none, the features are all that is known to be held
    taken = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else features
    left, least = budget_gb * 1e9 - taken, features + LEAST_ROOM
    if left < least:
        warn(
            f"resources.memory_gb = {budget_gb} is too little: {taken / 1e9:.2f} are in use with the features loaded, "
            f"and the graph takes {least / 1e9:.2f} more; raise it to {(taken + least) / 1e9:.1f}"
        )
    return max(left, least) / 1e9


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


def gram(units: np.ndarray, room: float) -> np.ndarray | None:
    """Products of all rows (m, m) float32, or None where `room` bytes do not hold them, packed rows and a block."""
    size, packed = units.shape[0], 2 * units.nbytes
    if 4 * size * (size + kernels.ROWS) + packed > room:
        return None
    try:
        out = np.empty((size, size), np.float32)
        kernels.multiply_self(kernels.pack(units, kernels.ROWS), kernels.pack(units, kernels.COLUMNS), out)
    except MemoryError:
        shortage.say(f"all {size:,} x {size:,} products", "they are computed as they are needed")
        return None
    return out


def nearest_by_sweep(
    units: np.ndarray, k: int, room: float, progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Neighbours of each row among the others with half the products: the one set's similarities are symmetric.

    A sample gives every row a floor that its k nearest should reach; only products that do are kept. See `kernels`.

    Returns
    -------
    tuple or None
        Ids (n, k) int32 and similarities (n, k) float32 as in `knn.Neighbours`; ids of -1 also in a row whose sample
        misled, which is to be searched another way. None where the set is too small to gain by this, or `room`
        (bytes) or what memory there is too small for packed rows, a strip of products, and the lists of candidates.
    """
    try:
        return _swept(units, k, room, progress)
    except MemoryError:
        shortage.say(f"a sweep over {len(units):,} rows", "they are searched in blocks")
        return None


def _swept(
    units: np.ndarray, k: int, room: float, progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    n, rows = units.shape[0], SWEPT_AT_A_TIME
    rank = kernels.likely_rank(k, n)
    likely = rank * n / kernels.SAMPLE  # products of a row that reach its floor
    earlier = likely / n * (np.arange(n) // rows * rows)  # those of them with rows of earlier strips
    most = earlier * (1 + 2.5 / rank**0.5) + 2.5 * earlier**0.5
    starts = np.concatenate([[0], np.cumsum(np.maximum(most - k, 0).astype(np.int64))])
    taken = 2 * units.nbytes + 4 * rows * n + 8 * starts[-1]
    if n < 8 * LARGEST_BLOCK or 2 * likely > n or taken > room:
        return None
    left, right = kernels.pack(units, kernels.ROWS), kernels.pack(units, kernels.COLUMNS)
    floors, counts = np.empty(n, np.float32), np.zeros(n, np.int32)
    sample = np.ascontiguousarray(units[:: n // kernels.SAMPLE])
    for first, last, block in similarity_blocks(units, sample, room - taken):
        kernels.find_floors(block, rank, floors[first:last])
    spill = starts, np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    chosen, similarities = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    buffer = np.empty(rows * n, np.float32)
    for first in range(0, n, rows):
        last = min(n, first + rows)
        strip = buffer[: (last - first) * (n - first)].reshape(last - first, n - first)
        kernels.sweep(left, right, first // kernels.TILE, strip, floors, chosen, similarities, spill, counts)
        kernels.finish(strip, first, floors, chosen, similarities, spill, counts)
        if progress is not None:
            progress(last, n)
    return chosen, similarities


def search(
    queries: np.ndarray,
    candidates: np.ndarray,
    k: int,
    by_id: bool,
    groups: Iterable[Group],
    room: float,
    products: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compare every group of queries with its candidates; yield `rows, ids, similarities` of a block of queries each.

    Parameters
    ----------
    queries, candidates
        (n, d) and (m, d) unit rows. Where they are one and the same array, a row is none of its own neighbours.
    k
        At most the number of other candidates in any group.
    by_id
        Order of a row's ids (b, k) int32 and similarities (b, k) float32: ascending ids, instead of nearest first.
    groups
        Rows of `queries`, and the rows of `candidates` to compare them with, ascending; int32.
    room
        Bytes that a block and the packed rows may take.
    products
        (n, m) similarities of all with all, if they are there already; then groups are runs of rows, with all.
    """
    for rows, columns in groups:
        for first, last, block in (
            similarity_blocks(queries, candidates, room, rows, columns) if products is None else _runs(products, rows)
        ):
            part = rows[first:last]
            own = places(columns, part) if queries is candidates else np.full(part.size, -1)
            chosen, values = np.empty((part.size, k), np.int32), np.empty((part.size, k), np.float32)
            kernels.select(block, own, by_id, chosen, values)
            yield part, columns[chosen], values


def _runs(products: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    for first in range(0, rows.size, LARGEST_BLOCK):
        last = min(rows.size, first + LARGEST_BLOCK)
        yield first, last, products[rows[first] : rows[last - 1] + 1]


def parts(cluster: "Cluster | None", groups: Iterable[Group]) -> Iterator[tuple[Iterable[Group]]]:
    """Groups as parts of `compute.blocks`: here one of all, on a cluster of at least a block of queries each."""
    if cluster is None:
        yield (groups,)
        return
    part: list[Group] = []
    for rows, columns in groups:
        for first in range(0, rows.size, LARGEST_BLOCK):
            part.append((rows[first : first + LARGEST_BLOCK], columns))
            if sum(len(queries) for queries, _ in part) >= LARGEST_BLOCK:
                yield (part,)
                part = []
    if part:
        yield (part,)


def places(ascending: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of `wanted` stands in an ascending array; -1 where it does not."""
    place = np.searchsorted(ascending, wanted)
    return np.where(ascending[np.minimum(place, ascending.size - 1)] == wanted, place, -1)


def similarity_blocks(
    queries: np.ndarray,
    candidates: np.ndarray,
    room: float,
    rows: np.ndarray | None = None,
    columns: np.ndarray | None = None,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield `first, last, similarities` (last - first, m) over all queries; the array is only good until the next.

    Parameters
    ----------
    queries, candidates
        (n, d) and (m, d) unit rows.
    room
        Bytes that a block and the packed rows may take; a block has at least one row.
    rows, columns
        Ids of the queries and of the candidates to take instead of all, int32.
    """
    rows = np.arange(queries.shape[0], dtype=np.int32) if rows is None else rows
    columns = np.arange(candidates.shape[0], dtype=np.int32) if columns is None else columns
    done = 0
    while done < rows.size and columns.size > 0:
        start = done
        size = _block_size(rows.size - start, columns.size, 4 * queries.shape[1], room)
        try:
            for first, last, block in _blocks(queries, candidates, rows[start:], columns, *size):
                done = start + last
                yield start + first, done, block
        except MemoryError:
            if size == (1, min(kernels.TILE, columns.size)):
                raise shortage.too_small(
                    f"the similarities of one row to {columns.size:,} others"
                ) from None  # what a run shows of an error is its cause
        if done < rows.size:
            while size == _block_size(rows.size - start, columns.size, 4 * queries.shape[1], room):
                room /= 2
            shortage.say(f"a block of {size[0]:,} rows", "it is made smaller")


def _block_size(n: int, m: int, row_bytes: int, room: float) -> tuple[int, int]:
    """Queries of a block, and candidates that are packed at a time: all once, or some anew for every block."""
    segment = m
    if row_bytes * m > room / 2:
        segment = min(m, kernels.TILE * max(1, int(room / 4 // (row_bytes * kernels.TILE))))
    height = int(min(max((room - row_bytes * segment) // (4 * m + row_bytes), 1), LARGEST_BLOCK, n))
    return height, segment


def _blocks(
    queries: np.ndarray, candidates: np.ndarray, rows: np.ndarray, columns: np.ndarray, height: int, segment: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """`similarity_blocks` of `height` queries, with `segment` candidates packed at a time."""
    n, m = rows.size, columns.size
    buffer, right = np.empty((height, m), np.float32), None
    for first in range(0, n, height):
        last = min(n, first + height)
        block, left = buffer[: last - first], kernels.pack(queries, kernels.ROWS, rows[first:last])
        for start in range(0, m, segment):
            if right is None or segment < m:
                right = None  # the last segment's memory is free before the next takes its own
                right = kernels.pack(candidates, kernels.COLUMNS, columns[start : start + segment])
            kernels.multiply(left, right, start // kernels.TILE, block)
        yield first, last, block
