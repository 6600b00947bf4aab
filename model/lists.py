"""What the recommended lists are like beside accurate: for whom they are right, on which items, how broad and how new.

Lists are given as `top`, item ids (U, K), best first, each item once a list, -1 where there is no further item; row u
belongs to `users[u]`. `train` and `held_out` are binary, (M, N). Pass `top[:, :k]` for a cut-off at k. A value per
user is NaN where it is not defined, as for an empty list, and means leave those users out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

ACTIVITY_EDGES = (5, 10, 20, 50)
GROUPS = ("cold", "tail", "middle", "head")  # the codes of `popularity_groups` are places here
BLOCK = 256  # lists of a sparse product: 256 lists of 20 items with 1,000 users each fill 60 MB


@dataclass(frozen=True)
class GroupRecall:
    """Recall of the held-out pairs whose items belong to one group.

    Parameters
    ----------
    items
        Items of the group, whether held out or not.
    pairs
        Held-out pairs of these items, at least one.
    hits
        How many of them are in their user's list.
    """

    items: int
    pairs: int
    hits: int

    @property
    def recall(self) -> float:
        return self.hits / self.pairs


def list_metrics(top: np.ndarray, users: np.ndarray, train: csr_array, k: int) -> dict[str, float]:
    """Every measure of lists that needs no held-out item, cut off at k.

    Returns
    -------
    `coverage_at_k`, `gini_at_k`, and means over users: `popularity_at_k` in training interactions,
    `popularity_ratio_at_k` to the users' own training items, `novelty_at_k` in bits, `diversity_at_k`.
    """
    lists = top[:, :k]
    popularity, own = list_popularity(lists, train), own_popularity(users, train)
    both = ~np.isnan(popularity + own)
    values = {
        "coverage": coverage(lists, train.shape[1]),
        "gini": gini(lists, train.shape[1]),
        "popularity": mean(popularity),
        "popularity_ratio": mean(popularity[both]) / mean(own[both]),
        "novelty": mean(novelty(lists, train)),
        "diversity": mean(diversity(lists, train)),
    }
    return {f"{name}_at_{k}": value for name, value in values.items()}


def mean(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


# ---------------------------------------------------------------------------------------------- by activity


def activity_buckets(
    users: np.ndarray, train: csr_array, edges: Sequence[int] = ACTIVITY_EDGES
) -> dict[str, np.ndarray]:
    """Users by their number of training interactions: the sparsity levels of Wang et al. (2019), Neural Graph
    Collaborative Filtering, with fixed edges.

    Parameters
    ----------
    edges
        The largest number of each bucket but the last, ascending, from 1.

    Returns
    -------
    Label (`1-5`, `51+`) -> places in `users`, ascending; fewest interactions first. Empty buckets are left out, and
    so there is a bucket `0` only where a user has no training interaction.

    Raises
    ------
    ValueError
        When the edges do not ascend from 1 or more.
    """
    ends = np.array([0, *edges])
    if (np.diff(ends) < 1).any():
        raise ValueError(f"edges of activity buckets must ascend from 1 or more, found {tuple(edges)}")
    ranges = [f"{low}-{high}" if low < high else f"{low}" for low, high in zip(ends[:-1] + 1, ends[1:], strict=True)]
    bucket = np.searchsorted(ends, np.diff(train.indptr)[users])  # (U,)
    members = {label: np.flatnonzero(bucket == place) for place, label in enumerate(["0", *ranges, f"{ends[-1] + 1}+"])}
    return {label: places for label, places in members.items() if places.size}


def bucket_means(buckets: Mapping[str, np.ndarray], per_user: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean of each metric, name -> (U,), over each bucket's users: label -> name -> mean."""
    return {
        label: {name: mean(values[places]) for name, values in per_user.items()} for label, places in buckets.items()
    }


# -------------------------------------------------------------------------------------------- by popularity


def popularity_groups(train: csr_array) -> np.ndarray:
    """Group of each item by its share of training interactions.

    `cold` items have none. `head` are the fewest most popular items that hold at least a third of all interactions,
    `middle` the fewest further ones that make it two thirds, `tail` the rest; of equally popular items the lower id
    goes first. Abdollahpouri et al. (2021), User-centered Evaluation of Popularity Bias, who cut at a fifth and four
    fifths.

    Returns
    -------
    Places in `GROUPS`, (N,) int64.
    """
    counts = _item_counts(train)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]  # interactions of all more popular items
    groups = np.empty(len(counts), dtype=np.int64)
    groups[order] = 3 - 3 * before // max(counts.sum(), 1)
    groups[counts == 0] = 0
    return groups


