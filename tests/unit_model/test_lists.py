from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from model.lists import (
    BLOCK,
    GROUPS,
    GroupRecall,
    activity_buckets,
    bucket_means,
    coverage,
    diversity,
    gini,
    list_metrics,
    list_popularity,
    novelty,
    own_popularity,
    popularity_groups,
    recall_by_popularity,
)


def sparse(dense: np.ndarray) -> csr_array:
    return csr_array(np.asarray(dense, dtype=np.float32))


def owners(*counts: int) -> csr_array:
    """Training interactions of as many items; user 0 has all that have any, user 1 all that have two, and so on."""
    return sparse(np.arange(max(counts))[:, None] < np.array(counts))


class Example:
    """Training, disjoint held-out interactions, and lists of various lengths for some users in any order."""

    def __init__(self, seed: int, users: int, items: int, k: int) -> None:
        rng = np.random.default_rng(seed)
        kind = rng.random((users, items)) / (1 + rng.random(items))  # items differ in popularity
        self.dense = kind < 0.2
        self.dense[:, 0] = False  # one item is cold
        self.held_out = (kind > 0.4) & ~self.dense
        self.users = rng.permutation(users)[: max(1, users // 2)]
        self.top = np.full((len(self.users), k), -1)
        for row in self.top:
            length = rng.integers(0, min(k, items) + 1)
            row[:length] = rng.permutation(items)[:length]
        self.train = sparse(self.dense)
        self.lists = [[int(item) for item in row if item >= 0] for row in self.top]


examples = st.builds(
    Example, st.integers(0, 10**6), users=st.integers(1, 12), items=st.integers(2, 15), k=st.integers(1, 8)
)


# ---------------------------------------------------------------------------------------------- by activity


def test_buckets_by_hand() -> None:
    counts = [0, 1, 5, 6, 50, 51, 80]
    train = sparse(np.arange(80) < np.array(counts)[:, None])
    users = np.array([6, 5, 4, 3, 2, 1])
    buckets = activity_buckets(users, train)
    assert {label: users[places].tolist() for label, places in buckets.items()} == {
        "1-5": [2, 1],
        "6-10": [3],
        "21-50": [4],
        "51+": [6, 5],
    }
    assert list(activity_buckets(np.arange(7), train, edges=(1, 5))) == ["0", "1", "2-5", "6+"]


def test_all_users_in_one_bucket() -> None:
    buckets = activity_buckets(np.arange(3), sparse(np.ones((3, 4))))
    assert {label: places.tolist() for label, places in buckets.items()} == {"1-5": [0, 1, 2]}


@pytest.mark.parametrize("edges", [(0, 5), (5, 5), (9, 3)])
def test_edges_that_do_not_ascend_are_an_error(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must ascend from 1"):
        activity_buckets(np.arange(1), sparse(np.ones((1, 2))), edges)


@given(examples, st.sets(st.integers(1, 15), min_size=1))
def test_every_user_is_in_the_one_bucket_of_their_number(example: Example, edges: set[int]) -> None:
    buckets = activity_buckets(example.users, example.train, sorted(edges))
    assert sorted(np.concatenate(list(buckets.values()))) == list(range(len(example.users)))
    for label, places in buckets.items():
        low, _, high = label.rstrip("+").partition("-")
        for count in example.dense[example.users[places]].sum(1):
            assert int(low) <= count <= (10**9 if label.endswith("+") else int(high or low))


def test_bucket_means_leave_out_what_is_not_defined() -> None:
    buckets = {"1-5": np.array([0, 2]), "6+": np.array([1])}
    per_user = {"recall": np.array([0.5, 0.3, 0.1]), "diversity": np.array([0.4, np.nan, np.nan])}
    means = bucket_means(buckets, per_user)
    assert means["1-5"] == pytest.approx({"recall": 0.3, "diversity": 0.4})
    assert means["6+"] == pytest.approx({"recall": 0.3, "diversity": np.nan}, nan_ok=True)


# -------------------------------------------------------------------------------------------- by popularity


def test_groups_by_hand() -> None:
    # 18 interactions: the first item holds more than a third, the next two reach two thirds.
    train = owners(1, 7, 0, 4, 2, 1, 3)
    assert [GROUPS[code] for code in popularity_groups(train)] == [
        *("tail", "head", "cold", "middle", "tail", "tail", "middle"),
    ]


def test_equally_popular_items_go_by_id() -> None:
    assert popularity_groups(owners(2, 2, 0, 2)).tolist() == [3, 2, 0, 1]


@given(examples)
def test_groups_are_the_fewest_items_that_hold_their_share(example: Example) -> None:
    counts = example.dense.sum(0)
    groups = popularity_groups(example.train)
    assert ((groups == 0) == (counts == 0)).all()
    for code, share in ((3, 1 / 3), (2, 2 / 3)):
        chosen = sorted(counts[groups >= code])
        if counts.any():
            assert sum(chosen) >= share * counts.sum() - 1e-9
            assert sum(chosen[1:]) < share * counts.sum()  # one fewer would not do
            assert chosen[0] >= max(counts[groups < code], default=0)


@given(examples)
def test_recall_by_popularity_equals_brute_force(example: Example) -> None:
    found = recall_by_popularity(example.top, example.users, example.train, sparse(example.held_out))
    groups = popularity_groups(example.train)
    for code, name in enumerate(GROUPS):
        wanted = [
            (place, item)
            for place, user in enumerate(example.users)
            for item in np.flatnonzero(example.held_out[user] & (groups == code))
        ]
        hits = sum(item in example.lists[place] for place, item in wanted)
        if not wanted:
            assert name not in found
            continue
        assert found[name] == GroupRecall(int((groups == code).sum()), len(wanted), hits)
        assert found[name].recall == pytest.approx(hits / len(wanted))


def test_pairs_are_pooled_and_an_empty_place_is_no_hit() -> None:
    # Item 2 is cold; the last item is nobody's, so that -1 must not stand for it.
    train, held_out = owners(3, 1, 0, 1), sparse([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 0]])
    found = recall_by_popularity(np.array([[2, -1], [-1, -1]]), np.array([1, 0]), train, held_out)
    assert found == {"cold": GroupRecall(1, 2, 1), "tail": GroupRecall(1, 1, 0)}
    assert list(found) == ["cold", "tail"]
    assert found["cold"].recall == 0.5


def test_a_list_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="each of 2 users, found 1"):
        recall_by_popularity(np.array([[0]]), np.arange(2), owners(2), owners(2))


# ------------------------------------------------------------------------------------------- the lists alone


@given(examples)
def test_coverage_and_gini_equal_brute_force(example: Example) -> None:
    items = example.train.shape[1]
    exposure = np.array([sum(item in row for row in example.lists) for item in range(items)])
    assert coverage(example.top, items) == pytest.approx((exposure > 0).mean())
    differences = np.abs(exposure[:, None] - exposure).sum()  # over ordered pairs
    with np.errstate(invalid="ignore"):
        expected = differences / (2 * (items - 1) * exposure.sum())
    assert gini(example.top, items) == pytest.approx(expected, nan_ok=True)


def test_gini_is_0_for_equal_and_1_for_a_single_item() -> None:
    assert gini(np.array([[0, 1], [2, 3]]), 4) == 0
    assert gini(np.array([[2, -1], [2, -1]]), 4) == 1
    assert np.isnan(gini(np.full((2, 3), -1), 4))
    assert np.isnan(gini(np.array([[0]]), 1))


@given(examples)
def test_popularity_and_novelty_equal_brute_force(example: Example) -> None:
    counts = example.dense.sum(0)
    popularity, new = list_popularity(example.top, example.train), novelty(example.top, example.train)
    own = own_popularity(example.users, example.train)
    for place, listed in enumerate(example.lists):
        mine = np.flatnonzero(example.dense[example.users[place]])
        assert own[place] == pytest.approx(counts[mine].mean() if mine.size else np.nan, nan_ok=True)
        bits = [np.log2(len(example.dense) / max(counts[item], 1)) for item in listed]
        assert new[place] == pytest.approx(np.mean(bits) if bits else np.nan, nan_ok=True)
        expected = counts[listed].mean() if listed else np.nan
        assert popularity[place] == pytest.approx(expected, nan_ok=True)


def brute_force_diversity(listed: list[int], dense: np.ndarray) -> float:
    cosines = []
    for first, second in combinations(dense.T[listed].astype(float), 2):
        lengths = np.linalg.norm(first) * np.linalg.norm(second)
        cosines.append(first @ second / lengths if lengths else 0)
    return float(1 - np.mean(cosines)) if cosines else float("nan")


@settings(max_examples=60)
@given(examples)
def test_diversity_equals_brute_force(example: Example) -> None:
    expected = [brute_force_diversity(listed, example.dense) for listed in example.lists]
    np.testing.assert_allclose(diversity(example.top, example.train), expected, atol=1e-12)


def test_diversity_of_more_lists_than_a_block() -> None:
    example = Example(0, 4 * BLOCK + 6, 20, 5)
    expected = [brute_force_diversity(listed, example.dense) for listed in example.lists]
    assert len(expected) > 2 * BLOCK
    np.testing.assert_allclose(diversity(example.top, example.train), expected, atol=1e-12)


def test_items_of_the_same_users_are_alike_and_of_other_users_not() -> None:
    train = sparse([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])
    top = np.array([[0, 1, -1], [0, 2, -1], [0, 3, -1], [0, 1, 2], [1, -1, -1], [-1, -1, -1]])
    expected = [0, 1, 1, 2 / 3, np.nan, np.nan]
    np.testing.assert_allclose(diversity(top, train), expected, atol=1e-12)


def test_all_measures_of_the_first_k() -> None:
    train = sparse([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    top = np.array([[2, 3, 1], [1, 3, 0], [-1, -1, -1], [0, 1, 2]])
    metrics = list_metrics(top, np.arange(4), train, 2)
    assert metrics == pytest.approx(
        {
            "coverage_at_2": 1.0,
            "gini_at_2": 1 / 3 * (-3 * 1 / 6 - 1 / 6 + 2 / 6 + 3 * 2 / 6),  # listed 1, 2, 1 and 2 times
            "popularity_at_2": (0.5 + 0.5 + 2) / 3,
            "popularity_ratio_at_2": 0.5 / 2,  # users 0 and 1 have both a list and items of their own
            "novelty_at_2": (2 + 2 + (np.log2(4 / 3) + 2) / 2) / 3,
            "diversity_at_2": (1 + 1 + 1 - 1 / np.sqrt(3)) / 3,
        }
    )
    nothing = list_metrics(np.full((4, 3), -1), np.arange(4), train, 3)
    assert nothing.pop("coverage_at_3") == 0
    assert np.isnan(list(nothing.values())).all()
