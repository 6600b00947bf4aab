"""Datasets at the edge of what can be trained on: a result, or a message that says what is missing."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from assets.failures import StageError
from assets.model_groups import group_of
from assets.store import stored_path
from assets.training import rec_data
from pipeline.parquet import read_array

ITEMS = [f"i{n}" for n in range(30)]
ODD_IDS = [
    "é\"q,'",
    "007",
    "7",
    "a|b",
    "../x",
    "日本",
    "<script>",
    "a/b",
    "{{x}}",
    "%s",
    "-1",
    "NaN",
    "null",
    "1e3",
    "a b",
]

Row = tuple[str, str, str]  # user, item, review


def reviews() -> list[Row]:
    draw = random.Random(0)
    return [(f"u{user}", item, "a good thing") for user in range(40) for item in draw.sample(ITEMS, 6)]


def titles() -> dict[str, str]:
    draw = random.Random(1)
    return {item: f"{draw.choice(['red', 'blue'])} {draw.choice(['cup', 'pen', 'lamp'])} {item}" for item in ITEMS}


@pytest.fixture
def train(pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pl.DataFrame]:
    """Writes tables, trains a model on them, gives what it recommends."""
    monkeypatch.setenv("SCALE_TEST_TABLES", str(tmp_path))

    def run(rows: list[Row], items: dict[str, str], model: str, **settings: object) -> pl.DataFrame:
        tables = {
            "interactions": [("user", "item", "text"), *rows],
            "items": [("item", "title"), *items.items()],
        }
        for name, content in tables.items():
            with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(content)
        pipeline.run("odd", [model], **settings)
        return pl.read_parquet(stored_path(group_of(model).key("recommendations"), f"odd|{model}"))

    return run


def test_ids_of_any_kind_come_back_as_they_were(train):
    users = {f"u{n}": name for n, name in enumerate(ODD_IDS)}
    items = {f"i{n}": name for n, name in enumerate(ODD_IDS)}
    rows = [(users.get(user, user), items.get(item, item), text) for user, item, text in reviews()]
    shown = train(rows, {items.get(item, item): title for item, title in titles().items()}, "scale")
    assert set(shown["user_raw_id"]) == {user for user, _, _ in rows}
    assert set(ODD_IDS) <= set(shown["item_raw_id"])
    assert shown["title"].null_count() == 0


def test_a_hundred_thousand_times_the_same_review(train):
    rows = reviews()
    once = train(rows, titles(), "scale")
    assert train([*rows, *[rows[0]] * 100_000], titles(), "scale").equals(once)


@pytest.mark.parametrize("users", [1, 2])
def test_next_to_no_users(train, users: int):
    few = [row for row in reviews() if int(row[0][1:]) < users]
    assert train(few, titles(), "lightgcn")["user"].n_unique() == users
    if users == 1:
        with pytest.raises(StageError, match=r"user_similarity_graph of odd has no edges.*Choose a model that reads"):
            train(few, titles(), "scale")


def test_texts_that_are_all_the_same(train):
    rows = [(user, item, "fine") for user, item, _ in reviews()]
    assert train(rows, dict.fromkeys(ITEMS, "cup"), "scale")["user"].n_unique() == 40


def without_texts() -> tuple[list[Row], dict[str, str]]:
    return [(user, item, "") for user, item, _ in reviews()], dict.fromkeys(ITEMS, "")


def test_no_text_at_all(train):
    assert train(*without_texts(), "lightgcn")["user"].n_unique() == 40


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("scale", "of odd has no edges: the profiles hold no text.*lightgcn"),
        ("freedom", "Freedom needs texts or images of items, which dataset odd lacks; .*lightgcn"),
        ("vbpr", "VBPR needs texts or images of items, which dataset odd lacks"),
        ("kar", "KAR needs texts of items and texts of users, which dataset odd lacks"),
        ("rlmrec-con", "Contrastive needs texts of items and texts of users, which dataset odd lacks"),
    ],
)
def test_a_model_that_reads_texts_refuses_a_dataset_without_any(train, model: str, message: str):
    with pytest.raises(StageError, match=message):
        train(*without_texts(), model)


def test_features_that_are_all_zero_are_none():
    splits = ["train", "train", "valid", "test"]
    tables = {
        "users": pl.DataFrame({"user": [0, 1]}),
        "items": pl.DataFrame({"item": [0, 1, 2]}),
        "interactions": pl.DataFrame({"user": [0, 1, 0, 1], "item": [0, 1, 2, 2], "split": splits}),
    }
    said, silent = np.eye(3, 4, dtype=np.float32), np.zeros((3, 4), dtype=np.float32)
    own = {"item_text_embeddings": said, "user_text_embeddings": silent[:2], "item_visual_embeddings": silent[:0]}
    data = rec_data("odd", {**tables, **own})
    assert data.text is said
    assert data.user_text is None
    assert data.visual is None
    assert data.offers == {"interactions", "text", "modalities"}
    data = rec_data("odd", {**tables, "item_text_embeddings": silent, "item_visual_embeddings": said})
    assert data.offers == {"interactions", "modalities"}


def test_images_do_where_there_is_no_text(train, tmp_path: Path):
    path = tmp_path / "vectors.parquet"
    vectors = np.random.default_rng(0).normal(size=(len(ITEMS), 4))
    pl.DataFrame({"item": ITEMS, "vector": vectors.tolist()}).write_parquet(path)
    own = {"source__images": {"path": str(path)}}
    assert train(*without_texts(), "vbpr", **own)["user"].n_unique() == 40
    with pytest.raises(StageError, match="dataset odd has no text features; take text out of the setting `modalities`"):
        train(*without_texts(), "vbpr", **own, models__vbpr={"modalities": ["text", "visual"]})


def test_users_who_know_everything(train):
    rows = [(f"u{user}", item, "") for user in range(20) for item in ITEMS]
    assert train(rows, titles(), "lightgcn").height == 20 * 6  # what is held out of thirty items


def test_no_rows_at_all(train):
    with pytest.raises(StageError, match=r"no interactions are left of 0 reviews"):
        train([], {}, "lightgcn")


def test_vectors_with_numbers_that_are_none(train, tmp_path: Path):
    vectors = np.random.default_rng(0).normal(size=(len(ITEMS), 4))
    vectors[[3, 7, 9], 2] = np.nan, np.inf, 1e39
    path = tmp_path / "vectors.parquet"
    pl.DataFrame({"item": ITEMS, "vector": vectors.tolist()}).write_parquet(path)
    own = {"source__images": {"path": str(path)}}
    with pytest.raises(StageError, match=r"vectors\.parquet: 3 of 30 rows .* malformed.*vector is not finite \(3\)"):
        train(reviews(), titles(), "vbpr", **own)
    assert train(reviews(), titles(), "vbpr", **own, raw__max_bad_share=0.1)["score"].is_finite().all()
    rows = pl.read_parquet(stored_path(dg.AssetKey("quarantine"), "odd")).select("file", "line", "content").rows()
    assert rows == [("vectors.parquet", n + 1, ITEMS[n]) for n in (3, 7, 9)]
    seen = read_array(stored_path(dg.AssetKey("item_visual_embeddings"), "odd"))
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, rtol=1e-6)
