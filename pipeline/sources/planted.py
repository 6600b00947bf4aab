"""Planted interests: the ground truth that the demo's raw files are written from.

Every item lies in the subspace of one interest, at a place given by its themes; every user mixes three interests,
and likes two themes of each. There are few interactions per item, so that texts tell more about an item than its
users do.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from pipeline.settings import DemoSource

WORDS = Path(__file__).with_name("demo_words.yaml")
USER_INTERESTS = 3
LIKED_THEMES = 2  # of each interest; so many small tastes per user blur what co-occurrence tells
FEWEST, MOST = 7, 9  # interactions of a user
OFF_INTEREST = 0.1  # share of interactions that follow no interest: gifts, impulses
POPULARITY_SPREAD = 0.3  # standard deviation of the logarithm of an item's popularity
MAIN_THEME = 0.9  # least share of an item's main theme

Bank = dict[str, dict[str, dict[str, list[str]]]]  # interest -> theme -> products, words


@dataclass(frozen=True)
class Planted:
    """What the demo is made from.

    Attributes
    ----------
    bank
        Interest -> theme -> products and words; K interests, T themes each.
    item_interest
        Interest of each item, int (N,).
    item_themes
        Share of each theme of that interest, float (N, T); rows sum to 1.
    user_themes
        Share of each theme of each interest, float (M, K, T); 0 outside a user's interests, sums to 1 per user.
    users, items
        The interactions, int (n,), each pair once, by user.
    off_interest
        Which interactions follow no interest, bool (n,).
    """

    bank: Bank
    item_interest: np.ndarray
    item_themes: np.ndarray
    user_themes: np.ndarray
    users: np.ndarray
    items: np.ndarray
    off_interest: np.ndarray


def planted(settings: DemoSource) -> Planted:
    """The ground truth of a demo; a pure function of its settings."""
    bank: Bank = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    rng = np.random.default_rng([settings.seed, 0])
    interests, themes = len(bank), len(next(iter(bank.values())))
    item_interest = rng.permutation(np.arange(settings.items) % interests)
    main = rng.permutation(np.arange(settings.items) % themes)
    item_themes = rng.dirichlet(np.full(themes, 0.5), settings.items) * (1 - MAIN_THEME)  # (N, T)
    item_themes[np.arange(settings.items), main] += MAIN_THEME
    user_themes = np.zeros((settings.users, interests, themes))
    for user in range(settings.users):
        for interest in rng.choice(interests, size=USER_INTERESTS, replace=False):
            liked = rng.choice(themes, size=LIKED_THEMES, replace=False)
            user_themes[user, interest, liked] = rng.dirichlet(np.full(LIKED_THEMES, 5.0)) / USER_INTERESTS
    users, items, off_interest = _interactions(item_interest, item_themes, user_themes, rng)
    return Planted(bank, item_interest, item_themes, user_themes, users, items, off_interest)


def _interactions(
    item_interest: np.ndarray, item_themes: np.ndarray, user_themes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    popularity = rng.normal(scale=POPULARITY_SPREAD, size=item_interest.size)
    users, items, off_interest = [], [], []
    for user, preferred in enumerate(user_themes):
        affinity = (preferred[item_interest] * item_themes).sum(axis=1)  # (N,)
        count = int(rng.integers(FEWEST, MOST + 1))
        off = int(rng.binomial(count, OFF_INTEREST))
        # The largest of log weight + Gumbel noise are a draw without replacement, in proportion to the weights.
        own_keys, other_keys = popularity + rng.gumbel(size=(2, affinity.size))
        own = np.argsort(-np.log(affinity + 1e-9) - own_keys, kind="stable")[: count - off]
        other_keys[own] = -np.inf
        others = np.argsort(-other_keys, kind="stable")[:off]
        users.append(np.full(count, user))
        items.append(np.concatenate([own, others]))
        off_interest.append(np.arange(count) >= count - off)
    return np.concatenate(users), np.concatenate(items), np.concatenate(off_interest)
