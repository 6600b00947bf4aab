"""The row cache: nothing is lost, whoever else reads, writes or compacts it."""

import multiprocessing
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import polars as pl
import pytest

from pipeline import parquet
from pipeline.row_cache import DAMAGED, IN_USE, RowCache, RowCacheError, compact, prune, row_key, size
from tests.damage import cut_off, flip_a_bit

TEXT = {"text": pl.String}
OWN = {"key": pl.String, "written_at": pl.Datetime("ms", "UTC")}


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


@pytest.mark.parametrize("columns", [TEXT, {"text": pl.Binary}])
def test_no_flipped_bit_of_a_shard_is_taken_for_a_row(tmp_path: Path, caplog, columns: dict[str, pl.DataType]):
    with RowCache(tmp_path, columns) as cache:
        for number in range(30):
            cache.add(f"{number:064x}", f"text {number}" if columns is TEXT else bytes([number] * 20))
    rows = cache.rows()
    (shard,) = tmp_path.glob("*.parquet")
    whole = shard.read_bytes()
    seal = whole.index(parquet.SEAL)
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        shard.write_bytes(flipped)
        caplog.clear()
        if seal <= place < seal + len(parquet.SEAL):  # then there is no seal, and the rows are what they were
            assert cache.rows().equals(rows)
            continue
        assert cache.rows().is_empty()
        assert f"{shard} is damaged and set aside in {tmp_path / DAMAGED}" in caplog.text
        assert (tmp_path / DAMAGED / shard.name).read_bytes() == flipped
        assert not shard.exists()


def swap_columns(shard: Path) -> None:
    parquet.write_table(pl.DataFrame({"text": ["key"], "key": [1]}), shard)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_off,
        lambda shard: shard.write_bytes(b""),
        lambda shard: shard.write_bytes(b"no Parquet, though long enough"),
        swap_columns,
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda folder: found(folder, "damaged", "whole"),
        lambda folder: RowCache(folder, TEXT).rows(),
        size,
        compact,
        lambda folder: prune(folder, timedelta(days=1)),
    ],
)
def test_a_damaged_shard_costs_its_own_rows(tmp_path: Path, caplog, damage: Callable, use: Callable):
    keep(tmp_path, damaged="1")
    (shard,) = tmp_path.glob("*.parquet")
    keep(tmp_path, whole="2")
    damage(shard)
    use(tmp_path)
    assert f"{shard} is damaged and set aside" in caplog.text
    assert [path.name for path in (tmp_path / DAMAGED).iterdir()] == [shard.name]
    assert found(tmp_path, "damaged", "whole") == {"whole": "2"}
    keep(tmp_path, damaged="1")
    compact(tmp_path)
    assert found(tmp_path, "damaged", "whole") == {"damaged": "1", "whole": "2"}
    assert size(tmp_path).rows == 2


def test_a_shard_with_other_columns_is_merged_with_none(tmp_path: Path):
    keep(tmp_path, a="1")
    other = pl.DataFrame([("b", datetime.now(UTC), 1)], schema=OWN | {"other": pl.Int64}, orient="row")
    parquet.write_table(other, tmp_path / "other.parquet")
    compact(tmp_path)
    assert size(tmp_path).shards == 2
    assert found(tmp_path, "a", "b") == {"a": "1"}
    assert size(tmp_path).shards == 1


def test_shards_without_a_seal_are_read(tmp_path: Path):
    row = [("old", datetime.now(UTC), "1")]
    pl.DataFrame(row, schema=OWN | TEXT, orient="row").write_parquet(tmp_path / "old.parquet")
    keep(tmp_path, new="2")
    compact(tmp_path)
    assert found(tmp_path, "old", "new") == {"old": "1", "new": "2"}
    (shard,) = tmp_path.glob("*.parquet")
    assert parquet.SEAL in shard.read_bytes()


def test_rows_are_not_pruned_while_it_is_unknown_which_are_in_use(tmp_path: Path, caplog):
    keep(tmp_path, used="u", idle="i")
    RowCache(tmp_path, TEXT).mark_in_use("items", ["used"])
    note = tmp_path / IN_USE / "items.parquet"
    flip_a_bit(note)
    assert prune(tmp_path, timedelta(0)) == 0
    assert size(tmp_path).in_use == 2
    assert f"{note} is damaged" in caplog.text
    RowCache(tmp_path, TEXT).mark_in_use("items", ["used"])
    assert prune(tmp_path, timedelta(0)) == 1


def test_what_the_disk_does_not_give_is_named_and_left_where_it_is(tmp_path: Path):
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(RowCacheError, match=r"folder\.parquet: cannot be read \(.*rights and its disk"):
        found(tmp_path, "key")
    assert (tmp_path / "folder.parquet").exists()


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


def read_on(folder: Path, start: Barrier) -> None:
    start.wait()
    while (folder / "go").exists():
        assert found(folder, "first") == {"first": "1"}


def test_readers_that_meet_damage_at_once_set_it_aside_once(tmp_path: Path):
    keep(tmp_path, first="1")
    (shard,) = tmp_path.glob("*.parquet")
    half = shard.read_bytes()[:-1]
    (tmp_path / "go").touch()
    fork = multiprocessing.get_context("spawn")
    start = fork.Barrier(3, timeout=100)
    readers = [fork.Process(target=read_on, args=(tmp_path, start)) for _ in range(2)]
    for reader in readers:
        reader.start()
    start.wait()
    for number in range(100):
        (tmp_path / "half").write_bytes(half)
        damaged = (tmp_path / "half").rename(tmp_path / f"{number}.parquet")
        while damaged.exists() and any(reader.is_alive() for reader in readers):
            time.sleep(0.001)
    (tmp_path / "go").unlink()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0, 0]
    assert sorted(int(path.stem) for path in (tmp_path / DAMAGED).iterdir()) == list(range(100))
    assert list(tmp_path.glob("*.parquet")) == [shard]


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
