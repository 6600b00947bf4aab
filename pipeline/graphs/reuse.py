"""Graphs whose rows are computed again only where their result can be another, equal to a full build bit for bit.

For every target a list is kept of its nearest candidates, a few more than its dictionary takes. After an edit the lists
are brought up to date: vanished candidates leave, and new ones take their places, by similarities of new candidates
alone. A list is searched anew only if its target is new or more candidates left than the reserve can replace.

A pursuit is run again only if an atom of the support left the dictionary, or an atom that joined it would be chosen
(`kernels.still_chosen`). Similarities depend on two rows alone and ties go to the lower id, so all this is exact as
long as the rows that stayed keep their order; those that do not count as new (`kept.align`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from pipeline import compute, fingerprint
from pipeline.graphs import csr, knn
from pipeline.graphs.execution import DEFAULT, Execution
from pipeline.graphs.kept import Kept, align, load, row_hashes, save

if TYPE_CHECKING:
    from pipeline.compute import Cluster

# Share of new rows, among targets or candidates, above which everything is built anew. A full search of a set in itself
# takes half of all products, and each new row is compared with all others twice: at 0.25 nothing would be gained, and
# lists have to be brought up to date besides.
SEARCH_LIMIT = 0.15
# Share of new candidates above which pursuits are all run anew: with supports of 10 a third of them falls at 0.02 and
# seven in eight at 0.1, each of which costs three times as much without the Gram matrix.
PURSUIT_LIMIT = 0.03
# A product of a gathered dictionary waits for memory: it takes as long as this many of a Gram matrix, of which half are
# computed. Measured at 7,050 and 19,445 candidates: 0.45 ms a pursuit, against 0.03 ms and the matrix.
GATHERED = 7.0


class Built(NamedTuple):
    """A graph, how many of its rows were computed, and how many were taken from the last one."""

    graph: csr_array
    computed: int
    reused: int


class Memory(NamedTuple):
    """Where a graph's last build is kept.

    path
        File for it; its folder is made.
    code
        Version of the code that builds the graph.
    note
        Called with a sentence where the file is damaged.
    """

    path: Path
    code: str
    note: Callable[[str], None]


def similarity_graph(
    queries: np.ndarray,
    candidates: np.ndarray | None,
    k: int,
    memory: Memory,
    how: Execution = DEFAULT,
) -> Built:
    """`knn.similarity_graph`, from what is in `memory` as far as it goes; a row is computed if it is searched anew."""
    if not is_kept(queries, candidates, k, how):
        memory.path.unlink(missing_ok=True)
        graph = knn.similarity_graph(queries, candidates, k, how)
        return Built(graph, graph.shape[0], 0)
    kept, computed = refreshed(queries, candidates, k, 0, memory, how)
    return built(kept.ids[:, :k], kept, computed)


def is_kept(targets: np.ndarray, candidates: np.ndarray | None, k: int, how: Execution) -> bool:
    """Whether this graph's builds are kept: exact, reproducible ones that leave at least half of the budget."""
    from pipeline.graphs import products

    m = (targets if candidates is None else candidates).shape[0]
    if k < 1 or products.accelerator(how.device) is not None or how.index_for(m) is not None:
        return False
    return 2 * _bytes(targets.shape[0], _width(k, m)) <= how.memory_gb * 1e9


