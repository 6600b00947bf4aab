import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array

from model.sampling import ComplementSampler, SamplingError, SupportSampler, TripletSampler

memberships = st.tuples(st.integers(1, 8), st.integers(2, 8)).flatmap(lambda shape: arrays(bool, shape))


@given(members=memberships, seed=st.integers(0, 2**31))
def test_complement_is_never_a_member(members: np.ndarray, seed: int) -> None:
    rows = np.flatnonzero(~members.all(axis=1)).repeat(20)
    drawn = ComplementSampler(csr_array(members.astype(np.float32))).draw(rows, torch.Generator().manual_seed(seed))
    assert ((drawn >= 0) & (drawn < members.shape[1])).all()
    assert not members[rows, drawn].any()


@pytest.mark.parametrize("sampler", [ComplementSampler, SupportSampler])
def test_draws_are_uniform(sampler: type) -> None:
    members = np.array([[1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1]], dtype=np.float32)
    drawn = sampler(csr_array(members)).draw(np.ones(9000, dtype=np.int64), torch.Generator().manual_seed(0))
    expected = [3, 4, 5] if sampler is SupportSampler else [0, 1, 2]
    found, counts = np.unique(drawn, return_counts=True)
    assert found.tolist() == expected
    assert abs(counts / 9000 - 1 / 3).max() < 0.02


def test_row_can_leave_itself_out() -> None:
    support = csr_array(np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=np.float32))
    sampler = ComplementSampler(support, exclude_self=True)
    assert sampler.sizes.tolist() == [1, 2, 1]
    assert sampler.draw(np.array([0, 2]), torch.Generator()).tolist() == [2, 1]


def test_full_row_is_an_error() -> None:
    sampler = ComplementSampler(csr_array(np.array([[1, 1], [1, 0]], dtype=np.float32)))
    with pytest.raises(SamplingError, match="row 0 holds all 2 columns"):
        sampler.draw(np.array([1, 0]), torch.Generator())


def test_users_who_have_every_item_are_told_before_the_first_epoch() -> None:
    train = csr_array(np.array([[1, 0], [1, 1], [0, 0], [1, 1]], dtype=np.float32))
    message = r"user 1 has all 2 items in train, .* \(2 such users\); leave them out"
    with pytest.raises(SamplingError, match=message):
        TripletSampler(train, batch_size=2)
    assert len(list(TripletSampler(csr_array(train[[0, 2]]), batch_size=2).epoch(torch.Generator()))) == 1


def test_an_epoch_visits_every_interaction_once() -> None:
    members = np.random.default_rng(0).random((20, 15)) < 0.4
    train = csr_array(members.astype(np.float32))
    batches = list(TripletSampler(train, batch_size=16).epoch(torch.Generator().manual_seed(0)))
    users, positives, negatives = (
        torch.cat([getattr(batch, name) for batch in batches]).numpy() for name in ("users", "positives", "negatives")
    )
    assert {len(batch.users) for batch in batches[:-1]} == {16}
    assert sorted(zip(users, positives, strict=True)) == list(zip(*members.nonzero(), strict=True))
    assert not members[users, negatives].any()
    assert (users[:-1] > users[1:]).any()  # shuffled
