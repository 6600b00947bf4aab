import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array, random_array

from pipeline import content, parquet
from pipeline.files import StoredFileError, atomic_folder, atomic_path, delete_leftovers
from tests.damage import flip_a_bit


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
    with pytest.raises(StoredFileError, match="holds 30 of 37 rows, 6 wide"):
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
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in tmp_path.iterdir()] == ["table.parquet"]
    assert parquet.read_table(path)["a"].to_list() == [1]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path):
    folder = tmp_path / "report"
    for name in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["second"]

    def interrupted() -> None:
        with atomic_folder(folder) as temporary:
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
    delete_leftovers(tmp_path)
    assert (alive.exists(), other.exists()) == (True, False)


def test_what_another_machine_left_is_cleared_once_it_is_old(tmp_path: Path):
    old, new = (tmp_path / f".table.parquet.{name}.elsewhere.1.tmp" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    delete_leftovers(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_file_that_vanishes_while_leftovers_are_looked_at_is_no_error(tmp_path: Path, monkeypatch):
    gone = tmp_path / ".table.parquet.x.elsewhere.1.tmp"
    monkeypatch.setattr(Path, "glob", lambda *_: [gone])
    delete_leftovers(tmp_path)


WRITER = """\
import sys
from pathlib import Path
import polars as pl
from pipeline.parquet import write_table
path, name, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
table = pl.DataFrame({"name": [name] * rows, "row": range(rows)})
while path.with_name("go").exists():
    write_table(table, path)
"""


def test_two_that_write_one_file_at_once_while_another_reads(tmp_path: Path):
    path, go = tmp_path / "table.parquet", tmp_path / "go"
    sizes = {"a": 10, "b": 9000}
    written = {name: pl.DataFrame({"name": [name] * rows, "row": range(rows)}) for name, rows in sizes.items()}
    parquet.write_table(written["a"], path)
    go.touch()
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name, str(rows)]) for name, rows in sizes.items()]
    try:
        seen, turns = "a", 0
        for _ in range(100_000):
            table = parquet.read_table(path)
            assert table.equals(written[table["name"][0]])
            turns += seen != table["name"][0]
            seen = table["name"][0]
            if turns == 30:
                break
    finally:
        go.unlink()
        ended = [writer.wait() for writer in writers]
    assert turns == 30
    assert ended == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "graph.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(StoredFileError, match=r"graph\.parquet.*its stage is run again by"):
        parquet.read_graph(path)
    parquet.write_table(pl.DataFrame({"row": [1], "column": [2]}), path)
    with pytest.raises(StoredFileError, match="plain table"):
        parquet.read_graph(path)


@pytest.mark.parametrize("shape", [b"[3", b"3", b"[3]", b'[3, "x"]', b"[null, 3]", b"\xff\xfe", b"[-3, 3]"])
def test_a_shape_that_is_none_is_named(tmp_path: Path, shape: bytes):
    path = tmp_path / "stored.parquet"
    for table in (pa.table({"vector": [[1.0] * 3] * 3}), pa.table({"row": [1], "column": [2]})):
        pq.write_table(table.replace_schema_metadata({parquet.SHAPE: shape}), path)
        for read in (parquet.read_array, parquet.read_graph, parquet.stored_version):
            with pytest.raises(StoredFileError, match=r"stored\.parquet"):
                read(path)


def test_columns_of_another_kind_are_named(tmp_path: Path):
    path, shape = tmp_path / "stored.parquet", {parquet.SHAPE: b"[1, 2]"}
    for table in (pa.table({"vector": ["a"]}), pa.table({"row": ["a"], "column": ["b"]}), pa.table({"other": [1]})):
        pq.write_table(table.replace_schema_metadata(shape), path)
        for read in (parquet.read_array, parquet.read_graph, parquet.stored_version):
            with pytest.raises(StoredFileError, match=r"stored\.parquet"):
                read(path)
    pq.write_table(pa.table({"a": [b"bytes", None]}), path)  # no stage makes these, and they have no version
    with pytest.raises(StoredFileError, match=r"stored\.parquet"):
        parquet.stored_version(path)


def test_text_that_is_no_utf8_is_named(tmp_path: Path):
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"a": text}), tmp_path / "stored.parquet")
    with pytest.raises(StoredFileError, match=r"stored\.parquet: .*UTF8"):
        parquet.read_table(tmp_path / "stored.parquet")
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"note": b"\xff"}), tmp_path / "stored.parquet")
    assert parquet.read_table(tmp_path / "stored.parquet")["a"].to_list() == [1]


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path):
    path = tmp_path / "table.parquet"
    rows = pl.DataFrame({"user": range(60), "item": [f"item {n}" for n in range(60)]})
    parquet.write_table(rows, path)
    whole = path.read_bytes()
    assert pl.read_parquet(path).equals(rows)  # other readers take no notice of the checksum
    seal = whole.index(parquet.SEAL)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        if seal <= place < seal + len(parquet.SEAL):
            assert parquet.read_table(path).equals(rows)
        else:
            with pytest.raises(StoredFileError, match=r"table\.parquet"):
                parquet.read_table(path)


@pytest.mark.parametrize("length", [0, 3, 7, 8, 12, 40, -1])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, length: int):
    path = tmp_path / "graph.parquet"
    parquet.write_graph(csr_array(np.eye(3, dtype=np.float32)), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoredFileError, match=r"graph\.parquet"):
        parquet.read_graph(path)


def test_arrays_of_the_wrong_kind_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="float64"):
        parquet.write_array(np.zeros((2, 2)), tmp_path / "x.parquet")


def test_the_version_of_a_stored_file_comes_of_one_look_at_its_checksum(tmp_path: Path, monkeypatch):
    rng = np.random.default_rng(4)
    array, graph = rng.standard_normal((6, 3)).astype(np.float32), csr_array(np.eye(5, dtype=np.float32))
    table = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    writers = (parquet.write_array, parquet.write_graph, parquet.write_table)
    versions = (content.array_version, content.graph_version, content.table_version)
    looks, verify = [], parquet.verify
    monkeypatch.setattr(parquet, "verify", lambda path: looks.append(path) or verify(path))
    for value, write, version in zip((array, graph, table), writers, versions, strict=True):
        path = tmp_path / f"{write.__name__}.parquet"
        write(value, path)
        looks.clear()
        assert parquet.stored_version(path) == version(value)
        assert looks == [path]
        flip_a_bit(path)
        with pytest.raises((StoredFileError, OSError, pa.ArrowException)):
            parquet.stored_version(path)
