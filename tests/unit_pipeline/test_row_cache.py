"""The row cache: nothing is lost, whoever else reads, writes or compacts it."""

import multiprocessing
import platform
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from pipeline.row_cache import RowCache, RowCacheError, compact, prune, row_key, size

TEXT = {"text": pl.String}


def keep(folder: Path, **rows: str) -> None:
    with RowCache(folder, TEXT, chunk=1) as cache:
        for key, text in rows.items():
            cache.add(key, text)


def found(folder: Path, *keys: str) -> dict[str, str]:
    return dict(RowCache(folder, TEXT).lookup(keys).iter_rows())


def test_rows_come_back_by_key(tmp_path: Path):
    keep(tmp_path, a="one", b="two")
    assert found(tmp_path, "b", "a", "a", "c") == {"a": "one", "b": "two"}
    assert found(tmp_path / "empty") == {}


def test_a_key_tells_its_parts_apart():
    keys = {row_key(prompt, {"model": model}) for prompt in ("a", "b\ud83d\ude00") for model in ("m", "n")}
    assert len(keys) == 4
    assert row_key("a", {"x": 1, "y": 2}) == row_key("a", {"y": 2, "x": 1})


def test_two_answers_to_one_key_do_not_depend_on_file_names(tmp_path: Path):
    for text in ("b", "a", "c"):
        keep(tmp_path, key=text)
    assert found(tmp_path, "key") == {"key": "a"}
    compact(tmp_path)
    assert found(tmp_path, "key") == {"key": "a"}
    assert size(tmp_path).shards == 1


def test_vectors_and_nulls_are_kept_as_they_are(tmp_path: Path):
    with RowCache(tmp_path, {"vector": pl.Binary, "note": pl.String}) as cache:
        cache.add("a", b"\x00\xff", None)
    assert cache.lookup(["a"]).row(0) == ("a", b"\x00\xff", None)


def test_a_slow_chunk_is_written_after_some_time(tmp_path: Path):
    cache = RowCache(tmp_path, TEXT, chunk=1000, seconds=0)
    cache.add("key", "s")
    assert found(tmp_path, "key") == {"key": "s"}


def test_many_small_shards_become_one(tmp_path: Path):
    for number in range(40):
        keep(tmp_path, **{f"k{number}": str(number)})
    assert size(tmp_path).shards < 40
    assert len(found(tmp_path, *(f"k{number}" for number in range(40)))) == 40


def test_pruning_keeps_what_is_in_use_and_what_is_young(tmp_path: Path):
    keep(tmp_path, used="u", idle="i")
    RowCache(tmp_path, TEXT).mark_in_use("items", ["used"])
    assert size(tmp_path).in_use == 1
    assert prune(tmp_path, timedelta(days=1)) == 0
    assert prune(tmp_path, timedelta(0)) == 1
    assert found(tmp_path, "used", "idle") == {"used": "u"}
    assert prune(tmp_path, timedelta(0)) == 0


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(RowCacheError, match=r"broken.parquet: not a readable shard.*delete it"):
        found(tmp_path, "key")


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    leftover = tmp_path / f".shard.parquet.x.{platform.node().replace('.', '-')}.{killed.pid}.tmp"
    leftover.touch()
    RowCache(tmp_path, TEXT)
    assert not leftover.exists()


def write_rows(folder: Path, name: str, count: int) -> None:
    for number in range(count):
        keep(folder, **{f"{name}{number}": f"{name} {number}"})


def test_writers_a_reader_and_a_compactor_at_once_lose_nothing(tmp_path: Path):
    keep(tmp_path, first="1")
    fork = multiprocessing.get_context("spawn")
    writers = [fork.Process(target=write_rows, args=(tmp_path, name, 40)) for name in ("a", "b")]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        assert found(tmp_path, "first") == {"first": "1"}
        now = size(tmp_path).rows
        assert now >= seen
        seen = now
        compact(tmp_path)
    assert [writer.exitcode for writer in writers] == [0, 0]
    wanted = {f"{name}{number}" for name in ("a", "b") for number in range(40)}
    assert found(tmp_path, *wanted).keys() == wanted
