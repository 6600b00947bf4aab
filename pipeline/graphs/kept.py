"""What a graph was made of, kept on disk for the next time: rows by their hash, neighbours, supports.

A kept file may be damaged, old or gone: then a graph is built from nothing, and nothing else happens.
"""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.parquet import atomic_path
from pipeline.row_cache import CacheSize

MADE_BY, HOLDS = b"scale.made_by", b"scale.holds"
CANDIDATES = ".candidates.parquet"
HASH = 16  # bytes


class Kept(NamedTuple):
    """A graph's n targets and m candidates, and what was found out about each target.

    targets, candidates
        Hash of each row's features; one and the same list where a set is compared with itself.
    ids
        (n, w) int32: nearest candidates, nearest first, equal ones by ascending id; -1 after the last.
    similarities
        (n, w) float32; 0 where the id is -1.
    complete
        (n,) bool: the list holds every candidate that has a direction.
    supports
        (n, k_o) int32: chosen candidates in the order of their choice, then -1; k_o = 0 without a pursuit.
    plain
        (n,) bool: float32 correlations decided every round of the pursuit.
    """

    targets: list[bytes]
    candidates: list[bytes]
    ids: np.ndarray
    similarities: np.ndarray
    complete: np.ndarray
    supports: np.ndarray
    plain: np.ndarray


def row_hashes(features: np.ndarray) -> list[bytes]:
    """Content hash of each row."""
    rows = np.ascontiguousarray(features)
    return [hashlib.blake2b(row, digest_size=HASH).digest() for row in rows]


def align(before: Sequence[bytes], after: Sequence[bytes]) -> np.ndarray:
    """For each row after, the equal row before that it stands for, or -1; int64, ascending where not negative.

    Rows that occur once on both sides and keep their order are anchors; equal rows next to them follow. A row that
    moved against the order of the others counts as new.
    """
    if before == after:
        return np.arange(len(after))
    found = np.full(len(after), -1, np.int64)
    often_before, often_after = Counter(before), Counter(after)
    place = {row: i for i, row in enumerate(before) if often_before[row] == 1}
    unique = [(place[row], j) for j, row in enumerate(after) if often_after[row] == 1 and row in place]
    i, j = -1, -1
    for above, right in [*(unique[r] for r in _longest_ascending([pair[0] for pair in unique])),
                         (len(before), len(after))]:  # fmt: skip
        while i + 1 < above and j + 1 < right and before[i + 1] == after[j + 1]:
            i, j = i + 1, j + 1
            found[j] = i
        up, left = above, right
        while up - 1 > i and left - 1 > j and before[up - 1] == after[left - 1]:
            up, left = up - 1, left - 1
            found[left] = up
        if right < len(after):
            found[right] = above
        i, j = above, right
    return found


def _longest_ascending(values: Sequence[int]) -> list[int]:
    """Places of a longest ascending subsequence of distinct values."""
    tails: list[int] = []  # last value of the best subsequence of each length
    places: list[int] = []
    previous = [-1] * len(values)
    for place, value in enumerate(values):
        length = bisect_left(tails, value)
        previous[place] = places[length - 1] if length else -1
        tails[length : length + 1], places[length : length + 1] = [value], [place]
    found: list[int] = []
    place = places[-1] if places else -1
    while place >= 0:
        found.append(place)
        place = previous[place]
    return found[::-1]


# ------------------------------------------------------------------------------------------------------- on disk


def save(kept: Kept, path: Path, made_by: str) -> None:
    """Write it in place of what was kept before.

    Parameters
    ----------
    made_by
        Version of all that the contents depend on besides the rows: code, settings, dtype.
    """
    columns = {
        "row": _binary(kept.targets),
        "ids": _lists(kept.ids),
        "similarities": _lists(kept.similarities),
        "complete": pa.array(kept.complete),
    }
    if kept.supports.shape[1]:
        columns |= {"support": _lists(kept.supports), "plain": pa.array(kept.plain)}
    metadata = {MADE_BY: made_by.encode(), HOLDS: _holds(kept.targets, kept.candidates)}
    _write(pa.table(columns, metadata=metadata), path)
    if kept.candidates is kept.targets:
        candidates_path(path).unlink(missing_ok=True)
    else:
        _write(pa.table({"row": _binary(kept.candidates)}), candidates_path(path))


def load(path: Path, made_by: str, same: bool, note: Callable[[str], None]) -> Kept | None:
    """What is kept, or None where there is nothing, or where it was made by other code or settings.

    Parameters
    ----------
    same
        Whether the candidates are the targets themselves.
    note
        Called with a sentence where a file is damaged.
    """
    try:
        schema = pq.read_schema(path)
        if (schema.metadata or {}).get(MADE_BY) != made_by.encode():
            return None
        table = pq.read_table(path, page_checksum_verification=True)
        targets = table.column("row").to_pylist()
        candidates = targets if same else _candidates(path)
        if table.schema.metadata[HOLDS] != _holds(targets, candidates):
            raise ValueError("its rows are not those that it names")
        return _kept(table, targets, candidates)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        note(f"{path} is damaged and not used ({error}); the graph is built from nothing")
        return None


def size(folder: Path) -> CacheSize:
    """How much is kept of a folder's graphs: their targets, all in use."""
    files = sorted(folder.glob("*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in files if not path.name.endswith(CANDIDATES))
    return CacheSize(rows, rows, len(files), sum(path.stat().st_size for path in files))


def candidates_path(path: Path) -> Path:
    """Where the candidates' rows are kept if they are not the targets'."""
    return path.with_suffix(CANDIDATES)


def delete(path: Path) -> None:
    """Delete what is kept, if there is something."""
    path.unlink(missing_ok=True)
    candidates_path(path).unlink(missing_ok=True)


def _kept(table: pa.Table, targets: list[bytes], candidates: list[bytes]) -> Kept:
    n, m = len(targets), len(candidates)
    ids, similarities = _matrix(table, "ids"), _matrix(table, "similarities")
    pursued = "support" in table.column_names
    supports = _matrix(table, "support") if pursued else np.empty((n, 0), np.int32)
    plain = table.column("plain").to_numpy() if pursued else np.ones(n, np.bool_)
    for found in (ids, supports):
        if found.size and (found.min() < -1 or found.max() >= m):
            raise ValueError(f"an id is outside the {m} candidates")
    if similarities.shape != ids.shape or not np.isfinite(similarities).all():
        raise ValueError("its similarities are not those of its ids")
    return Kept(targets, candidates, ids, similarities, table.column("complete").to_numpy(), supports, plain)


def _candidates(path: Path) -> list[bytes]:
    return pq.read_table(candidates_path(path), page_checksum_verification=True).column("row").to_pylist()


def _write(table: pa.Table, path: Path) -> None:
    with atomic_path(path) as temporary:  # ids and similarities hardly compress
        pq.write_table(table, temporary, compression="none", use_dictionary=False, write_page_checksum=True)


def _holds(targets: list[bytes], candidates: list[bytes]) -> bytes:
    """Hash of all rows, in order: files of two different graphs do not pass for one."""
    hasher = hashlib.blake2b(b"".join(targets), digest_size=HASH)
    hasher.update(b"candidates" + (b"" if candidates is targets else b"".join(candidates)))
    return hasher.hexdigest().encode()


def _binary(rows: list[bytes]) -> pa.Array:
    return pa.array(rows, pa.binary(HASH))


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table.column(name)
    parts = [part.flatten().to_numpy() for part in column.chunks]
    return np.concatenate(parts).reshape(len(table), column.type.list_size)
