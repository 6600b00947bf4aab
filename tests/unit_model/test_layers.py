import numba
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, random_array
from torch import Tensor

from model.layers import (
    Rows,
    SparseGraph,
    bipartite_adjacency,
    degree_normalised,
    drop_edges,
    dropout,
    linear,
    prune_edges,
    take_rows,
)


def graph(rows: int, columns: int, density: float, seed: int = 0) -> csr_array:
    made = random_array((rows, columns), density=density, format="csr", rng=np.random.default_rng(seed))
    made.data = np.random.default_rng(seed).standard_normal(made.nnz).astype(np.float32)
    made.sort_indices()
    return csr_array(made)


def reference(matrix: csr_array) -> torch.Tensor:
    """The matrix in torch's coordinate form, the readable way to propagate."""
    form = matrix.tocoo()
    indices, values = torch.from_numpy(np.stack(form.coords)), torch.from_numpy(form.data)
    return torch.sparse_coo_tensor(indices, values, form.shape, check_invariants=True)


def test_bipartite_adjacency_by_hand() -> None:
    # Users 0, 1; items 2, 3. Edges (0, 2), (0, 3), (1, 3): degrees 2, 1, 1, 2.
    dense = bipartite_adjacency(csr_array(np.array([[1, 1], [0, 1]], dtype=np.float32))).toarray()
    root = 1 / np.sqrt(2)
    expected = np.array([[0, 0, root, 0.5], [0, 0, 0, root], [root, 0, 0, 0], [0.5, root, 0, 0]])
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


def test_directed_graph_takes_row_degrees_on_both_sides() -> None:
    # Row degrees 2, 1, 0: the edges to node 2, whose row is empty, weigh nothing.
    directed = csr_array(np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=np.float32))
    root = 1 / np.sqrt(2)
    np.testing.assert_allclose(
        degree_normalised(directed).toarray(), [[0, root, 0], [root, 0, 0], [0, 0, 0]], rtol=1e-6
    )


