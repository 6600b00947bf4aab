import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
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


def test_array_is_written_and_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "_PACKED_BYTES", 4 * 6 * 10)
    monkeypatch.setattr(parquet, "_UNPACKED_BYTES", 4 * 6 * 3)
    vectors = np.random.default_rng(0).normal(size=(37, 6)).astype(np.float32)
    path = tmp_path / "vectors.parquet"
    parquet.write_array(vectors, path)
    assert pq.ParquetFile(path).num_row_groups == 4
    assert np.array_equal(parquet.read_array(path), vectors)
    pq.write_table(pq.read_table(path).slice(0, 30), path)  # its shape in the metadata says 37
    with pytest.raises(parquet.StoredFileError, match="holds 30 of 37 rows"):
        parquet.read_array(path)


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


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "report"
    for name in ("first", "second"):
        with parquet.atomic_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["second"]

    def interrupted() -> None:
        with parquet.atomic_folder(folder) as temporary:
            (temporary / "third").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = platform.node().replace(".", "-")
    dead, alive = (tmp_path / f".table.parquet.x.{host}.{pid}.tmp" for pid in (process.pid, os.getpid()))
    other = tmp_path / f".other.parquet.x.{host}.{process.pid}.tmp"
    for leftover in (alive, other):
        leftover.touch()
    (dead / "folder").mkdir(parents=True)
    parquet.write_table(pl.DataFrame({"a": [1]}), tmp_path / "table.parquet")
    assert (dead.exists(), alive.exists(), other.exists()) == (False, True, True)
    parquet.delete_leftovers(tmp_path)
    assert (alive.exists(), other.exists()) == (True, False)


def test_what_another_machine_left_is_cleared_once_it_is_old(tmp_path: Path):
    old, new = (tmp_path / f".table.parquet.{name}.elsewhere.1.tmp" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    parquet.delete_leftovers(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_file_that_vanishes_while_leftovers_are_looked_at_is_no_error(tmp_path: Path, monkeypatch):
    gone = tmp_path / ".table.parquet.x.elsewhere.1.tmp"
    monkeypatch.setattr(Path, "glob", lambda *_: [gone])
    parquet.delete_leftovers(tmp_path)


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
