"""Nearest neighbours by cosine similarity, and the feature similarity graphs made of them (eqs. 4, 5)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from pipeline.graphs import csr
from pipeline.settings import IndexSettings

if TYPE_CHECKING:
    from pipeline.graphs.index import Report
    from pipeline.graphs.products import UnitRows


class Neighbours(NamedTuple):
    """The k' nearest candidates of n queries, nearest first, equal ones by ascending id.

    ids
        (n, k') int32; a row of -1 for a zero query, which has no neighbours.
    similarities
        (n, k') float32 cosines; 0 where the id is -1.
    """

    ids: np.ndarray
    similarities: np.ndarray


def nearest(
    queries: np.ndarray,
    candidates: np.ndarray | None,
    k: int,
    memory_gb: float = 4.0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    index: IndexSettings | None = None,
    report: "Report | None" = None,
) -> Neighbours:
    """Top-k candidates of each query by cosine similarity.

    The result depends on the features, k and `index` alone: not on memory, threads, or blocks. Zero rows have no
    direction: a zero query gets no neighbours, and a zero candidate is nobody's neighbour.

    Parameters
    ----------
    queries
        (n, d) floating point; rows are normalised here.
    candidates
        (m, d), or None: the queries themselves, each row's own self excluded.
    k
        Neighbours of a query; fewer (k') where there are fewer candidates.
    memory_gb
        Budget in 10^9 bytes of all that is held at a time beside the features that come in: normalised copies of them,
        packed rows, similarities, and the result. Where the copies (4 d bytes for each query and each candidate) and
        the result take it up, the rest is as small as can be.
    threads
        Default: every core.
    progress
        Called with (queries done, queries in all).
    device
        `cpu`, a GPU by torch's name, or `auto`: a GPU where there is one. On a GPU the budget is that of its memory,
        similarities are rounded in another way, by about 1e-6, and the search is exact.
    index
        Above how many candidates an index is searched, and the recall that it is to reach (see `index`). Default:
        the search is exact.
    report
        Called with the figures of an index, `recall` among them, where one is used.

    Raises
    ------
    ValueError
        If k < 1, the dimensions differ, a feature is NaN or infinite (names the row), or there is no such device.
    """
    from pipeline.graphs import kernels, products
    from pipeline.graphs.index import comparisons

    if k < 1:
        raise ValueError(f"k = {k}: ask for at least one neighbour")
    with kernels.thread_pool(threads):
        left, right = products.unit_pair(queries, candidates)
        same = candidates is None
        rows, count = left.kept.size, max(0, min(k, right.kept.size - same))
        budget, gpu = memory_gb * 1e9, products.accelerator(device)
        room = budget - left.units.nbytes - (0 if same else right.units.nbytes) - 8 * rows * count
        if index is not None and right.kept.size <= index.above:
            index = None
        swept = None
        if gpu is not None and count > 0 and rows > 0:
            from pipeline.graphs import tensors

            swept = tensors.nearest(left.units, None if same else right.units, count, gpu, budget, progress)
        elif same and count > 0 and index is None:
            swept = products.nearest_by_sweep(left.units, count, room, progress)
        if swept is None:
            ids, similarities = np.full((rows, count), -1, np.int32), np.zeros((rows, count), np.float32)
        else:
            ids, similarities = swept
        todo = np.flatnonzero(ids[:, 0] < 0).astype(np.int32) if count > 0 else np.empty(0, np.int32)
        done = rows - todo.size
        groups = comparisons(left.units, right.units, todo, count, index, room, report)
        for part, chosen, values in products.search(left.units, right.units, count, False, groups, room):
            ids[part], similarities[part] = chosen, values
            done += part.size
            if progress is not None:
                progress(done, rows)
    if right.kept.size < right.total:
        ids = right.kept[ids]
    return Neighbours(_with_zero_rows(ids, left, -1), _with_zero_rows(similarities, left, 0))


def _with_zero_rows(values: np.ndarray, rows: "UnitRows", fill: int) -> np.ndarray:
    """Put the rows back to their places; the zero rows get `fill`."""
    if rows.kept.size == rows.total:
        return values
    whole = np.full((rows.total, values.shape[1]), fill, values.dtype)
    whole[rows.kept] = values
    return whole


def similarity_graph(
    queries: np.ndarray,
    candidates: np.ndarray | None,
    k: int,
    memory_gb: float = 4.0,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
    index: IndexSettings | None = None,
    report: "Report | None" = None,
) -> csr_array:
    """Feature similarity graph (eqs. 4, 5): an edge from each query to its k nearest candidates.

    Parameters and errors are those of `nearest`.

    Returns
    -------
    csr_array
        (n, m) float32, all data 1.0, indices sorted.
    """
    neighbours = nearest(queries, candidates, k, memory_gb, threads, progress, device, index, report)
    return csr.from_neighbours(neighbours.ids, (queries if candidates is None else candidates).shape[0])
