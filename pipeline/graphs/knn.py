"""Nearest neighbours by cosine similarity, and the feature similarity graphs made of them (eqs. 4, 5)."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from pipeline import compute
from pipeline.graphs import csr
from pipeline.graphs.execution import DEFAULT, Execution

if TYPE_CHECKING:
    from pipeline.graphs.products import Group, UnitRows


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
    how: Execution = DEFAULT,
) -> Neighbours:
    """Top-k candidates of each query by cosine similarity.

    The result depends on the features, k and `how.index` alone: not on memory, threads, or blocks. Zero rows have no
    direction: a zero query gets no neighbours, and a zero candidate is nobody's neighbour.

    Parameters
    ----------
    queries
        (n, d) floating point; rows are normalised here.
    candidates
        (m, d), or None: the queries themselves, each row's own self excluded.
    k
        Neighbours of a query; fewer (k') where there are fewer candidates.

    Raises
    ------
    ValueError
        If k < 1, the dimensions differ, a feature is NaN or infinite (names the row), or there is no such device.
    """
    from pipeline.graphs import kernels, products
    from pipeline.graphs.index import comparisons

    if k < 1:
        raise ValueError(f"k = {k}: ask for at least one neighbour")
    with kernels.thread_pool(how.threads):
        left, right = products.unit_pair(queries, candidates)
        same = candidates is None
        rows, count = left.kept.size, max(0, min(k, right.kept.size - same))
        budget, gpu = how.memory_gb * 1e9, products.accelerator(how.device)
        room = budget - left.units.nbytes - (0 if same else right.units.nbytes) - 8 * rows * count
        index = how.index_for(right.kept.size)
        swept = None
        if gpu is not None and count > 0 and rows > 0:
            from pipeline.graphs import tensors

            swept = tensors.nearest(left.units, None if same else right.units, count, gpu, budget, how.progress)
        elif same and count > 0 and index is None and how.cluster is None:
            swept = products.nearest_by_sweep(left.units, count, room, how.progress)
        if swept is None:
            ids, similarities = np.full((rows, count), -1, np.int32), np.zeros((rows, count), np.float32)
        else:
            ids, similarities = swept
        todo = np.flatnonzero(ids[:, 0] < 0).astype(np.int32) if count > 0 else np.empty(0, np.int32)
        done = rows - todo.size
        groups = comparisons(left.units, right.units, todo, count, index, room, how.report)
        arrays = left.units, None if same else right.units
        parts = ((part, count, room, how.threads_of_a_block) for (part,) in products.parts(how.cluster, groups))
        for part, chosen, values in compute.blocks(how.cluster, _compare, arrays, parts):
            ids[part], similarities[part] = chosen, values
            done += part.size
            how.tell(done, rows)
    if right.kept.size < right.total:
        ids = right.kept[ids]
    return Neighbours(_with_zero_rows(ids, left, -1), _with_zero_rows(similarities, left, 0))


def _compare(
    queries: np.ndarray,
    candidates: np.ndarray | None,
    groups: "Iterable[Group]",
    count: int,
    room: float,
    threads: int | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`products.search` of some groups, nearest first; without candidates, of the queries among themselves."""
    from pipeline.graphs import kernels, products

    with kernels.thread_pool(threads):
        others = queries if candidates is None else candidates
        yield from products.search(queries, others, count, False, groups, room)


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
    how: Execution = DEFAULT,
) -> csr_array:
    """Feature similarity graph (eqs. 4, 5): an edge from each query to its k nearest candidates.

    Parameters and errors are those of `nearest`.

    Returns
    -------
    csr_array
        (n, m) float32, all data 1.0, indices sorted.
    """
    neighbours = nearest(queries, candidates, k, how)
    return csr.from_neighbours(neighbours.ids, (queries if candidates is None else candidates).shape[0])
