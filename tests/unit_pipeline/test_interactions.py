from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.settings import Dataset
from pipeline.interactions import (
    ITEM_FIELDS,
    SPLITS,
    InteractionError,
    InteractionTables,
    build_interactions,
    k_core,
    pair_draws,
    random_split,
    user_histories,
)
from pipeline.settings import InteractionSettings, load_settings
from pipeline.sources import read_source

REVIEW_SCHEMA = {
    **dict.fromkeys(("user", "item"), pl.String),
    "rating": pl.Float32,
    "timestamp": pl.Int64,
    **dict.fromkeys(("summary", "text", "split"), pl.String),
}
ITEM_SCHEMA = {name: pl.List(pl.String) if name == "categories" else pl.String for name in ("item", *ITEM_FIELDS)}
LOOSE = InteractionSettings(core=1)
GIVEN = InteractionSettings(core=1, split="given")


def table(*rows: dict) -> pl.LazyFrame:
    return pl.LazyFrame(list(rows), schema=REVIEW_SCHEMA)


def items(*rows: dict) -> pl.LazyFrame:
    return pl.LazyFrame(list(rows), schema=ITEM_SCHEMA)


def pairs(*names: str, **more: object) -> pl.LazyFrame:
    """`pairs("ax", "by")`: user a with item x, user b with item y."""
    return table(*({"user": name[0], "item": name[1], **more} for name in names))


def test_ids_follow_the_raw_ids_and_metadata_follows_the_items():
    reviews = pairs("b2", "a1", "b1", "é1")
    built = build_interactions(reviews, items({"item": "2", "title": "Two", "categories": ["c"]}), LOOSE)
    assert built.users.rows() == [(0, "a"), (1, "b"), (2, "é")]
    assert built.items.rows() == [(0, "1", *[None] * 5), (1, "2", "Two", None, ["c"], None, None)]
    assert built.interactions.schema == {
        "user": pl.Int32,
        "item": pl.Int32,
        "split": pl.String,
        "timestamp": pl.Int64,
    }
    assert built.interactions.select("user", "item").rows() == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert built.counts["items_without_metadata"] == 1


def test_several_reviews_of_a_pair_collapse_to_the_newest_and_then_the_last():
    reviews = table(
        {"user": "a", "item": "x", "timestamp": 5, "text": "newest"},
        {"user": "a", "item": "x", "timestamp": 2, "text": "older"},
        {"user": "a", "item": "x", "timestamp": None, "text": "no time"},
        {"user": "a", "item": "y", "timestamp": 3, "text": "first of equals"},
        {"user": "a", "item": "y", "timestamp": 3, "text": "last of equals"},
        {"user": "a", "item": "z", "timestamp": None, "text": "no time, first"},
        {"user": "a", "item": "z", "timestamp": None, "text": "no time, last"},
    )
    built = build_interactions(reviews, items(), LOOSE)
    assert built.interactions["timestamp"].to_list() == [5, 3, None]
    assert built.counts["repeated_reviews"] == 4
    texts = user_histories(reviews, built, LOOSE, "all").collect()["text"].to_list()
    assert texts == ["newest", "last of equals", "no time, last"]


def test_low_and_missing_ratings_are_left_out_before_the_core():
    reviews = table(
        {"user": "a", "item": "x", "rating": 5.0},
        {"user": "a", "item": "y", "rating": 2.0},
        {"user": "a", "item": "z", "rating": None},
        # The newest opinion counts: this pair was liked once, and is not any more.
        {"user": "b", "item": "x", "rating": 5.0, "timestamp": 1},
        {"user": "b", "item": "x", "rating": 1.0, "timestamp": 2},
    )
    built = build_interactions(reviews, items(), InteractionSettings(core=1, min_rating=3))
    assert (built.users["raw_id"].to_list(), built.items["raw_id"].to_list()) == (["a"], ["x"])
    assert built.counts["below_min_rating"] == 3


def brute_force_core(edges: set[tuple[int, int]], core: int) -> set[tuple[int, int]]:
    while True:
        kept = {
            (user, item)
            for user, item in edges
            if sum(other == user for other, _ in edges) >= core and sum(other == item for _, other in edges) >= core
        }
        if kept == edges:
            return kept
        edges = kept


edge_sets = st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=40)


@given(edge_sets, st.integers(1, 4))
def test_core_against_brute_force(edges, core):
    ordered = sorted(edges)
    users, item_codes = np.array(ordered).T
    kept = k_core(users, item_codes, core)
    assert {edge for edge, keep in zip(ordered, kept, strict=True) if keep} == brute_force_core(edges, core)


