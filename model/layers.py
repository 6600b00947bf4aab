"""Graph propagation: normalised adjacencies, sparse times dense as one autograd step, and edge pruning."""

from typing import Any

import numba
import numpy as np
import torch
from scipy.sparse import block_array, csr_array
from torch import Tensor, nn

# More chunks than threads: rows differ in length, and a chunk is the unit that a free thread takes next.
CHUNKS = 64


def bipartite_adjacency(interactions: csr_array) -> csr_array:
    """Symmetrically normalised user-item graph, D^-1/2 [[0, R], [R^T, 0]] D^-1/2 (eq. 7).

    Parameters
    ----------
    interactions
        R, shape (M, N), binary.

    Returns
    -------
    csr_array
        Shape (M + N, M + N), float32, sorted indices; users first.
    """
    return degree_normalised(block_array([[None, interactions], [interactions.T, None]], format="csr"))


def degree_normalised(graph: csr_array) -> csr_array:
    """Value 1 / sqrt(deg(i) deg(j)) at every edge (i, j); deg counts the entries of a row (eq. 7).

    For a directed graph both factors are row degrees. An edge to a node whose own row is empty gets 0.
    """
    degree = np.diff(graph.indptr).astype(np.float64)
    scale = np.zeros_like(degree)
    np.divide(1.0, np.sqrt(degree), out=scale, where=degree > 0)
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    values = (scale[rows] * scale[graph.indices]).astype(np.float32)
    normalised = csr_array((values, graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)
    normalised.sort_indices()
    return normalised


def prune_edges(interactions: csr_array, pruning: float, generator: torch.Generator) -> csr_array:
    """Degree-sensitive edge pruning (FREEDOM, section 4.2; ALGORITHM 7).

    Keeps `int(|E| (1 - pruning))` edges, drawn without replacement with probability proportional to
    1 / sqrt(deg(u) deg(i)): each edge gets an exponential key divided by its weight, and the smallest keys stay.

    Parameters
    ----------
    interactions
        R, shape (M, N), binary.
    pruning
        Share of edges to leave out, in [0, 1).

    Returns
    -------
    csr_array
        The kept part of R, not normalised.
    """
    users = np.repeat(np.arange(interactions.shape[0]), np.diff(interactions.indptr))
    user_degree = np.diff(interactions.indptr)
    item_degree = np.bincount(interactions.indices, minlength=interactions.shape[1])
    weight = 1.0 / np.sqrt(user_degree[users] * item_degree[interactions.indices])
    keys = torch.empty(interactions.nnz, dtype=torch.float64).exponential_(generator=generator).numpy() / weight
    count = int(interactions.nnz * (1 - pruning))
    kept = np.zeros(interactions.nnz, dtype=bool)
    kept[np.argpartition(keys, count - 1)[:count] if count else []] = True
    indptr = np.concatenate([[0], np.cumsum(np.bincount(users[kept], minlength=interactions.shape[0]))])
    return csr_array((interactions.data[kept], interactions.indices[kept], indptr), shape=interactions.shape)


class SparseGraph(nn.Module):
    """A constant sparse matrix that multiplies dense ones; it moves between devices with its model.

    CSR arrays of the matrix and of its transpose (the backward pass) are built once. They are buffers outside
    the state dict: a graph is data, not a weight.

    Parameters
    ----------
    matrix
        Shape (n, m), float32.
    symmetric
        The matrix equals its transpose: the backward pass then needs no arrays of its own.
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    chunks: Tensor

    def __init__(self, matrix: csr_array, symmetric: bool = False) -> None:
        super().__init__()
        self.shape: tuple[int, int] = matrix.shape
        arrays = {
            "indptr": matrix.indptr.astype(np.int32),
            "indices": matrix.indices.astype(np.int32),
            "values": matrix.data.astype(np.float32),
            "chunks": _balanced_chunks(matrix.indptr),
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)), persistent=False)
        self._matrix: Tensor | None = None
        self.transposed: SparseGraph | None = None if symmetric else SparseGraph(csr_array(matrix.T), symmetric=True)

    @property
    def backward_graph(self) -> "SparseGraph":
        return self if self.transposed is None else self.transposed

    def forward(self, dense: Tensor) -> Tensor:
        """Matrix times `dense`, shape (m, d) -> (n, d)."""
        return _Propagate.apply(dense, self)

    def layer_mean(self, dense: Tensor, layers: int) -> Tensor:
        """Mean of `A^l dense` for l = 0..layers (LightGCN, and the interaction side of eq. 7)."""
        return _LayerMean.apply(dense, self, layers)

    def multiply(self, dense: Tensor, addend: Tensor | None = None) -> Tensor:
        """`A dense + addend`, outside autograd."""
        if dense.is_cuda:
            return self._multiply_torch(dense, addend)
        out = torch.empty((self.shape[0], dense.shape[1]), dtype=torch.float32)
        contiguous = dense.detach().contiguous()
        start = contiguous if addend is None else addend.detach().contiguous()
        _multiply(
            self.indptr.numpy(),
            self.indices.numpy(),
            self.values.numpy(),
            self.chunks.numpy(),
            contiguous.numpy(),
            addend is not None,
            start.numpy(),
            out.numpy(),
        )
        return out

    def _multiply_torch(self, dense: Tensor, addend: Tensor | None) -> Tensor:
        """`multiply` through torch's own CSR product (cuSPARSE); the matrix is set up once per device."""
        if self._matrix is None or self._matrix.device != dense.device:
            self._matrix = torch.sparse_csr_tensor(
                self.indptr, self.indices, self.values, self.shape, check_invariants=False
            )
        product = self._matrix @ dense
        return product if addend is None else product.add_(addend)


class _Propagate(torch.autograd.Function):
    """A x; the gradient is A^T g."""

    @staticmethod
    def forward(context: Any, dense: Tensor, graph: SparseGraph) -> Tensor:
        context.graph = graph
        return graph.multiply(dense)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.graph.backward_graph.multiply(gradients[0]), None


class _LayerMean(torch.autograd.Function):
    """(1 / (L + 1)) sum_l A^l x by Horner's rule, y <- A y + x; the gradient is the same sum over A^T."""

    @staticmethod
    def forward(context: Any, dense: Tensor, graph: SparseGraph, layers: int) -> Tensor:
        context.graph, context.layers = graph, layers
        return _horner(graph, dense, layers)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _horner(context.graph.backward_graph, gradients[0], context.layers), None, None


def _horner(graph: SparseGraph, dense: Tensor, layers: int) -> Tensor:
    total = dense
    for _ in range(layers):
        total = graph.multiply(total, addend=dense)
    return total / (layers + 1)


def _balanced_chunks(indptr: np.ndarray) -> np.ndarray:
    """Row bounds of `CHUNKS` consecutive parts with about as much work each (an entry or a row counts one)."""
    work = indptr.astype(np.int64) + np.arange(len(indptr))
    return np.searchsorted(work, np.linspace(0, work[-1], CHUNKS + 1)).astype(np.int64)


# Each row is summed by one thread in index order, so the result does not depend on the number of threads.
@numba.njit(parallel=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _multiply(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    chunks: np.ndarray,
    dense: np.ndarray,
    has_addend: bool,
    addend: np.ndarray,
    out: np.ndarray,
) -> None:
    width = dense.shape[1]
    for chunk in numba.prange(len(chunks) - 1):
        total = np.empty(width, dtype=np.float32)
        for row in range(chunks[chunk], chunks[chunk + 1]):
            for k in range(width):
                total[k] = addend[row, k] if has_addend else np.float32(0)
            for entry in range(indptr[row], indptr[row + 1]):
                value = values[entry]
                column = indices[entry]
                for k in range(width):
                    total[k] += value * dense[column, k]
            for k in range(width):
                out[row, k] = total[k]