def recall_by_popularity(
    top: np.ndarray, users: np.ndarray, train: csr_array, held_out: csr_array
) -> dict[str, GroupRecall]:
    """Recall by the popularity of the held-out item, pooled over all held-out pairs of `users`.

    Pooled, because most users have no held-out item in most groups. The stratified recall of Steck (2011), Item
    Popularity and Recommendation Accuracy, apart for each stratum.

    Returns
    -------
    Name of the group -> its recall, in the order of `GROUPS`; groups without a held-out pair are left out.

    Raises
    ------
    ValueError
        When there are not as many lists as users.
    """
    if len(top) != len(users):
        raise ValueError(f"expected a list for each of {len(users)} users, found {len(top)}")
    wanted = held_out[users]  # (U, N)
    size = wanted.shape[1]
    keys = np.repeat(np.arange(len(users)), np.diff(wanted.indptr)) * size + wanted.indices  # one for each pair
    rows, places = np.nonzero(top >= 0)
    hit = np.isin(keys, rows * size + top[rows, places])
    groups = popularity_groups(train)
    group = groups[wanted.indices]
    items, pairs, hits = (np.bincount(codes, minlength=len(GROUPS)) for codes in (groups, group, group[hit]))
    return {
        name: GroupRecall(int(items[code]), int(pairs[code]), int(hits[code]))
        for code, name in enumerate(GROUPS)
        if pairs[code]
    }


# ------------------------------------------------------------------------------------------- the lists alone


def coverage(top: np.ndarray, items: int) -> float:
    """Share of all `items` that are in any list: the catalogue coverage of Ge et al. (2010), Beyond Accuracy."""
    return float(np.count_nonzero(_exposure(top, items)) / items)


def gini(top: np.ndarray, items: int) -> float:
    """Gini index of how often each of all `items` is listed: 0 where all are as often, 1 where one is alone.

    sum_j (2j - N - 1) p_j / (N - 1) over the shares p of the N items, ascending (Shani & Gunawardana 2011, Evaluating
    Recommendation Systems). NaN without a listed item, or with a single item in all.
    """
    exposure = np.sort(_exposure(top, items))
    total = exposure.sum() * (items - 1)
    weights = 2 * np.arange(1, items + 1) - items - 1
    return float(weights @ exposure / total) if total else float("nan")


def list_popularity(top: np.ndarray, train: csr_array) -> np.ndarray:
    """Mean training interactions of each list's items, (U,); its mean over users is the average recommendation
    popularity of Yin et al. (2012), Challenging the Long Tail Recommendation.
    """
    return _list_means(_item_counts(train), top)


def own_popularity(users: np.ndarray, train: csr_array) -> np.ndarray:
    """Mean training interactions of each user's own training items, (U,).

    What lists are compared with: the ratio of both means is 1 + ΔGAP of Abdollahpouri et al. (2019), The Unfairness of
    Popularity Bias in Recommendation, and above 1 where lists are more popular than what their users chose.
    """
    own = train[users]
    sizes = np.diff(own.indptr)
    return np.where(sizes > 0, own @ _item_counts(train) / np.maximum(sizes, 1), np.nan)


def novelty(top: np.ndarray, train: csr_array) -> np.ndarray:
    """Mean self-information of each list's items, (U,), in bits: -log2(n_i / M) of an item that n_i of M users have.

    Zhou et al. (2010), Solving the apparent diversity-accuracy dilemma of recommender systems. An item without a
    training interaction counts as if one user had it.
    """
    return _list_means(-np.log2(np.maximum(_item_counts(train), 1) / train.shape[0]), top)


def diversity(top: np.ndarray, train: csr_array) -> np.ndarray:
    """One minus the mean cosine of all pairs of a list's items, (U,); NaN for lists of fewer than two.

    The intra-list diversity of Smyth & McClave (2001) and Ziegler et al. (2005), with the cosine of the items' columns
    of `train`, which is 0 where one of the two has no training interaction. For unit vectors, the cosines of all
    ordered pairs sum up to the squared length of the vectors' sum less their number, so no (N, N) matrix is made.
    """
    vectors = csr_array(train.T, dtype=np.float64)  # (N, M), rows of unit length
    counts = np.diff(vectors.indptr)
    vectors.data = 1 / np.sqrt(np.repeat(counts, counts))
    squares = np.empty(len(top))
    for start in range(0, len(top), BLOCK):
        block = top[start : start + BLOCK]
        rows, places = np.nonzero(block >= 0)
        members = (np.ones(len(rows)), (rows, block[rows, places]))
        sums = csr_array(members, shape=(len(block), len(counts))) @ vectors  # (B, M)
        sums.data **= 2
        squares[start : start + BLOCK] = sums @ np.ones(sums.shape[1])
    listed = top >= 0
    trained = (listed & (counts[top] > 0)).sum(1)
    size = listed.sum(1)
    pairs = size * (size - 1)
    return np.where(pairs > 0, 1 - (squares - trained) / np.maximum(pairs, 1), np.nan)


def _item_counts(train: csr_array) -> np.ndarray:
    """Training interactions of each item, (N,) int64."""
    return np.bincount(train.indices, minlength=train.shape[1])


def _exposure(top: np.ndarray, items: int) -> np.ndarray:
    """How many lists hold each item, (N,) int64."""
    return np.bincount(top[top >= 0], minlength=items)


def _list_means(values: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Mean of the items' values (N,) over each list, (U,)."""
    listed = top >= 0
    size = listed.sum(1)
    return np.where(size > 0, np.where(listed, values[top], 0).sum(1) / np.maximum(size, 1), np.nan)