def test_core_is_taken_until_nothing_more_falls():
    # A 2-core of a, b x 1, 2; the chain c-2, c-3, d-3, d-4 comes apart from its end.
    reviews = pairs("a1", "a2", "b1", "b2", "c2", "c3", "d3", "d4")
    built = build_interactions(reviews, items(), InteractionSettings(core=2))
    assert built.users["raw_id"].to_list() == ["a", "b"]
    assert built.items["raw_id"].to_list() == ["1", "2"]
    assert built.counts["outside_core"] == 4


def test_empty_core_names_the_settings():
    with pytest.raises(InteractionError, match=r"3 reviews \(2 pairs\).*interactions.core \(now 5\)"):
        build_interactions(pairs("a1", "a1", "b1"), items(), InteractionSettings())


@pytest.mark.parametrize(
    ("count", "valid", "test"),
    [
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
    ],
)
def test_split_sizes_follow_the_rule(count, valid, test):
    users = np.repeat([0, 1], [7, count])
    split = random_split(users, np.random.default_rng(0).random(users.size))[users == 1]
    assert np.bincount(split, minlength=3).tolist() == [count - valid - test, valid, test]


@given(edge_sets, st.randoms(use_true_random=False))
def test_result_does_not_depend_on_row_order(edges, random):
    names = [f"{user}{item}" for user, item in edges]
    shuffled = names.copy()
    random.shuffle(shuffled)
    first, second = (build_interactions(pairs(*order), items(), LOOSE) for order in (names, shuffled))
    for name in ("users", "items", "interactions"):
        assert getattr(first, name).equals(getattr(second, name))
    assert first.interactions.filter(pl.col("split") == "train")["user"].n_unique() == first.users.height


def test_a_new_pair_moves_no_other_users_split():
    names = [f"{user}{item}" for user in "abcdef" for item in "klmnopqrst"[: 3 + ord(user) % 7]]
    before = build_interactions(pairs(*names), items(), LOOSE)
    after = build_interactions(pairs(*names, "ca", "Zk"), items(), LOOSE)  # sorted first: every id moves

    def splits(tables: InteractionTables) -> dict[tuple[str, str], str]:
        named = tables.interactions.join(tables.users, on="user").join(tables.items, on="item", suffix="_item")
        return {(user, item): split for user, item, split in named.select("raw_id", "raw_id_item", "split").iter_rows()}

    others = {pair: split for pair, split in splits(before).items() if pair[0] != "c"}
    assert others.items() <= splits(after).items()


def test_draws_are_uniform_enough():
    draws = pair_draws(pl.Series([f"u{n}" for n in range(300)]), pl.Series([f"i{n}" for n in range(300)]), 0)
    values = draws(np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300))
    assert np.unique(values).size == values.size
    shares = np.bincount((values >> np.uint64(60)).astype(int), minlength=16) / values.size
    assert np.abs(shares - 1 / 16).max() < 0.005
    assert abs(np.corrcoef(values.reshape(300, 300).astype(float)[:2])[0, 1]) < 0.2


def test_seed_draws_another_split():
    reviews = pairs(*(f"a{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))
    splits = [
        build_interactions(reviews, items(), InteractionSettings(core=1, seed=seed)).interactions["split"].to_list()
        for seed in (0, 0, 1)
    ]
    assert splits[0] == splits[1] != splits[2]


def test_given_split_is_kept_and_training_goes_first():
    reviews = table(
        {"user": "a", "item": "x", "split": "test", "timestamp": 9, "text": "held out"},
        {"user": "a", "item": "x", "split": "train", "timestamp": 1, "text": "trained"},
        {"user": "a", "item": "y", "split": "test"},
        {"user": "a", "item": "z", "split": "valid"},
    )
    built = build_interactions(reviews, items(), GIVEN)
    assert built.interactions["split"].to_list() == ["train", "test", "valid"]
    assert built.counts["pairs_in_two_splits"] == 1
    assert user_histories(reviews, built, GIVEN).collect()["text"].to_list() == ["trained"]


@pytest.mark.parametrize("split", [None, "dev"])
def test_given_split_that_is_missing_names_the_remedy(split):
    reviews = table({"user": "a", "item": "x", "split": "train"}, {"user": "a", "item": "y", "split": split})
    with pytest.raises(InteractionError, match=r"1 reviews.*user 'a', item 'y', split.*interactions.split to random"):
        build_interactions(reviews, items(), GIVEN)


def test_user_without_training_is_not_evaluated_but_keeps_the_ids_in_place():
    rows = [("a", "x", "train"), ("b", "x", "test"), ("b", "y", "valid"), ("c", "x", "test"), ("c", "z", "train")]
    reviews = table(*({"user": user, "item": item, "split": split} for user, item, split in rows))
    built = build_interactions(reviews, items(), GIVEN)
    assert built.users["raw_id"].to_list() == ["a", "b", "c"]
    assert built.items["raw_id"].to_list() == ["x", "y", "z"]
    assert built.interactions["user"].to_list() == [0, 2, 2]
    assert built.counts["users_without_training"] == 1
    assert built.counts["held_out_without_training"] == 2


def test_histories_are_newest_first():
    times = {"w": 3, "x": None, "y": 7, "z": 3}
    reviews = table(
        *({"user": "a", "item": item, "timestamp": time, "split": "train"} for item, time in times.items()),
        {"user": "A", "item": "z", "timestamp": 1, "split": "train", "summary": "s"},
    )
    built = build_interactions(reviews, items(), GIVEN)
    history = user_histories(reviews, built, GIVEN).collect()
    assert history.schema == {
        **dict.fromkeys(("user", "item"), pl.Int32),
        "timestamp": pl.Int64,
        **dict.fromkeys(("summary", "text"), pl.String),
    }
    assert history.select("user", "item").rows() == [(0, 3), (1, 2), (1, 0), (1, 3), (1, 1)]
    assert history["summary"].to_list()[0] == "s"


@st.composite
def marked_reviews(draw) -> pl.LazyFrame:
    """Reviews, some pairs several times, whose texts name their own pair."""
    rows = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11), st.integers(0, 3)), min_size=1, max_size=60))
    splits = draw(st.lists(st.sampled_from(SPLITS), min_size=len(rows), max_size=len(rows)))
    return table(
        *(
            {
                "user": f"u{user}",
                "item": f"i{item}",
                "timestamp": time or None,
                "split": split,
                "summary": f"about u{user}-i{item}.",
                "text": f"row {row}: u{user}-i{item}.",
            }
            for row, ((user, item, time), split) in enumerate(zip(rows, splits, strict=True))
        )
    )


