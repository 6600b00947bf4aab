"""Made data for comparisons with other code: the same bits everywhere, so that a fingerprint can stand for it.

Interactions are the demo's planted ones. Features are unit rows made of small integers, without a product of matrices
or anything else that rounds differently from one machine to the next.
"""

import hashlib
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from model.base import RecData
from pipeline.settings import DemoSource
from pipeline.sources.planted import planted
from pipeline.splits import random_split

STEP = DemoSource(kind="demo", users=50, items=50, seed=1)
STEP_WIDTHS = (12, 10)  # of texts and of images
TRAINING = DemoSource(kind="demo", users=600, items=400, seed=7)
TRAINING_WIDTHS = (48, 64)
BATCH = 240  # triplets of a training's step
STEP_BATCH = 96  # triplets of the one step, where they may repeat
# Powers of two: a feature times one, and a weight divided by it, are exact.
STRETCH = np.array([0.5, 1, 2, 4], dtype=np.float32)


def dataset(source: DemoSource, widths: tuple[int, int]) -> RecData:
    """Interactions (M, N) with the pipeline's split, texts (N, d_t) and images (N, d_v)."""
    truth = planted(source)
    rng = np.random.default_rng([source.seed, 1])
    split = random_split(truth.users, rng.integers(0, 2**63, truth.users.size, np.uint64))
    shape = source.users, source.items

    def part(code: int) -> csr_array:
        own = split == code
        return csr_array((np.ones(int(own.sum()), np.float32), (truth.users[own], truth.items[own])), shape=shape)

    main = truth.item_themes.argmax(axis=1)
    text, visual = (_features(truth.item_interest, main, width, rng) for width in widths)
    return RecData("made", part(0), part(1), part(2), text=text, visual=visual)


def step_data(twins: bool) -> RecData:
    """The dataset of one step; its last item is in no training interaction.

    Parameters
    ----------
    twins
        Images are the texts with stretched columns: what undoes this makes the two modalities the same.
    """
    data = dataset(STEP, STEP_WIDTHS)
    data = _held_out(data, np.flatnonzero(data.train.indices == data.item_count - 1))
    return replace(data, visual=data.text * np.resize(STRETCH, data.text.shape[1])) if twins else data


def training_data() -> RecData:
    """The dataset that models are trained on; its training interactions fill whole batches."""
    data = dataset(TRAINING, TRAINING_WIDTHS)
    excess = data.train.nnz % BATCH
    return _held_out(data, data.train.indptr[:excess])  # one of each of the first users


def _held_out(data: RecData, places: np.ndarray) -> RecData:
    """The training interactions at `places` of the CSR are in the test split instead."""
    train, test = data.train.copy(), data.train.copy()
    train.data[places] = 0
    test.data -= train.data
    for part in (train, test):
        part.eliminate_zeros()
    return replace(data, train=train, test=csr_array(data.test + test))


def triplets(train: csr_array, distinct: bool) -> np.ndarray:
    """Users, positives and negatives of one batch, int64 (3, B).

    Parameters
    ----------
    distinct
        No user and no positive twice; otherwise they repeat, as in training.
    """
    pairs = list(zip(*(part.tolist() for part in train.nonzero()), strict=True))
    if distinct:
        chosen: dict[int, int] = {}
        for user, item in pairs:
            if user not in chosen and item not in chosen.values():
                chosen[user] = item
        pairs = list(chosen.items())
    else:
        pairs = pairs[:: len(pairs) // STEP_BATCH][:STEP_BATCH]
    free = [np.flatnonzero(row == 0) for row in train.toarray()]
    negatives = [free[user][(7 * user + 3 * item) % len(free[user])] for user, item in pairs]
    return np.array([*zip(*pairs, strict=True), negatives], dtype=np.int64)


def fingerprint(data: RecData) -> str:
    """Hash of the interactions and features."""
    parts = [array for split in (data.train, data.valid, data.test) for array in (split.indptr, split.indices)]
    hasher = hashlib.blake2b(digest_size=16)
    features = [array for array in (data.text, data.visual, data.user_text) if array is not None]
    for array in [*(part.astype("<i8") for part in parts), *features]:
        hasher.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


def _features(interest: np.ndarray, theme: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Unit rows float32 (N, width): a part of all items, of an interest's, of a theme's, and of an item alone."""
    interests, themes = interest.max() + 1, theme.max() + 1
    rows = rng.integers(-6, 7, width) + rng.integers(-4, 5, (interests, width))[interest]
    rows = rows + rng.integers(-4, 5, (interests, themes, width))[interest, theme]
    rows = rows + rng.integers(-3, 4, (len(interest), width))
    return (rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))).astype(np.float32)
