"""Neighbours among many candidates: an index of clusters (an inverted file), searched for whole groups of queries.

k-means puts queries into groups and candidates into clusters. All queries of a group are compared with the members of
the same clusters, those nearest to the group's mean, so products go as tiles through the kernels of the exact search
and are theirs bit for bit: what is compared at all is all that an index decides. With every cluster probed, the search
is the exact one.

How many clusters are probed is no setting. It is the least number with which a sample of queries finds the share of its
true neighbours that is asked for. Everything is a function of the features, k, and that share.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.graphs import kernels, products
from pipeline.settings import IndexSettings

SEED = 0
SAMPLE = 512  # queries that the number of probes is chosen by; as many others measure the recall
ROUNDS = 8  # of k-means
MEMBERS = 32  # rows for each cluster that k-means sees
SAMPLE_ROOM = 2e9  # bytes in which the sample is searched exactly; more would save little time
ERRORS = 3.0  # standard errors by which the sample that decides must be better than what is asked for

Report = Callable[[dict[str, Any]], None]


class Clusters(NamedTuple):
    """Rows by the nearest of c centroids.

    centroids
        (c, d) float32, the means that k-means found.
    labels
        (n,) int32, each row's cluster.
    order, starts
        (n,) int32 rows by cluster, ascending within it; (c + 1,) int64, where each cluster starts.
    """

    centroids: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Rows of each cluster."""
        return np.diff(self.starts)

    def members(self, cluster: int | np.integer) -> np.ndarray:
        """Rows of one cluster, ascending."""
        return self.order[self.starts[cluster] : self.starts[cluster + 1]]