@settings(max_examples=60)
@given(marked_reviews(), st.sampled_from([LOOSE, GIVEN, InteractionSettings(core=2)]))
def test_no_held_out_pair_and_no_word_of_its_review_is_in_a_training_history(reviews, chosen):
    try:
        built = build_interactions(reviews, items(), chosen)
    except InteractionError:
        return  # nothing in the core
    train, everything = (user_histories(reviews, built, chosen, history).collect() for history in ("train", "all"))
    named = built.interactions.with_columns(
        raw_user=built.users["raw_id"].gather(built.interactions["user"]),
        raw_item=built.items["raw_id"].gather(built.interactions["item"]),
    )
    shown = train.select("user", "item").rows()
    assert sorted(shown) == named.filter(split="train").select("user", "item").rows()
    assert everything.height == built.interactions.height
    written = " ".join(train["summary"].to_list() + train["text"].to_list())
    for user, item, split in named.select("raw_user", "raw_item", "split").iter_rows():
        assert (f"{user}-{item}." in written) == (split == "train")


def read_dataset(name: str, out: Path) -> tuple[InteractionTables, Dataset]:
    chosen = load_settings(Path(__file__).parents[1] / "datasets" / f"{name}.yaml", Dataset)
    raw = read_source(chosen, out, out)
    built = build_interactions(pl.scan_parquet(raw.reviews), pl.scan_parquet(raw.items), chosen.interactions)
    return built, chosen


@pytest.mark.usefixtures("shared")
def test_gift_cards_have_the_published_pairs(tmp_path):
    built, chosen = read_dataset("gift-cards", tmp_path)
    assert built.counts["reviews"] == 2972
    assert built.counts["pairs"] == 2965
    assert built.interactions.group_by("user").len()["len"].min() >= chosen.interactions.core


@pytest.mark.usefixtures("shared")
def test_random_rule_gives_the_published_sizes_of_baby(tmp_path):
    given_split, _ = read_dataset("amazon14-baby", tmp_path)
    reviews, item_table = (pl.scan_parquet(tmp_path / f"{name}.parquet") for name in ("reviews", "items"))
    built = build_interactions(reviews, item_table, InteractionSettings())
    sizes = ("users", "items", "interactions")
    for tables in (given_split, built):
        assert [tables.counts[name] for name in sizes] == [19445, 7050, 160792]
    assert [built.counts[name] for name in SPLITS] == [118551, 20559, 21682]
    # The published split gives the larger half to validation.
    assert [given_split.counts[name] for name in SPLITS] == [118551, 21682, 20559]


@pytest.mark.usefixtures("shared")
def test_yelp_with_profiles_has_its_published_size(tmp_path):
    built, _ = read_dataset("xrec-yelp", tmp_path)
    assert [built.counts[name] for name in ("interactions", "users", "items")] == [32319, 1845, 1981]
    assert built.items["title"].null_count() == 0
    profiles = pl.read_parquet(tmp_path / "profiles.parquet")
    for kind, ids in (("user", built.users), ("item", built.items)):
        assert set(ids["raw_id"]) <= set(profiles.filter(kind=kind)["id"])
