"""Graphs as binary `csr_array`s, and as edge lists for storage."""

import numpy as np
from scipy.sparse import csr_array


def from_neighbours(ids: np.ndarray, columns: int) -> csr_array:
    """Graph with an edge from each row i to every ids[i, r] that is not negative.

    Parameters
    ----------
    ids
        (n, k) integer, no id twice in a row; -1 where there is no neighbour.
    columns
        Number of candidates.

    Returns
    -------
    csr_array
        (n, columns) float32, all data 1.0, indices sorted.
    """
    present = ids >= 0
    pointers = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(_index_type(int(present.sum())))
    last = np.iinfo(ids.dtype).max
    ordered = np.sort(np.where(present, ids, last), axis=1)  # the absent ones go to the end of their row
    indices = ordered[ordered != last].astype(pointers.dtype)
    return csr_array((np.ones(indices.size, np.float32), indices, pointers), shape=(ids.shape[0], columns))


def edges(graph: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the edges, int32 both, in row order and sorted by column within a row."""
    if max(graph.shape) > np.iinfo(np.int32).max:
        raise ValueError(f"graph of shape {graph.shape}: node ids must fit 32 bits")
    ordered = graph if graph.has_sorted_indices else graph.sorted_indices()
    rows = np.repeat(np.arange(graph.shape[0], dtype=np.int32), np.diff(ordered.indptr))
    return rows, ordered.indices.astype(np.int32)


def from_edges(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """The graph that `edges` took apart; edges may come in any order.

    Raises
    ------
    ValueError
        If the lengths differ, a node lies outside `shape`, or an edge is given twice; names the first such edge.
    """
    if rows.ndim != 1 or rows.shape != columns.shape:
        raise ValueError(
            f"edge list: rows have shape {rows.shape}, columns {columns.shape}; expected two equal lengths"
        )
    for name, nodes, size in (("row", rows, shape[0]), ("column", columns, shape[1])):
        outside = np.flatnonzero((nodes < 0) | (nodes >= size))
        if outside.size:
            raise ValueError(f"edge {outside[0]}: {name} {nodes[outside[0]]} is outside a graph of shape {shape}")
    keys = rows.astype(np.int64) * shape[1] + columns
    order = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(np.diff(keys[order]) == 0)
    if repeated.size:
        edge = order[repeated[0] + 1]
        raise ValueError(f"edge {edge}: ({rows[edge]}, {columns[edge]}) is given twice")
    kind = _index_type(max(rows.size, *shape))
    pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))]).astype(kind)
    return csr_array((np.ones(rows.size, np.float32), columns[order].astype(kind), pointers), shape=shape)


def _index_type(size: int) -> type[np.signedinteger]:
    """Index type that scipy itself would choose for this many edges."""
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64
