"""Graph propagation: normalised adjacencies, sparse times dense as one autograd step, and edge pruning.

A loss reads the rows of a batch's nodes only. So products can be asked for some rows, and their gradients, which are
zero elsewhere, are never spread over all nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import block_array, csr_array
from torch import Tensor, nn

from model import compiled, kernels

CPU = torch.device("cpu")


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
    user_degree = np.diff(interactions.indptr)
    item_degree = np.bincount(interactions.indices, minlength=interactions.shape[1])
    weight = 1.0 / np.sqrt(np.repeat(user_degree, user_degree) * item_degree[interactions.indices])
    keys = torch.empty(interactions.nnz, dtype=torch.float64).exponential_(generator=generator).numpy() / weight
    return _smallest(interactions, keys, int(interactions.nnz * (1 - pruning)))


def drop_edges(interactions: csr_array, dropping: float, generator: torch.Generator) -> csr_array:
    """Uniform edge dropout: keeps `int(|E| (1 - dropping))` edges, each set of them with the same probability.

    Parameters
    ----------
    interactions
        R, shape (M, N), binary.
    dropping
        Share of edges to leave out, in [0, 1).

    Returns
    -------
    csr_array
        The kept part of R, not normalised.
    """
    keys = torch.rand(interactions.nnz, dtype=torch.float64, generator=generator).numpy()
    return _smallest(interactions, keys, int(interactions.nnz * (1 - dropping)))


def _smallest(interactions: csr_array, keys: np.ndarray, count: int) -> csr_array:
    """The `count` edges with the smallest of `keys` (|E|,)."""
    users = np.repeat(np.arange(interactions.shape[0]), np.diff(interactions.indptr))
    kept = np.zeros(interactions.nnz, dtype=bool)
    kept[np.argpartition(keys, count - 1)[:count] if count else []] = True
    indptr = np.concatenate([[0], np.cumsum(np.bincount(users[kept], minlength=interactions.shape[0]))])
    return csr_array((interactions.data[kept], interactions.indices[kept], indptr), shape=interactions.shape)


@dataclass(frozen=True)
class Rows:
    """Some rows of a matrix.

    Parameters
    ----------
    ids
        Shape (U,), int64, ascending; on the device that computes.
    places
        Shape (n,), int64: where a row stands in `ids`, or -1; on the CPU.
    """

    ids: Tensor
    places: Tensor

    @classmethod
    def of(cls, nodes: Tensor, count: int, device: torch.device = CPU) -> "Rows":
        """The distinct ones of `nodes`, which are on the CPU, among `count` rows."""
        used = torch.zeros(count, dtype=torch.bool)
        used[nodes] = True
        ids = used.nonzero()[:, 0]
        places = torch.full((count,), -1)
        places[ids] = torch.arange(len(ids))
        return cls(to_device(ids, device), places)

    def take(self, table: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        """For each of `parts`, nodes (B,) with repeats and on the CPU, its rows (B, d) of `table` (U, d).

        One call for all that a loss needs of a table: the gradients are summed into one.
        """
        return take_rows(table, *(self.places[part] for part in parts))

    def select(self, table: Tensor) -> Tensor:
        """These rows (U, d) of `table` (n, d)."""
        selected: Tensor = _Select.apply(table, self) if kernels.are_fast() else table.index_select(0, self.ids)
        return selected

    def spread(self, values: Tensor) -> Tensor:
        """Rows (n, d) that hold `values` (U, d), and zero elsewhere."""
        return values.new_zeros((len(self.places), values.shape[1])).index_copy_(0, self.ids, values)


def embedding_table(counts: Sequence[int], size: int, generator: torch.Generator) -> nn.Parameter:
    """ID embeddings (sum of counts, size), one kind of node below the other, each started by Xavier's uniform rule."""
    table = nn.Parameter(torch.empty(sum(counts), size))
    for part in table.data.split(list(counts)):
        nn.init.xavier_uniform_(part, generator=generator)
    return table


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer whose weight starts by Xavier's rule, drawn from `generator`, and whose bias starts at 0."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def dropout(values: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """`values` with a share of about `rate` set to 0 and the others divided by 1 - rate; `generator` is the CPU's."""
    mask = torch.empty(values.shape).bernoulli_(1 - rate, generator=generator)
    return values * to_device(mask, values.device) / (1 - rate)


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that does not wait for what the device is still computing."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def take_rows(table: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """For each of `parts`, row numbers (B,) with repeats and on the CPU, those rows (B, d) of `table` (n, d)."""
    rows = to_device(torch.cat(parts), table.device).split([len(part) for part in parts])
    if kernels.are_fast():
        taken: tuple[Tensor, ...] = _Take.apply(table, *rows)
        return taken
    return tuple(table[part] for part in rows)


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

    def __init__(self, matrix: csr_array, symmetric: bool = False) -> None:
        super().__init__()
        self.shape: tuple[int, int] = matrix.shape
        arrays = {
            "indptr": matrix.indptr.astype(np.int32),
            "indices": matrix.indices.astype(np.int32),
            "values": matrix.data.astype(np.float32),
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)), persistent=False)
        self._matrix: Tensor | None = None
        self._whole = Rows.of(torch.arange(max(self.shape)), max(self.shape))
        self.transposed: SparseGraph | None = None if symmetric else SparseGraph(csr_array(matrix.T), symmetric=True)

    @property
    def backward_graph(self) -> "SparseGraph":
        return self if self.transposed is None else self.transposed

    def forward(self, dense: Tensor, rows: Rows | None = None) -> Tensor:
        """Matrix times `dense`, shape (m, d) -> (n, d), or of that the rows asked for (U, d)."""
        if kernels.are_fast():
            return _Propagate.apply(dense, self, rows)
        product = torch.sparse.mm(self._torch_matrix(dense.device), dense)
        return product if rows is None else product.index_select(0, rows.ids)

    def layer_mean(self, dense: Tensor, layers: int, rows: Rows | None = None) -> Tensor:
        """Mean of `A^l dense` for l = 0..layers (LightGCN, and the interaction side of eq. 7), or rows of it."""
        if kernels.are_fast():
            return _LayerMean.apply(dense, self, layers, rows)
        outputs = [dense]
        for _ in range(layers):
            outputs.append(torch.sparse.mm(self._torch_matrix(dense.device), outputs[-1]))
        mean = torch.stack(outputs).mean(0)
        return mean if rows is None else mean.index_select(0, rows.ids)

    def multiply(
        self,
        dense: Tensor,
        addend: Tensor | None = None,
        *,
        rows: Rows | None = None,
        dense_rows: Rows | None = None,
        addend_rows: Rows | None = None,
    ) -> Tensor:
        """`A dense + addend`, outside autograd.

        Parameters
        ----------
        rows
            The rows to compute; default: all.
        dense_rows, addend_rows
            The rows that `dense` or `addend` consists of, with zeros in between; default: all.
        """
        if not kernels.are_compiled(dense):
            return self._multiply_torch(dense, addend, rows, dense_rows, addend_rows)
        ids = self._whole.ids[: self.shape[0]] if rows is None else rows.ids
        out = torch.empty((len(ids), dense.shape[1]), dtype=torch.float32)
        contiguous = dense.detach().contiguous()
        start = contiguous if addend is None else addend.detach().contiguous()
        compiled.multiply_rows(
            self.indptr.numpy(),
            self.indices.numpy(),
            self.values.numpy(),
            ids.numpy(),
            (dense_rows or self._whole).places.numpy(),
            contiguous.numpy(),
            addend is not None,
            (addend_rows or self._whole).places.numpy(),
            start.numpy(),
            out.numpy(),
        )
        return out

    def _multiply_torch(
        self,
        dense: Tensor,
        addend: Tensor | None,
        rows: Rows | None = None,
        dense_rows: Rows | None = None,
        addend_rows: Rows | None = None,
    ) -> Tensor:
        """`multiply` through torch's own CSR product (cuSPARSE), which takes no part of a matrix."""
        matrix = self._torch_matrix(dense.device, torch.sparse_csr)
        product = matrix @ (dense if dense_rows is None else dense_rows.spread(dense))
        if addend is not None:
            product.add_(addend if addend_rows is None else addend_rows.spread(addend))
        return product if rows is None else product.index_select(0, rows.ids)

    def _torch_matrix(self, device: torch.device, layout: torch.layout = torch.sparse_coo) -> Tensor:
        """The matrix in a form that torch multiplies, set up once: by coordinates, which autograd takes, or by rows."""
        if self._matrix is None or (self._matrix.device, self._matrix.layout) != (device, layout):
            if layout == torch.sparse_csr:
                matrix = torch.sparse_csr_tensor(
                    self.indptr, self.indices, self.values, self.shape, check_invariants=False
                )
            else:
                places = torch.stack([torch.repeat_interleave(self.indptr.diff()), self.indices.long()])
                matrix = torch.sparse_coo_tensor(
                    places, self.values, self.shape, is_coalesced=True, check_invariants=False
                )
            self._matrix = matrix
        return self._matrix


