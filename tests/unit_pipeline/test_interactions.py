from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.settings import Dataset
from pipeline.interactions import (
    ITEM_FIELDS,
    InteractionError,
    InteractionTables,
    build_interactions,
    k_core,
    user_histories,
)
from pipeline.settings import InteractionSettings, load_settings
from pipeline.sources import read_source
from pipeline.splits import SPLITS, held_out_sizes

REVIEW_SCHEMA = {
    **dict.fromkeys(("user", "item"), pl.String),
    "rating": pl.Float32,
    "timestamp": pl.Int64,
    **dict.fromkeys(("summary", "text", "split"), pl.String),
}
ITEM_SCHEMA = {name: pl.List(pl.String) if name == "categories" else pl.String for name in ("item", *ITEM_FIELDS)}
LOOSE = InteractionSettings(core=1)
GIVEN = InteractionSettings(core=1, split="given")
USER_TIME = InteractionSettings(core=1, split="user_time")
GLOBAL_TIME = InteractionSettings(core=1, split="global_time")


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


def test_equal_times_of_a_user_go_by_item():
    times = {"z": 5, "x": 5, "y": 5, "w": 1}
    reviews = table(*({"user": "a", "item": item, "timestamp": time} for item, time in times.items()))
    built = build_interactions(reviews, items(), USER_TIME)
    assert built.interactions["split"].to_list() == ["train", "train", "valid", "test"]  # w, x, y, z


def test_who_comes_after_the_cut_is_not_evaluated_and_what_comes_then_is_a_cold_item():
    rows = [("a", f"{n:02}", n) for n in range(16)]
    late = [("b", "00", 16), ("a", "new", 17), ("b", "01", 18), ("b", "new", 19)]
    reviews = table(*({"user": user, "item": item, "timestamp": time} for user, item, time in rows + late))
    built = build_interactions(reviews, items(), GLOBAL_TIME)
    assert built.users["raw_id"].to_list() == ["a", "b"]
    assert built.items["raw_id"].to_list()[-1] == "new"
    held_out = built.interactions.filter(pl.col("split") != "train")
    assert held_out.rows() == [(0, 16, "valid", 17)]
    assert built.counts["users_without_training"] == 1
    assert built.counts["held_out_without_training"] == 3


@pytest.mark.parametrize("split", ["user_time", "global_time"])
def test_a_missing_time_names_the_remedy(split):
    times = {"ax": 1, "by": None, "bz": None, "az": 3}
    reviews = table(*({"user": pair[0], "item": pair[1], "timestamp": time} for pair, time in times.items()))
    with pytest.raises(InteractionError, match=rf"`{split}`, but 2 of 4 pairs.*user 'b', item 'y'.*split to random"):
        build_interactions(reviews, items(), InteractionSettings(core=1, split=split))
    # Another review of the pair tells its time, and a pair outside the core needs none.
    known = table(*({"user": user, "item": item, "timestamp": 2} for user in "b" for item in "yz"))
    more = pl.concat([reviews, known, known.with_columns(user=pl.lit("a"))])
    core = InteractionSettings(core=2, split=split)
    assert build_interactions(pl.concat([more, pairs("cy")]), items(), core).interactions["timestamp"].null_count() == 0


@given(edge_sets, st.randoms(use_true_random=False))
def test_core_and_ids_do_not_depend_on_the_split(edges, random):
    reviews = table(
        *({"user": f"u{user}", "item": f"i{item}", "timestamp": random.randrange(9)} for user, item in sorted(edges))
    )
    drawn, *timed = (build_interactions(reviews, items(), chosen) for chosen in (LOOSE, USER_TIME, GLOBAL_TIME))
    for built in timed:
        assert built.users.equals(drawn.users)
        assert built.items.equals(drawn.items)
        assert built.interactions.height + built.counts["held_out_without_training"] == drawn.interactions.height
    per_user = (built.interactions.group_by("user", "split").len().sort("user", "split") for built in (drawn, timed[0]))
    assert next(per_user).equals(next(per_user))


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
def marked_reviews(draw, first_time: int = 0) -> pl.LazyFrame:
    """Reviews, some pairs several times, whose texts name their own pair; a time of 0 is a missing one."""
    times = st.integers(first_time, 3)
    rows = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11), times), min_size=1, max_size=60))
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


any_split = st.one_of(
    st.tuples(marked_reviews(), st.sampled_from([LOOSE, GIVEN, InteractionSettings(core=2)])),
    st.tuples(marked_reviews(first_time=1), st.sampled_from([USER_TIME, GLOBAL_TIME])),
)


@settings(max_examples=100)
@given(any_split)
def test_no_held_out_pair_and_no_word_of_its_review_is_in_a_training_history(case):
    reviews, chosen = case
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


@settings(max_examples=60)
@given(marked_reviews(first_time=1))
def test_no_review_newer_than_the_cut_is_in_a_history_of_a_global_split(reviews):
    built = build_interactions(reviews, items(), GLOBAL_TIME)
    rows = reviews.select("user", "item", "timestamp").collect()
    times = rows.group_by("user", "item").agg(pl.col("timestamp").max())["timestamp"].sort()  # of pairs
    valid, test = held_out_sizes(np.array(times.len()))
    cut = times[int(times.len() - valid - test) - 1]
    shown = user_histories(reviews, built, GLOBAL_TIME).collect()
    written = shown["text"].str.extract(r"^row (\d+):").cast(pl.Int64)  # which review each text is
    assert rows["timestamp"].gather(written).max() <= cut
    assert shown["timestamp"].max() == cut
    held_out = built.interactions.filter(pl.col("split") != "train")["timestamp"]
    assert held_out.is_empty() or held_out.min() > cut


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
    assert built.interactions["timestamp"].null_count() == 0  # a split by time needs them
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
