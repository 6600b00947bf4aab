"""Made data of a real dataset's shape, and the graphs that the pipeline makes of it, in a folder for all jobs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from model.base import RecData

SPARSITY = 10
FEWEST = 5  # interactions of a user and of an item, as after a 5-core


@dataclass(frozen=True)
class Shape:
    """Sizes of a dataset, and k_s."""

    users: int
    items: int
    interactions: int
    text: int
    visual: int
    dictionary: int

    def __str__(self) -> str:
        return (
            f"{self.users:,} users, {self.items:,} items, {self.interactions:,} interactions, "
            f"texts of {self.text} dimensions, images of {self.visual:,}"
        )


BABY = Shape(19_445, 7_050, 160_792, 768, 4_096, 800)
QUICK = Shape(1_200, 600, 10_000, 64, 128, 100)


def shape(quick: bool) -> Shape:
    """The small shape, or Baby's."""
    return QUICK if quick else BABY


def features(rows: int, dimensions: int, seed: int) -> np.ndarray:
    """Unit rows shaped like text embeddings: a common direction, topics, low-rank variation, and noise."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)  # users and items share topics
    common, topics = 2.0 * shared.standard_normal(dimensions), shared.standard_normal((60, dimensions))
    factors = shared.standard_normal((48, dimensions)) / 7
    rows_topics = topics[rng.integers(0, 60, rows)]
    vectors = common + rows_topics + 0.9 * rng.standard_normal((rows, 48)) @ factors
    vectors += 0.5 * rng.standard_normal((rows, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def interactions(size: Shape, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Distinct (user, item) pairs, sorted, with long-tailed degrees of at least five on both sides.

    Each side's degrees are drawn, their stubs are joined at random, and an item of a repeated pair changes places with
    that of a random pair until none repeats.
    """
    rng = np.random.default_rng(seed)
    users, items = (
        np.repeat(np.arange(count), _degrees(count, size.interactions, spread, rng))
        for count, spread in ((size.users, 0.9), (size.items, 1.3))
    )
    rng.shuffle(items)
    while True:
        keys = users.astype(np.int64) * size.items + items
        order = np.argsort(keys, kind="stable")
        repeated = order[1:][np.diff(keys[order]) == 0]
        if not repeated.size:
            return users[order], items[order]
        for place, other in zip(repeated, rng.integers(0, keys.size, repeated.size), strict=True):
            items[place], items[other] = items[other], items[place]


def _degrees(count: int, total: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    weights = rng.lognormal(sigma=spread, size=count)
    return FEWEST + rng.multinomial(total - FEWEST * count, weights / weights.sum())


def write_interactions(folder: Path, size: Shape) -> None:
    """Write the interactions, split as the pipeline splits them."""
    from pipeline.splits import random_split

    users, items = interactions(size)
    split = random_split(users, np.random.default_rng(4).integers(0, 2**63, users.size, np.uint64))
    np.savez(folder / "interactions.npz", users=users, items=items, split=split)


def write_graphs(folder: Path, size: Shape) -> None:
    """Write the graphs that the pipeline's own stages make of the texts."""
    from scipy.sparse import csr_array

    from pipeline import parquet
    from pipeline.graphs.fusion import fuse
    from pipeline.graphs.knn import similarity_graph
    from pipeline.graphs.omp import subspace_graph
    from pipeline.settings import FusionSettings, SimilaritySettings

    users, items = features(size.users, size.text, 1), features(size.items, size.text, 2)
    kinds = {"user": (users, None), "item": (items, None), "user_item": (users, items)}
    subspace = {name: subspace_graph(*kind, size.dictionary, SPARSITY) for name, kind in kinds.items()}
    neighbours = SimilaritySettings().neighbours
    user, item, user_item = (similarity_graph(*kind, neighbours) for kind in kinds.values())
    visual = csr_array((0, 0), dtype=np.float32)  # no images
    semantic = fuse(*subspace.values(), user, item, visual, user_item, FusionSettings())
    for name, graph in {**subspace, "semantic": semantic}.items():
        parquet.write_graph(graph, folder / f"{name}.parquet")


def dataset(folder: Path) -> "RecData":
    """What was written to `folder`, as models see it."""
    from scipy.sparse import csr_array

    from model.base import RecData, SemanticGraphs
    from pipeline import parquet

    with np.load(folder / "interactions.npz") as content:
        users, items, split = content["users"], content["items"], content["split"]
    matrix_shape = (int(users.max()) + 1, int(items.max()) + 1)

    def part(code: int) -> csr_array:
        own = split == code
        return csr_array((np.ones(int(own.sum()), np.float32), (users[own], items[own])), shape=matrix_shape)

    semantic = None
    if (folder / "semantic.parquet").exists():
        names = ("semantic", "user", "item", "user_item")
        semantic = SemanticGraphs(*(parquet.read_graph(folder / f"{name}.parquet") for name in names))
    return RecData("made", part(0), part(1), part(2), semantic=semantic)


def with_features(data: "RecData", size: Shape) -> "RecData":
    """The same dataset with text and image vectors of its items."""
    return replace(data, text=features(size.items, size.text, seed=2), visual=features(size.items, size.visual, seed=5))