def _width(k: int, candidates: int) -> int:
    """Length of a target's list: k, and a reserve that outlasts a few per cent of the candidates."""
    return max(1, min(k + k // 16 + 8, candidates))


def _bytes(rows: int, width: int) -> int:
    """What lists take while they are brought up to date: old and new ids and similarities, and a mark each."""
    return rows * width * 17


def built(ids: np.ndarray, kept: Kept, computed: int) -> Built:
    """The graph with an edge from each target to each of its `ids` (n, k)."""
    return Built(csr.from_neighbours(ids, len(kept.candidates)), computed, len(kept.targets) - computed)


def refreshed(
    targets: np.ndarray,
    candidates: np.ndarray | None,
    k: int,
    sparsity: int,
    memory: Memory,
    how: Execution,
) -> tuple[Kept, int]:
    """Lists and supports of all targets, kept for the next time, and how many of them were computed."""
    from pipeline.graphs import kernels

    made_by = fingerprint.settings_version(
        [memory.code, k, sparsity, targets.shape[1:], str(targets.dtype), candidates is None]
        + ([] if candidates is None else [str(candidates.dtype)])
    )
    with kernels.thread_pool(how.threads):
        job = _Job(targets, candidates, k, sparsity, how)
        rows = row_hashes(targets)
        others = rows if candidates is None else row_hashes(candidates)
        old = load(memory.path, made_by, memory.note)
        updated = None if old is None else job.update(old, rows, others)
        kept, computed = updated or (job.build(rows, others), len(rows))
    save(kept, memory.path, made_by)
    return kept, computed


class _Job:
    """One graph to build: lists (n, w), and supports (n, k_o) where `sparsity` is not 0. See `Kept`."""

    def __init__(
        self,
        targets: np.ndarray,
        candidates: np.ndarray | None,
        k: int,
        sparsity: int,
        how: Execution,
    ) -> None:
        from pipeline.graphs import products

        self.targets, self.candidates = targets, targets if candidates is None else candidates
        self.same, self.k, self.how = candidates is None, k, how
        self.left, self.right = products.unit_pair(targets, candidates)
        self.width = _width(k, len(self.candidates))
        self.size = max(0, min(k, self.right.kept.size - self.same))  # of a dictionary
        self.sparsity = min(sparsity, self.size)
        copies = self.left.units.nbytes + (0 if self.same else self.right.units.nbytes)
        self.room = how.memory_gb * 1e9 - _bytes(len(targets), self.width) - copies
        # How many candidates there are for each target, itself left out.
        self.available = np.zeros(len(targets), np.int64)
        self.available[self.left.kept] = self.right.kept.size - self.same

    def build(self, targets: list[bytes], candidates: list[bytes]) -> Kept:
        """Everything from nothing."""
        from pipeline.graphs import products

        rows = np.arange(len(targets))
        pursues = self.sparsity > 0 and len(rows) > 0
        gram = products.gram(self.right.units, self.room) if pursues and self.same else None
        ids, similarities = self._search(rows) if gram is None else self._search_gram(gram)
        if pursues and not self.same:  # no sooner, as the search takes the same room
            gram = products.gram(self.right.units, self.room)
        supports, plain = self._no_supports()
        self._pursue(rows, ids, similarities, gram, supports, plain)
        return Kept(targets, candidates, ids, similarities, self._complete(ids), supports, plain)

    def update(self, old: Kept, targets: list[bytes], candidates: list[bytes]) -> tuple[Kept, int] | None:
        """What an edit leaves, brought up to date, and how many rows were computed; None where that does not pay."""
        origin = align(old.targets, targets)  # for each row its old row, or -1
        source = origin if self.same else align(old.candidates, candidates)
        if not self._is_worthwhile(old, origin, source):
            return None
        stayed = np.flatnonzero(origin >= 0)
        moved = np.full(len(old.candidates), -1, np.int32)
        moved[source[source >= 0]] = np.flatnonzero(source >= 0)
        ids, similarities, joined = self._merge(old, origin, stayed, moved, np.flatnonzero(source < 0))
        short = (ids >= 0).sum(axis=1) < np.minimum(self.k, self.available)
        searched = np.flatnonzero((origin < 0) | short)
        ids[searched], similarities[searched] = self._search(searched)
        again = (origin < 0) | short
        touched = joined[:, : self.size].any(axis=1)
        supports, plain = self._no_supports()
        if self.sparsity:
            supports[stayed] = _moved(old.supports[origin[stayed]], moved)
            plain[stayed] = old.plain[origin[stayed]]
            again |= touched & ~plain
            doubtful = np.flatnonzero(touched & ~again)
            again[doubtful] = ~self._still_chosen(doubtful, ids, similarities, joined, supports)
            rows = np.flatnonzero(again)
            supports[rows], plain[rows] = -1, True
            self._pursue(rows, ids, similarities, self._gram_for(rows.size), supports, plain)
        else:
            again |= touched
        kept = Kept(targets, candidates, ids, similarities, self._complete(ids), supports, plain)
        return kept, int(again.sum())

    def _is_worthwhile(self, old: Kept, origin: np.ndarray, source: np.ndarray) -> bool:
        """Whether bringing the old lists up to date takes less than building them."""
        new_targets, new_candidates = (float(np.mean(found < 0)) if found.size else 0.0 for found in (origin, source))
        if max(new_targets, new_candidates) > SEARCH_LIMIT:
            return False
        if not self.sparsity:
            return old.supports.shape[1] == 0
        old_size = int((old.ids[:, : self.k] >= 0).any(axis=0).sum())
        return new_candidates <= PURSUIT_LIMIT and old_size == self.size and old.supports.shape[1] == self.sparsity

    # ------------------------------------------------------------------------------------------- lists

    def _merge(
        self, old: Kept, origin: np.ndarray, stayed: np.ndarray, moved: np.ndarray, come: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lists of the targets that stayed, and which entries joined the dictionary; of the others -1."""
        from pipeline.graphs import kernels

        ids, similarities = self._no_lists(len(origin))
        joined = np.zeros(ids.shape, np.bool_)
        step = max(1, int(max(self.room, 0) // (16 * self.width))) if come.size else max(1, stayed.size)
        for first in range(0, stayed.size, step):
            part = stayed[first : first + step]
            near, values = np.empty((part.size, 0), np.int32), np.empty((part.size, 0), np.float32)
            if come.size:
                found = self._nearest(self.targets[part], self.candidates[come], min(self.width, come.size))
                near = np.where(found.ids >= 0, come[found.ids], -1).astype(np.int32)
                values = found.similarities
            lists = np.empty((part.size, self.width), np.int32), np.empty((part.size, self.width), np.float32)
            marks = np.empty((part.size, self.width), np.bool_)
            kernels.merge(
                origin[part], old.ids, old.similarities, old.complete, moved, near, values, self.size, *lists, marks
            )
            ids[part], similarities[part] = lists
            joined[part] = marks
        return ids, similarities, joined

    def _search(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists of some targets, by comparison with all candidates."""
        ids, similarities = self._no_lists(rows.size)
        if rows.size == len(self.targets):
            others = None if self.same else self.candidates
            found = self._nearest(self.targets, others, self.width, self.how.cluster)
        elif rows.size == 0:
            return ids, similarities
        else:
            found = self._nearest(self.targets[rows], self.candidates, self.width + self.same)
            if self.same:
                found = _without(found, rows)
        count = found.ids.shape[1]
        ids[:, :count], similarities[:, :count] = found
        return ids, similarities

    def _search_gram(self, gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lists of all targets, compared with themselves, where all products are there already."""
        from pipeline.graphs import kernels, products

        ids, similarities = self._no_lists(len(self.targets))
        count = min(self.width, gram.shape[0] - 1)
        for first in range(0, gram.shape[0], products.LARGEST_BLOCK):
            block = gram[first : first + products.LARGEST_BLOCK]
            rows = self.left.kept[first : first + len(block)]
            near, values = np.empty((len(block), count), np.int32), np.empty((len(block), count), np.float32)
            kernels.select(block, np.arange(first, first + len(block)), False, near, values)
            ids[rows, :count], similarities[rows, :count] = self.right.kept[near], values
        return ids, similarities

    def _nearest(
        self, queries: np.ndarray, candidates: np.ndarray | None, k: int, cluster: "Cluster | None" = None
    ) -> knn.Neighbours:
        how = Execution(max(self.room, 1.0) / 1e9, self.how.threads, cluster=cluster)
        return knn.nearest(queries, candidates, k, how)

    def _no_lists(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((rows, self.width), -1, np.int32), np.zeros((rows, self.width), np.float32)

    def _complete(self, ids: np.ndarray) -> np.ndarray:
        return (ids >= 0).sum(axis=1) >= self.available

    # ---------------------------------------------------------------------------------------- pursuits

    def _no_supports(self) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.targets)
        return np.full((n, self.sparsity), -1, np.int32), np.ones(n, np.bool_)

    def _gram_for(self, rows: int) -> np.ndarray | None:
        """The candidates' Gram matrix where so many pursuits are worth it, and it fits the budget."""
        from pipeline.graphs import products

        m = self.right.kept.size
        return (
            products.gram(self.right.units, self.room)
            if GATHERED * rows * self.size * self.sparsity > m * m / 2
            else None
        )

    def _pursue(
        self,
        rows: np.ndarray,
        ids: np.ndarray,
        similarities: np.ndarray,
        gram: np.ndarray | None,
        supports: np.ndarray,
        plain: np.ndarray,
    ) -> None:
        """Put the supports of some targets into their places."""
        from pipeline.graphs import products

        rows = rows[self.available[rows] > 0] if self.sparsity else rows[:0]
        cluster = self.how.cluster if rows.size > products.LARGEST_BLOCK else None

        def parts() -> Iterator[compute.Part]:
            for first in range(0, rows.size, products.LARGEST_BLOCK):
                part = rows[first : first + products.LARGEST_BLOCK]
                near = self._places(ids[part, : self.size]), similarities[part, : self.size]
                units = self.left.units[np.searchsorted(self.left.kept, part)]
                yield part, units, *near, self.sparsity, None if cluster is None else 1

        arrays = self.right.units, np.empty((0, 0), np.float32) if gram is None else gram
        done = 0
        for part, is_plain, found in compute.blocks(cluster, _pursued, arrays, parts()):
            plain[part], supports[part] = is_plain, _moved(found, self.right.kept)
            done += part.size
            self.how.tell(done, rows.size)

    def _still_chosen(
        self,
        rows: np.ndarray,
        ids: np.ndarray,
        similarities: np.ndarray,
        joined: np.ndarray,
        supports: np.ndarray,
    ) -> np.ndarray:
        """Which of some targets keep their supports, (r,) bool."""
        from pipeline.graphs import kernels, products

        same = np.zeros(rows.size, np.bool_)
        for first in range(0, rows.size, products.LARGEST_BLOCK):
            part = rows[first : first + products.LARGEST_BLOCK]
            units = self.left.units[np.searchsorted(self.left.kept, part)]
            same[first : first + part.size] = kernels.still_chosen(
                units,
                self.right.units,
                self._places(ids[part, : self.size]),
                similarities[part, : self.size],
                joined[part, : self.size],
                self._places(supports[part]),
            )
        return same

    def _places(self, ids: np.ndarray) -> np.ndarray:
        """Rows of `right.units` that candidates have; -1 for -1."""
        if self.right.kept.size == self.right.total:
            return np.ascontiguousarray(ids)
        place = np.full(self.right.total, -1, np.int32)
        place[self.right.kept] = np.arange(self.right.kept.size)
        return _moved(ids, place)


def _pursued(
    candidates: np.ndarray,
    gram: np.ndarray,
    rows: np.ndarray,
    units: np.ndarray,
    ids: np.ndarray,
    similarities: np.ndarray,
    sparsity: int,
    threads: int | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Some targets' rows, whether their pursuits were plain, and their supports, as `kernels.pursue` gives them."""
    from pipeline.graphs import kernels

    atoms, values = _by_id(ids, similarities)
    found = np.full((rows.size, sparsity), -1, np.int32)
    with kernels.thread_pool(threads):
        yield rows, kernels.pursue(units, candidates, atoms, values, gram, found), found


def _moved(ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    """places[ids], int32, and -1 for -1."""
    return np.where(ids >= 0, places[ids], -1).astype(np.int32) if places.size else np.full(ids.shape, -1, np.int32)


def _by_id(ids: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row in the order of its ids. One sort of whole numbers is several times as fast as `argsort`."""
    keys = np.sort((ids.astype(np.int64) << 32) | np.arange(ids.shape[1]), axis=1)
    values = np.take_along_axis(similarities, keys & 0xFFFFFFFF, axis=1)
    return (keys >> 32).astype(np.int32), values


def _without(found: knn.Neighbours, own: np.ndarray) -> knn.Neighbours:
    """Neighbours of each row with its own self left out, or else the last one."""
    drop = found.ids == own[:, None]
    drop[~drop.any(axis=1), -1:] = True
    shape = (own.size, max(found.ids.shape[1] - 1, 0))
    return knn.Neighbours(found.ids[~drop].reshape(shape), found.similarities[~drop].reshape(shape))
