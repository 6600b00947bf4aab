"""Memory that is not there although the budget allows it: smaller blocks, the same result, and then a clear error."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.graphs import products, shortage, tensors
from pipeline.graphs.execution import DEFAULT, Execution
from pipeline.graphs.knn import nearest, similarity_graph
from pipeline.graphs.omp import subspace_graph
from pipeline.settings import IndexSettings

ROWS, OTHERS, DIMENSIONS = 500, 300, 12


class Tight:
    """numpy, but for arrays with so many columns, of which it has memory for a few rows alone."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows, self.refused = columns, rows, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, *rest: Any) -> np.ndarray:
        if isinstance(shape, tuple) and shape[1:] == (self.columns,) and shape[0] > self.rows:
            self.refused += 1
            raise MemoryError
        return np.empty(shape, *rest)


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    left, right = (rng.standard_normal((rows, DIMENSIONS)).astype(np.float32) for rows in (ROWS, OTHERS))
    left[7] = left[8]  # a tie
    return left, right


def graphs(left: np.ndarray, right: np.ndarray | None, how: Execution = DEFAULT) -> list[bytes]:
    found = [similarity_graph(left, right, 5, how), subspace_graph(left, right, 40, 4, how)]
    return [part.tobytes() for graph in found for part in (graph.indptr, graph.indices, graph.data)]


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("within", [True, False])
def test_a_block_that_does_not_fit_is_halved(within: bool, rows: int, features, monkeypatch, caplog):
    left, right = features[0], None if within else features[1]
    expected = graphs(left, right)
    tight = Tight(ROWS if within else OTHERS, rows)
    monkeypatch.setattr(products, "np", tight)
    with caplog.at_level(logging.WARNING):
        assert graphs(left, right) == expected
    assert tight.refused == len(caplog.records) >= 2
    assert "made smaller; the result is the same" in caplog.text


def test_packed_candidates_that_do_not_fit_are_packed_by_parts(features, monkeypatch, caplog):
    many = np.random.default_rng(8).standard_normal((2 * products.kernels.TILE + 50, DIMENSIONS)).astype(np.float32)
    expected = graphs(features[0], many)
    pack = products.kernels.pack

    def tight(rows: np.ndarray, width: int, ids: np.ndarray | None = None) -> np.ndarray:
        if rows.shape == many.shape and ids is not None and len(ids) > products.kernels.TILE:
            raise MemoryError
        return pack(rows, width, ids)

    monkeypatch.setattr(products.kernels, "pack", tight)
    monkeypatch.setattr(products, "gram", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        assert graphs(features[0], many) == expected
    assert caplog.records


def test_an_index_and_its_search_bear_it(features, monkeypatch, caplog):
    index = IndexSettings(above=50)
    expected = graphs(features[0], None, Execution(index=index))
    clusters = round(ROWS**0.5)
    monkeypatch.setattr(products, "np", Tight(clusters, 20))
    with caplog.at_level(logging.WARNING):
        assert graphs(features[0], None, Execution(index=index)) == expected
    assert caplog.records


def test_a_sweep_that_does_not_fit_is_a_search_in_blocks(monkeypatch, caplog):
    rows = np.random.default_rng(6).standard_normal((8 * products.LARGEST_BLOCK, 8)).astype(np.float32)
    expected = nearest(rows, None, 3)
    swept = products.nearest_by_sweep(products.unit_rows(rows, "rows").units, 3, 4e9, None)
    assert swept is not None  # so many rows are swept where there is memory
    monkeypatch.setattr(products, "_swept", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with caplog.at_level(logging.WARNING):
        found = nearest(rows, None, 3)
    assert [part.tobytes() for part in found] == [part.tobytes() for part in expected]
    assert "searched in blocks" in caplog.text


def test_not_even_one_row(features, monkeypatch):
    monkeypatch.setattr(products, "np", Tight(OTHERS, 0))
    with pytest.raises(MemoryError, match=r"one row to 300 others, and that cannot be made smaller: free memory"):
        nearest(*features, 5)


@pytest.mark.parametrize("limit", [1, 7])
def test_on_a_gpu_a_block_is_halved_too(limit: int, features, monkeypatch, caplog):
    device = torch.device("cpu")

    def found() -> list[bytes]:
        ids, similarities = tensors.nearest(*features, 5, device, 1e9, None)
        return [part.tobytes() for part in (ids, similarities, tensors.supports(*features, 40, 4, device, 1e9, None))]

    # A matrix product is rounded by its number of rows here: those of one row at a time are compared.
    monkeypatch.setattr(tensors, "_blocks", lambda rows, *_: ((row, min(rows, row + 1)) for row in range(rows)))
    expected = found()
    monkeypatch.undo()
    top = tensors._top

    def tight(queries: torch.Tensor, *rest: Any) -> Any:
        if len(queries) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return top(queries, *rest)

    monkeypatch.setattr(tensors, "_top", tight)
    with caplog.at_level(logging.WARNING):
        ids, *others = found()
    assert "halved to" in caplog.text
    assert ids == expected[0]
    if limit == 1:
        assert others == expected[1:]
    monkeypatch.setattr(tensors, "_top", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    with pytest.raises(MemoryError, match="no memory for one row"):
        found()


def test_halves_come_in_order_and_cover_all():
    def work(first: int, last: int) -> list[int]:
        if last - first > 3:
            raise MemoryError
        return list(range(first, last))

    parts = list(shortage.halving(work, 2, 25, MemoryError))
    assert [row for *_, rows in parts for row in rows] == list(range(2, 25))
    assert [bounds for *bounds, _ in parts] == [[rows[0], rows[-1] + 1] for *_, rows in parts]
    with pytest.raises(ZeroDivisionError):  # another error is not taken for a shortage
        list(shortage.halving(lambda first, last: 1 // 0, 0, 4, MemoryError))


WITHIN_LIMITS = """
import logging, resource
from pathlib import Path
import numpy as np
from pipeline.graphs.knn import similarity_graph
from pipeline.graphs.omp import subspace_graph

logging.basicConfig(format="%(message)s")
features = np.random.default_rng(5).standard_normal((9_000, 16)).astype(np.float32)

def graphs(rows):
    found = [similarity_graph(rows, None, 5), subspace_graph(rows, None, 40, 4)]
    return [part.tobytes() for graph in found for part in (graph.indptr, graph.indices, graph.data)]

expected = graphs(features)
for room in (60_000_000, 12_000_000):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + room, resource.RLIM_INFINITY))
    print(graphs(features) == expected, flush=True)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell what a process holds")
def test_the_same_graphs_where_the_system_gives_no_more_memory():
    """Nothing is injected here: the process may not take more than so many bytes, and its allocations fail."""
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # what is freed is no reserve of the process
    ended = subprocess.run([sys.executable, "-c", WITHIN_LIMITS], env=given_back, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "True\nTrue\n"), ended.stderr
    assert "no memory for all 9,000 x 9,000 products: they are computed as they are needed" in ended.stderr
    assert "no memory for a sweep over 9,000 rows: they are searched in blocks" in ended.stderr
    assert "no memory for a block of" in ended.stderr
