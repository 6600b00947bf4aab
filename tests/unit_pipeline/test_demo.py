import gzip
import time

import numpy as np
import polars as pl
import pytest

from pipeline.interactions import build_interactions
from pipeline.settings import (
    DATASETS_FOLDER,
    DatasetSettings,
    DemoSource,
    InteractionSettings,
    load_settings,
    validate,
)
from pipeline.sources import RawTables, read_source
from pipeline.sources.demo import write_demo
from pipeline.sources.demo_files import item_names, user_names
from pipeline.sources.planted import FEWEST, LIKED_THEMES, MOST, OFF_INTEREST, USER_INTERESTS, planted

SOURCE = DemoSource(kind="demo")


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> RawTables:
    folder = tmp_path_factory.mktemp("demo")
    return read_source(load_settings(DATASETS_FOLDER / "demo.yaml", DatasetSettings), folder, folder / "downloads")


@pytest.fixture(scope="module")
def truth():
    return planted(SOURCE)


def test_same_settings_give_the_same_bytes_and_another_seed_gives_others(tmp_path):
    small = DemoSource(kind="demo", users=60, items=50)
    contents = [
        [path.read_bytes() for path in write_demo(settings, tmp_path / str(place))]
        for place, settings in enumerate((small, small, small.model_copy(update={"seed": 8})))
    ]
    assert contents[0] == contents[1]
    for first, other in zip(contents[0], contents[2], strict=True):
        assert first != other


def test_writing_is_quick(tmp_path):
    started = time.process_time()
    write_demo(SOURCE, tmp_path)
    assert time.process_time() - started < 5


def test_planted_preferences(truth):
    liked = truth.user_themes > 0
    assert (liked.sum(axis=(1, 2)) == USER_INTERESTS * LIKED_THEMES).all()
    assert (liked.any(axis=2).sum(axis=1) == USER_INTERESTS).all()
    np.testing.assert_allclose(truth.user_themes.sum(axis=(1, 2)), 1)
    np.testing.assert_allclose(truth.item_themes.sum(axis=1), 1)
    counts = np.bincount(truth.users, minlength=SOURCE.users)
    assert (counts.min(), counts.max()) == (FEWEST, MOST)
    assert len(set(zip(truth.users.tolist(), truth.items.tolist(), strict=True))) == truth.users.size
    assert truth.off_interest.mean() == pytest.approx(OFF_INTEREST, abs=0.02)
    # What follows an interest goes to items of the user's interests.
    own = truth.user_themes.any(axis=2)[truth.users, truth.item_interest[truth.items]]
    assert own[~truth.off_interest].all()
    assert own[truth.off_interest].mean() < 0.5


def test_raw_tables_hold_what_is_planted(tables, truth):
    reviews = pl.read_parquet(tables.reviews)
    users, items = user_names(truth, SOURCE.seed), item_names(truth, SOURCE.seed)
    expected = {(users[user], items[item]) for user, item in zip(truth.users, truth.items, strict=True)}
    assert set(reviews.select("user", "item").iter_rows()) == expected
    assert pl.read_parquet(tables.items)["item"].to_list() == items


def test_flaws_of_published_files_are_there_and_few(tables):
    assert tables.rejected["reviews_Demo.json.gz"] == {"neither JSON nor a Python literal": 6, "missing asin": 6}
    assert set(tables.rejected) == set(tables.read)
    for file, reasons in tables.rejected.items():
        assert 0 < sum(reasons.values()) < 0.01 * tables.read[file]
    assert tables.set_aside["meta_Demo.json.gz"]["second row of an item"] > 0
    aside = [count for part in (tables.rejected, tables.set_aside) for file in part.values() for count in file.values()]
    kept = tables.rows["reviews"] + tables.rows["items"] + tables.rows["images"]
    assert sum(tables.read.values()) == kept + sum(aside)
    reviews, items = pl.read_parquet(tables.reviews), pl.read_parquet(tables.items)
    assert 0 < reviews.height - reviews.n_unique(["user", "item"]) < 0.02 * reviews.height
    for field in ("description", "categories", "brand", "price"):
        assert 0.02 < items[field].null_count() / items.height < 0.25
    described = items.drop_nulls("description")
    assert described.select("title", "description").is_duplicated().any()
    assert pl.read_parquet(tables.images).height < items.height


def test_core_keeps_everybody(tables):
    settings = load_settings(DATASETS_FOLDER / "demo.yaml", DatasetSettings).interactions
    built = build_interactions(pl.scan_parquet(tables.reviews), pl.scan_parquet(tables.items), settings)
    assert built.counts["users"] >= 0.98 * SOURCE.users
    assert built.counts["items"] >= 0.9 * SOURCE.items


def neighbour_agreement(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Share of items whose nearest other item has the same label."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = units @ units.T
    np.fill_diagonal(similarities, -1)
    return float((labels[similarities.argmax(axis=1)] == labels).mean())


def test_texts_and_images_tell_an_items_theme(tables, truth):
    from sklearn.feature_extraction.text import TfidfVectorizer

    items = item_names(truth, SOURCE.seed)
    theme = dict(zip(items, truth.item_interest * 4 + truth.item_themes.argmax(axis=1), strict=True))
    table = pl.read_parquet(tables.items).drop_nulls("description")
    words = TfidfVectorizer(stop_words="english").fit_transform(table["title"] + " " + table["description"])
    assert neighbour_agreement(words.toarray(), np.array([theme[item] for item in table["item"]])) > 0.8
    images = pl.read_parquet(tables.images)
    interest = dict(zip(items, truth.item_interest, strict=True))
    assert neighbour_agreement(images["vector"].to_numpy(), np.array([interest[item] for item in images["item"]])) > 0.8


def test_reviews_name_the_themes_that_their_user_likes(tables, truth):
    users = user_names(truth, SOURCE.seed)
    reviews = pl.read_parquet(tables.reviews).group_by("user").agg(pl.col("text").str.join(" "))
    texts = dict(reviews.iter_rows())
    bank = [list(themes.values()) for themes in truth.bank.values()]
    named = np.array(
        [
            [[sum(word in texts[user] for word in theme["words"]) for theme in themes] for themes in bank]
            for user in users
        ]
    )  # (M, K, T) words found
    liked = truth.user_themes > 0
    assert named[liked].mean() > 10 * named[~liked].mean()


@pytest.mark.parametrize(("users", "items"), [(50, 50), (120, 200)])
def test_small_demos_stay_below_the_bad_share(tmp_path, users, items):
    source = {"kind": "demo", "users": users, "items": items}
    read = read_source(validate(DatasetSettings, {"title": "t", "source": source}, "test"), tmp_path, tmp_path)
    assert read.rows["items"] == items
    with gzip.open(tmp_path / f"demo-{users}-users-{items}-items-seed-7" / "meta_Demo.json.gz") as lines:
        assert len(lines.read().splitlines()) >= items


def test_the_demo_can_be_split_by_time(tables):
    reviews, items = (pl.scan_parquet(path) for path in (tables.reviews, tables.items))
    drawn, by_user, by_time = (
        build_interactions(reviews, items, InteractionSettings(split=name))
        for name in ("random", "user_time", "global_time")
    )
    assert by_user.counts == drawn.counts
    for part in ("valid", "test"):
        assert by_time.counts[part] == pytest.approx(0.1 * drawn.counts["interactions"], rel=0.1)
    assert by_time.counts["users_without_training"] == 0
