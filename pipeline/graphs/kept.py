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

from pipeline.files import atomic_path
from pipeline.row_cache import CacheSize

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
# NumPy's own archive, not Parquet: lists take a fifth of the time to write and to read, and each array has a checksum.


def save(kept: Kept, path: Path, made_by: str) -> None:
    """Write it in place of what was kept before.

    Parameters
    ----------
    made_by
        Version of all that the contents depend on besides the rows: code, settings, dtype.
    """
    arrays = kept._asdict() | {"made_by": np.array(made_by), "targets": _matrix(kept.targets)}
    if kept.candidates is kept.targets:
        del arrays["candidates"]
    else:
        arrays["candidates"] = _matrix(kept.candidates)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load(path: Path, made_by: str, note: Callable[[str], None]) -> Kept | None:
    """What is kept, or None where there is nothing, or where it was made by other code or settings.

    Parameters
    ----------
    note
        Called with a sentence where the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["made_by"]) != made_by:
                return None
            targets = _hashes(file["targets"])
            candidates = _hashes(file["candidates"]) if "candidates" in file else targets
            return _checked(Kept(targets, candidates, *(file[name] for name in Kept._fields[2:])))
    except Exception as error:  # of a damaged archive NumPy and zipfile raise a dozen kinds
        note(f"{path} is damaged and not used ({error}); the graph is built from nothing")
        return None


def size(folder: Path) -> CacheSize:
    """How much is kept of a folder's graphs: their targets, all in use."""
    files = sorted(folder.glob("*.npz"))
    rows = sum(_rows(path) for path in files)
    return CacheSize(rows, rows, len(files), sum(path.stat().st_size for path in files))


def _checked(kept: Kept) -> Kept:
    """What kernels take without a look at its bounds, held to them."""
    if {len(part) for part in kept[2:]} != {len(kept.targets)}:
        raise ValueError("its rows are not those that it names")
    for found in (kept.ids, kept.supports):
        if found.size and (found.min() < -1 or found.max() >= len(kept.candidates)):
            raise ValueError(f"an id is outside the {len(kept.candidates)} candidates")
    if kept.similarities.shape != kept.ids.shape or not np.isfinite(kept.similarities).all():
        raise ValueError("its similarities are not those of its ids")
    return kept


def _rows(path: Path) -> int:
    try:
        with np.load(path, allow_pickle=False) as file:
            return len(file["complete"])
    except Exception:  # damaged: whoever builds the graph is told so
        return 0


def _matrix(rows: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, HASH)


def _hashes(rows: np.ndarray) -> list[bytes]:
    return [bytes(row) for row in rows]
