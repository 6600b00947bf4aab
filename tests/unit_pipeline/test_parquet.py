import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array, random_array

from pipeline import parquet


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (0, 5), (0, 0)])
def test_array_round_trip(tmp_path: Path, shape: tuple[int, int]):
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    parquet.write_array(vectors, tmp_path / "vectors.parquet")
    read = parquet.read_array(tmp_path / "vectors.parquet")
    assert read.shape == shape
    assert read.dtype == np.float32
    assert np.array_equal(read, vectors)


@pytest.mark.parametrize("shape", [(5, 7), (4, 4), (3, 0), (0, 0)])
def test_graph_round_trip(tmp_path: Path, shape: tuple[int, int]):
    graph = csr_array(random_array(shape, density=0.4, rng=np.random.default_rng(1), dtype=np.float32))
    graph.data[:] = 1
    parquet.write_graph(graph, tmp_path / "graph.parquet")
    read = parquet.read_graph(tmp_path / "graph.parquet")
    assert read.shape == shape
    assert np.array_equal(read.toarray(), graph.toarray())
    assert read.has_sorted_indices


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path):
    path = tmp_path / "table.parquet"
    parquet.write_table(pl.DataFrame({"a": [1]}), path)

    def interrupted() -> None:
        with parquet.atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["table.parquet"]
    assert parquet.read_table(path)["a"].to_list() == [1]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = (tmp_path / f".table.parquet.x.{pid}.tmp" for pid in (process.pid, os.getpid()))
    dead.touch()
    alive.touch()
    parquet.write_table(pl.DataFrame({"a": [1]}), tmp_path / "table.parquet")
    assert (dead.exists(), alive.exists()) == (False, True)


def test_a_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "graph.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(parquet.StoredFileError, match=r"graph\.parquet.*run its stage again"):
        parquet.read_graph(path)
    parquet.write_table(pl.DataFrame({"row": [1], "column": [2]}), path)
    with pytest.raises(parquet.StoredFileError, match="plain table"):
        parquet.read_graph(path)


def test_arrays_of_the_wrong_kind_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="float64"):
        parquet.write_array(np.zeros((2, 2)), tmp_path / "x.parquet")