@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize(("rows", "columns", "density"), [(40, 40, 0.2), (300, 120, 0.02), (5, 9, 0.0)])
def test_propagation_and_its_gradient_equal_torch(rows: int, columns: int, density: float, width: int) -> None:
    matrix = graph(rows, columns, density)
    dense = torch.randn(columns, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    other = dense.detach().clone().requires_grad_()
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    result = SparseGraph(matrix)(dense)
    expected = torch.sparse.mm(reference(matrix), other)
    torch.testing.assert_close(result, expected)
    (result * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(dense.grad, other.grad)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_layer_mean_and_its_gradient_equal_torch(layers: int, symmetric: bool) -> None:
    matrix = graph(50, 50, 0.1)
    if symmetric:
        matrix = csr_array(matrix + matrix.T)
    dense = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    other = dense.detach().clone().requires_grad_()
    result = SparseGraph(matrix, symmetric=symmetric).layer_mean(dense, layers)
    outputs = [other]
    for _ in range(layers):
        outputs.append(torch.sparse.mm(reference(matrix), outputs[-1]))
    expected = torch.stack(outputs).mean(0)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    result.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(dense.grad, other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [5, 64, 70])
def test_some_rows_of_a_product_are_those_of_the_whole(width: int) -> None:
    made = SparseGraph(graph(60, 60, 0.1))
    dense, addend = torch.randn(60, width), torch.randn(60, width)
    rows, others = (Rows.of(torch.tensor(nodes), 60) for nodes in ([7, 3, 3, 59, 0], [1, 58, 4]))
    whole = made.multiply(dense, addend)
    assert torch.equal(made.multiply(dense, addend, rows=rows), whole[[0, 3, 7, 59]])
    assert rows.places[[7, 3, 59, 1]].tolist() == [2, 1, 3, -1]
    sparse, few = torch.zeros(60, width), dense[others.ids]
    sparse[others.ids] = few
    assert torch.equal(others.spread(few), sparse)
    assert torch.equal(made.multiply(few, dense_rows=others), made.multiply(sparse))
    expected = made.multiply(sparse, rows.spread(addend[rows.ids]))
    assert torch.equal(made.multiply(few, addend[rows.ids], dense_rows=others, addend_rows=rows), expected)


def test_torchs_form_of_the_product_equals_the_kernel() -> None:
    made = SparseGraph(graph(60, 60, 0.1))
    few, dense, addend = torch.randn(3, 5), torch.randn(60, 5), torch.randn(60, 5)
    rows = Rows.of(torch.tensor([5, 1, 40]), 60)
    cases: list[tuple[Tensor, Tensor | None, dict[str, Rows]]] = [
        (dense, None, {}),
        (dense, addend, {}),
        (dense, addend, {"rows": rows}),
        (few, few, {"dense_rows": rows, "addend_rows": rows}),
    ]
    for factor, plus, chosen in cases:
        torch.testing.assert_close(made._multiply_torch(factor, plus, **chosen), made.multiply(factor, plus, **chosen))


def test_product_does_not_depend_on_the_number_of_threads() -> None:
    made, dense = SparseGraph(graph(500, 400, 0.05)), torch.randn(400, 64)
    alone = made.multiply(dense)
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert torch.equal(made.multiply(dense), alone)


def test_product_takes_strided_input() -> None:
    made = SparseGraph(graph(20, 20, 0.3))
    wide = torch.randn(6, 20)
    torch.testing.assert_close(made.multiply(wide.T), made.multiply(wide.T.contiguous()))


def test_a_graph_is_no_weight() -> None:
    assert not SparseGraph(graph(4, 4, 0.5)).state_dict()


def test_pruning_keeps_the_stated_share_of_the_edges() -> None:
    edges = csr_array((graph(80, 50, 0.1) != 0).astype(np.float32))
    kept = prune_edges(edges, 0.6, torch.Generator().manual_seed(0))
    assert kept.nnz == int(edges.nnz * (1 - 0.6))
    assert (kept - edges.multiply(kept)).nnz == 0
    assert kept.has_canonical_format
    again = prune_edges(edges, 0.6, torch.Generator().manual_seed(0))
    assert np.array_equal(kept.toarray(), again.toarray())
    assert not np.array_equal(kept.toarray(), prune_edges(edges, 0.6, torch.Generator().manual_seed(1)).toarray())


def test_pruning_spares_edges_of_low_degree_in_the_stated_proportion() -> None:
    # One edge is kept of five: (0, 0..3), each of weight 1/sqrt(4), and (1, 4) of weight 1, so the latter has 1/3.
    edges = csr_array(np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=np.float32))
    generator = torch.Generator().manual_seed(0)
    draws = [prune_edges(edges, 0.8 - 1e-9, generator).toarray()[1, 4] for _ in range(3000)]
    assert np.mean(draws) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("width", [5, 64])
def test_rows_taken_and_their_gradient_equal_a_selection(width: int) -> None:
    parts = [torch.tensor([7, 3, 3, 59]), torch.tensor([3, 0]), torch.tensor([], dtype=torch.int64)]
    rows = Rows.of(torch.cat(parts), 60)
    whole = torch.randn(60, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    table = whole.detach()[rows.ids].requires_grad_()
    for part, taken in zip(parts, rows.take(table, *parts), strict=True):
        assert torch.equal(taken, whole[part])
    sum((k + 1) * taken.square().sum() for k, taken in enumerate(rows.take(table, *parts))).backward()
    sum((k + 1) * whole[part].square().sum() for k, part in enumerate(parts)).backward()
    torch.testing.assert_close(rows.spread(table.grad), whole.grad)


def test_rows_of_a_whole_table_and_their_gradients_equal_a_selection() -> None:
    parts = [torch.tensor([7, 3, 3, 59]), torch.tensor([3, 0])]
    rows = Rows.of(torch.cat(parts), 60)
    tables = [torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    fast = [rows.select(tables[0]), *take_rows(tables[0], *parts)]
    expected = [tables[1][part] for part in (torch.tensor([0, 3, 7, 59]), *parts)]
    for taken, part in zip(fast, expected, strict=True):
        assert torch.equal(taken, part)
    for taken in (fast, expected):
        sum((k + 1) * part.square().sum() for k, part in enumerate(taken)).backward()
    torch.testing.assert_close(tables[0].grad, tables[1].grad)


def test_dropout_keeps_the_mean_and_follows_its_generator() -> None:
    values = torch.full((200, 50), 3.0)
    dropped, again = (dropout(values, 0.25, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(dropped, again)
    assert set(dropped.unique().tolist()) == {0, 4}
    assert dropped.mean().item() == pytest.approx(3, abs=0.05)
    assert torch.equal(dropout(values, 0, torch.Generator()), values)


def test_a_linear_layer_draws_from_its_generator_alone() -> None:
    before = torch.get_rng_state()
    layer, same = (linear(30, 20, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(layer.weight, same.weight)
    assert layer.weight.abs().max().item() == pytest.approx((6 / 50) ** 0.5, rel=0.05)
    assert not layer.bias.any()


def test_edge_dropout_is_uniform_and_keeps_the_stated_share() -> None:
    edges = csr_array(np.array([[1, 1, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=np.float32))
    generator = torch.Generator().manual_seed(0)
    draws = np.stack([drop_edges(edges, 0.4, generator).toarray() for _ in range(1000)])
    assert (draws.sum((1, 2)) == 3).all()
    np.testing.assert_allclose(draws.mean(0)[edges.toarray() > 0], 0.6, atol=0.06)
    assert not draws[:, edges.toarray() == 0].any()