class _Propagate(torch.autograd.Function):
    """A x; the gradient is A^T g."""

    @staticmethod
    def forward(context: Any, dense: Tensor, graph: SparseGraph, rows: Rows | None) -> Tensor:
        context.graph, context.rows = graph, rows
        return graph.multiply(dense, rows=rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return context.graph.backward_graph.multiply(gradients[0], dense_rows=context.rows), None, None


class _LayerMean(torch.autograd.Function):
    """(1 / (L + 1)) sum_l A^l x by Horner's rule, y <- A y + x; the gradient is the same sum over A^T."""

    @staticmethod
    def forward(context: Any, dense: Tensor, graph: SparseGraph, layers: int, rows: Rows | None) -> Tensor:
        context.graph, context.layers, context.rows = graph, layers, rows
        if layers == 0:
            return dense.clone() if rows is None else dense.index_select(0, rows.ids)
        total = dense
        for _ in range(layers - 1):
            total = graph.multiply(total, dense)
        return graph.multiply(total, dense, rows=rows).div_(layers + 1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        graph, layers, rows = context.graph.backward_graph, context.layers, context.rows
        gradient = gradients[0] / (layers + 1)
        if layers == 0:
            return gradient if rows is None else rows.spread(gradient), None, None, None
        total = graph.multiply(gradient, gradient, dense_rows=rows, addend_rows=rows)
        for _ in range(layers - 1):
            total = graph.multiply(total, gradient, addend_rows=rows)
        return total, None, None, None


class _Select(torch.autograd.Function):
    """Rows of a table, each once: their gradients need no adding up."""

    @staticmethod
    def forward(context: Any, table: Tensor, rows: Rows) -> Tensor:
        context.rows = rows
        return table.index_select(0, rows.ids)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.rows.spread(gradients[0]), None


class _Take(torch.autograd.Function):
    """Selections of rows; the gradient is the sum of theirs, row by row."""

    @staticmethod
    def forward(context: Any, table: Tensor, *places: Tensor) -> tuple[Tensor, ...]:
        context.places, context.count = places, len(table)
        return tuple(table.index_select(0, part) for part in places)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].new_zeros((context.count, gradients[0].shape[1]))
        for part, gradient in zip(context.places, gradients, strict=True):
            total.index_add_(0, part, gradient)
        return total, *(None for _ in context.places)