@dataclass(frozen=True)
class Index:
    """What each group of queries is compared with.

    Attributes
    ----------
    groups, clusters
        The queries' and the candidates'; one and the same for neighbours within one set.
    ranked
        (groups, clusters) int32: each group's clusters, nearest first.
    probes
        (groups,) how many of them each group probes.
    recall
        Share of their true neighbours that sampled queries find, others than those by which `probes` was chosen.
    """

    groups: Clusters
    clusters: Clusters
    ranked: np.ndarray
    probes: np.ndarray
    recall: float

    def comparisons(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of each group, and the candidates to compare them with, ascending: see `products.search`."""
        for group in np.flatnonzero(self.groups.sizes):
            parts = [self.clusters.members(cluster) for cluster in self.ranked[group, : self.probes[group]]]
            yield self.groups.members(group), np.sort(np.concatenate(parts))

    @property
    def compared_share(self) -> float:
        """Share of all pairs of a query and a candidate that are compared."""
        held = np.cumsum(self.clusters.sizes[self.ranked], axis=1)
        compared = held[np.arange(len(held)), self.probes - 1] @ self.groups.sizes
        return float(compared / (len(self.groups.labels) * len(self.clusters.labels)))


def comparisons(
    queries: np.ndarray,
    candidates: np.ndarray,
    rows: np.ndarray,
    k: int,
    settings: IndexSettings | None,
    room: float,
    report: Report | None,
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Which rows of `queries` to compare with which of `candidates`: `groups` of `products.search`.

    Without settings these `rows`, int32, with all; otherwise all rows, with what their group probes in a new index.
    """
    if rows.size == 0 or k == 0:
        return []
    if settings is None:
        return [(rows, np.arange(len(candidates), dtype=np.int32))]
    return build(queries, candidates, k, settings, room, report).comparisons()


def build(
    queries: np.ndarray, candidates: np.ndarray, k: int, settings: IndexSettings, room: float, report: Report | None
) -> Index:
    """Cluster both sides, and choose the number of probes.

    Parameters
    ----------
    queries, candidates
        (n, d) and (m, d) unit rows, neither of them empty; one and the same array for neighbours within one set.
    k
        Neighbours of a query, fewer than there are candidates, or as many if the sets differ.
    room
        Bytes that blocks of similarities and packed rows may take. Another 256 d sqrt(m) go to samples.
    report
        Called once with figures of the index: its recall, clusters, probes, and the share of pairs compared.
    """
    clusters = cluster(candidates, room)
    groups = clusters if queries is candidates else cluster(queries, room)
    distances = _half_squares(clusters.centroids) - _products(groups.centroids, clusters.centroids, room)
    ranked = np.argsort(distances, axis=1, kind="stable").astype(np.int32)
    sample = np.sort(np.random.default_rng(SEED).permutation(len(queries))[: 2 * SAMPLE]).astype(np.int32)
    found = _found(queries, candidates, k, sample, groups, clusters, ranked, room)
    deciding = found[::2]
    safe = deciding.mean(axis=0) - ERRORS * deciding.std(axis=0) / len(deciding) ** 0.5
    common = int(np.argmax(safe >= settings.recall)) + 1  # with every cluster probed all is found
    held = np.cumsum(clusters.sizes[ranked], axis=1)
    enough = 1 + (held <= k).sum(axis=1)  # clusters that hold one more than k: a row may be among them itself
    probes = np.clip(enough, common, ranked.shape[1])
    found_by_probes = found[np.arange(len(found)), probes[groups.labels[sample]] - 1]
    measured = found_by_probes[1::2] if len(found) > 1 else found_by_probes
    index = Index(groups, clusters, ranked, probes, float(measured.mean()))
    if report is not None:
        report({
            "recall": index.recall,
            "recall_asked": settings.recall,
            "recall_sample": len(measured),
            "clusters": len(clusters.centroids),
            "probed_clusters": common,
            "compared_share": index.compared_share,
        })  # fmt: skip
    return index


def cluster(units: np.ndarray, room: float) -> Clusters:
    """About sqrt(n) clusters of the rows (n, d), by k-means over distinct rows of a sample."""
    rng, n = np.random.default_rng(SEED), len(units)
    count = max(1, round(n**0.5))
    sample = units[np.sort(rng.permutation(n)[: MEMBERS * count])]
    whole_rows = sample.view(np.dtype((np.void, sample.shape[1] * sample.itemsize)))[:, 0]
    sample = sample[np.sort(np.unique(whole_rows, return_index=True)[1])]
    centroids = sample[np.sort(rng.permutation(len(sample))[:count])]
    for _ in range(ROUNDS):
        _, order, starts = _by_label(_nearest_centroids(sample, centroids, room), len(centroids))
        kernels.group_means(sample, order, starts, centroids)
    return Clusters(centroids, *_by_label(_nearest_centroids(units, centroids, room), len(centroids)))


def _nearest_centroids(units: np.ndarray, centroids: np.ndarray, room: float) -> np.ndarray:
    """Label (n,) int32 of each row: the centroid at the least Euclidean distance, the first of equal ones."""
    labels, half_squares = np.empty(len(units), np.int32), _half_squares(centroids)
    for first, last, block in products.similarity_blocks(units, centroids, room / 2):
        labels[first:last] = np.argmax(block - half_squares, axis=1)
    return labels


def _by_label(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(labels, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=count))])
    return labels, order, starts


def _half_squares(centroids: np.ndarray) -> np.ndarray:
    squares = np.empty(len(centroids), np.float64)
    kernels.squared_norms(centroids, squares)
    return (squares / 2).astype(np.float32)


def _products(left: np.ndarray, right: np.ndarray, room: float) -> np.ndarray:
    whole = np.empty((len(left), len(right)), np.float32)
    for first, last, block in products.similarity_blocks(left, right, room):
        whole[first:last] = block
    return whole


def _found(
    queries: np.ndarray,
    candidates: np.ndarray,
    k: int,
    sample: np.ndarray,
    groups: Clusters,
    clusters: Clusters,
    ranked: np.ndarray,
    room: float,
) -> np.ndarray:
    """Share (s, clusters) of each sampled query's k true neighbours that lie in the first 1, 2, ... clusters probed."""
    everyone = np.arange(len(candidates), dtype=np.int32)
    rank = np.empty_like(ranked)
    np.put_along_axis(rank, ranked, np.arange(ranked.shape[1], dtype=np.int32)[None, :], axis=1)
    counts = np.zeros((len(sample), ranked.shape[1]), np.int32)
    done = 0
    room = min(room, SAMPLE_ROOM)
    for rows, ids, _ in products.search(queries, candidates, k, False, [(sample, everyone)], room):
        ranks = rank[groups.labels[rows][:, None], clusters.labels[ids]]
        for place, row in enumerate(ranks, start=done):
            counts[place] = np.bincount(row, minlength=ranked.shape[1])
        done += len(rows)
    return np.cumsum(counts, axis=1) / k
