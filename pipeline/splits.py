"""Which interactions train, which validate and which test: at random, by time within a user, by one time for all."""

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import polars as pl

SPLITS = ("train", "valid", "test")  # the codes of a split are its places here
FEW = 10  # a user with fewer interactions gives one to validation and one to test
HELD_OUT_SHARE = 0.2


def pair_draws(users: pl.Series, items: pl.Series, seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A random number for any pair, uint64, that depends on the seed and on the pair's raw ids alone.

    So a pair that comes or goes leaves the draws of all others as they are, and with them the others' split.

    Parameters
    ----------
    users, items
        Raw ids, (M,) and (N,).

    Returns
    -------
    A function of user codes (n,) and item codes (n,).
    """
    user_hashes, item_hashes = (
        np.frombuffer(
            b"".join(blake2b(f"{seed}\0{kind}\0{name}".encode(), digest_size=8).digest() for name in names), np.uint64
        )
        for kind, names in (("user", users), ("item", items))
    )
    return lambda user, item: _mixed(user_hashes[user] + _mixed(item_hashes[item]))


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of the input reaches every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def held_out_sizes(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of n interactions go to validation and to test.

    Of fewer than 10, one each; of more, `int(0.2 n)` are held out, half of them (rounded down) for validation. At
    least one stays for training: two give a test one, and one stays where it is.
    """
    few = np.minimum(2, np.maximum(sizes - 1, 0))
    held_out = np.where(sizes < FEW, few, (HELD_OUT_SHARE * sizes).astype(np.int64))
    return held_out // 2, held_out - held_out // 2


def random_split(users: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Split code of each pair, drawn per user in the numbers of `held_out_sizes`.

    Parameters
    ----------
    users
        User of each pair, (n,), ascending.
    draws
        A random number for each pair, (n,): a user's pairs with the lowest are held out.

    Returns
    -------
    Places in `SPLITS`, int8 (n,).
    """
    place, (valid, test) = _places(users, draws), held_out_sizes(np.bincount(users))
    return np.where(place < valid[users], 1, np.where(place < (valid + test)[users], 2, 0)).astype(np.int8)


def user_time_split(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Split code of each pair by time within its user: the latest for test, those before for validation.

    The sizes are `held_out_sizes`. Each user has a cut of their own, so one user's training pairs may be newer than
    another's held-out ones; `global_time_split` has none such. The temporal user split of Meng et al. (2020),
    Exploring Data Splitting Strategies for the Evaluation of Recommendation Models.

    Parameters
    ----------
    users
        User of each pair, (n,), ascending.
    times
        Time of each pair, (n,); of a user's equal ones the earlier in the array counts as the older.

    Returns
    -------
    Places in `SPLITS`, int8 (n,).
    """
    sizes = np.bincount(users)
    left, (valid, test) = sizes[users] - _places(users, times), held_out_sizes(sizes)  # the newest has 1 left
    return np.where(left <= test[users], 2, np.where(left <= (valid + test)[users], 1, 0)).astype(np.int8)


def global_time_split(times: np.ndarray) -> np.ndarray:
    """Split code of each pair by two points in time, the same for all users.

    The newest pairs go to test and those before to validation, in the numbers of `held_out_sizes` for all pairs
    together. Pairs of one time stay together on the older side, so a held-out part may be smaller, and no training
    pair is as new as a held-out one. The temporal global split of Meng et al. (2020).

    Parameters
    ----------
    times
        Time of each pair, (n,) with n >= 1.

    Returns
    -------
    Places in `SPLITS`, int8 (n,).
    """
    valid, test = held_out_sizes(np.array(times.size))
    last = np.array([valid + test, test]) + 1  # places from the end
    newest = np.sort(times)[-last]  # of training, of validation
    return np.searchsorted(newest, times).astype(np.int8)


def _places(users: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Place of each pair among its user's, by ascending key; equal keys in the array's order."""
    sizes = np.bincount(users)  # (M,)
    places = np.empty(users.size, dtype=np.int64)
    places[np.lexsort((keys, users))] = np.arange(users.size) - (np.cumsum(sizes) - sizes)[users]
    return places
