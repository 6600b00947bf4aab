import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.splits import global_time_split, held_out_sizes, pair_draws, random_split, user_time_split

RULE = [
    (1, 0, 0),
    (2, 0, 1),
    (3, 1, 1),
    (9, 1, 1),
    (10, 1, 1),
    (14, 1, 1),
    (15, 1, 2),
    (19, 1, 2),
    (20, 2, 2),
    (99, 9, 10),
]


@pytest.mark.parametrize(("count", "valid", "test"), RULE)
def test_sizes_follow_the_rule(count, valid, test):
    users = np.repeat([0, 1], [7, count])
    keys = np.random.default_rng(0).permutation(users.size)
    for split in (random_split(users, keys)[users == 1], user_time_split(users, keys)[users == 1]):
        assert np.bincount(split, minlength=3).tolist() == [count - valid - test, valid, test]
    everything = global_time_split(keys[:count])
    assert np.bincount(everything, minlength=3).tolist() == [count - valid - test, valid, test]


def test_draws_are_uniform_enough():
    draws = pair_draws(pl.Series([f"u{n}" for n in range(300)]), pl.Series([f"i{n}" for n in range(300)]), 0)
    values = draws(np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300))
    assert np.unique(values).size == values.size
    shares = np.bincount((values >> np.uint64(60)).astype(int), minlength=16) / values.size
    assert np.abs(shares - 1 / 16).max() < 0.005
    assert abs(np.corrcoef(values.reshape(300, 300).astype(float)[:2])[0, 1]) < 0.2


timed_pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=1, max_size=80).map(
    lambda rows: np.array(sorted(rows, key=lambda row: row[0])).T
)


@given(timed_pairs)
def test_each_users_latest_are_held_out(pairs):
    users, times = pairs
    split = user_time_split(users, times)
    for user in np.unique(users):
        own = np.flatnonzero(users == user)
        oldest_first = sorted(own, key=lambda row: (times[row], row))
        valid, test = held_out_sizes(np.array(own.size))
        expected = [0] * int(own.size - valid - test) + [1] * int(valid) + [2] * int(test)
        assert split[oldest_first].tolist() == expected
        assert (np.diff(split[own][np.lexsort((split[own], times[own]))]) >= 0).all()  # never older than training


@given(timed_pairs)
def test_two_points_in_time_cut_everything(pairs):
    _, times = pairs
    split = global_time_split(times)
    valid, test = held_out_sizes(np.array(times.size))
    as_new = (times >= times[:, None]).sum(1)  # pairs that are at least as new, the pair itself included
    assert split.tolist() == [2 if count <= test else 1 if count <= valid + test else 0 for count in as_new]
    for older, newer in ((0, 1), (0, 2), (1, 2)):
        assert times[split == older].max(initial=-1) < times[split == newer].min(initial=99)
    assert (split == 0).any()


def test_pairs_of_one_time_stay_together_on_the_older_side():
    times = np.array([1] * 14 + [2, 3, 3, 4, 4, 5])  # of 20, two each are to validate and to test
    assert global_time_split(times).tolist() == [0] * 14 + [0, 0, 0, 1, 1, 2]
    assert global_time_split(np.full(20, 7)).tolist() == [0] * 20
