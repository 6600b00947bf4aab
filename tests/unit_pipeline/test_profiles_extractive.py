"""Profiles that need no model: extractive and given, their fallbacks, and the rows they are made from."""

import gzip
import json
import time
from pathlib import Path

import polars as pl
import pytest

from pipeline.profiles.keywords import PART_SCHEMA, key_terms_and_sentences
from pipeline.profiles.metadata import Histories, item_metadata_text, user_metadata_text
from pipeline.profiles.write import write_item_profiles, write_user_profiles
from pipeline.settings import ProfileSettings

EXTRACTIVE = ProfileSettings(backend="extractive")
GIVEN = ProfileSettings(backend="given")
COLUMNS = ("summary", "reasoning", "origin", "error")
ITEM_SCHEMA = {
    "item": pl.Int32,
    "raw_id": pl.String,
    "title": pl.String,
    "description": pl.String,
    "categories": pl.List(pl.String),
    "brand": pl.String,
    "price": pl.String,
}
HISTORY_SCHEMA = {"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64, "summary": pl.String, "text": pl.String}


def items_table(*rows: dict[str, object]) -> pl.DataFrame:
    full = [{"item": number, "raw_id": f"i{number}"} | row for number, row in enumerate(rows)]
    return pl.DataFrame(full, schema=ITEM_SCHEMA)


def users_table(count: int) -> pl.DataFrame:
    return pl.DataFrame({"user": range(count), "raw_id": [f"u{n}" for n in range(count)]}).cast({"user": pl.Int32})


def history_table(*rows: tuple[int, int, int | None, str | None, str | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=HISTORY_SCHEMA, orient="row")


def given_table(*rows: tuple[str, str, str | None]) -> pl.DataFrame:
    schema = {"kind": pl.String, "id": pl.String, "profile": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


ITEMS = items_table(
    {
        "title": "Steel banjo",
        "categories": ["Music", "Strings"],
        "brand": "Gold",
        "description": "It rings. <b>Loud</b>",
    },
    {"title": "Cast iron pan", "categories": ["Kitchen"], "description": "Sears steak evenly over an open fire."},
    {},
)
HISTORY = history_table(
    (0, 1, 100, "Sears well", "My steak came out with a deep crust."),
    (0, 0, 200, None, "Bright tone for bluegrass evenings."),
    (2, 2, None, None, None),
)


def user_summaries(histories: pl.DataFrame, users: int = 3) -> list[str]:
    profiles = write_item_profiles(ITEMS, None, EXTRACTIVE).table
    result = write_user_profiles(users_table(users), ITEMS, profiles, histories, None, EXTRACTIVE)
    return result.table["summary"].to_list()


# ---------------------------------------------------------------------------------------------- extractive


def test_item_profiles_say_what_the_fields_say() -> None:
    result = write_item_profiles(ITEMS, None, EXTRACTIVE)
    assert result.table.schema == pl.Schema({"item": pl.Int32} | dict.fromkeys(COLUMNS, pl.String))
    banjo, pan, nothing = result.table["summary"]
    assert banjo.startswith("Steel banjo. Brand: Gold. Categories: Music, Strings. About: ")
    assert "<b>" not in banjo
    assert "Sears steak evenly over an open fire." in pan
    assert nothing == ""
    computed = {"rows_computed": 3, "rows_reused": 0}
    assert result.counts == {"rows": 3, "empty": 1, "fallbacks": 0, "origin_extractive": 3} | computed
    assert result.failures.height == 0


def test_user_profiles_hold_their_own_history_and_words_newest_first() -> None:
    both, without, untitled = user_summaries(HISTORY)
    assert "Recently: Steel banjo; Cast iron pan." in both
    for word in ("bluegrass", "crust", "strings", "kitchen"):
        assert word in both
    assert without == ""
    assert untitled == ""
    reversed_rows = HISTORY.reverse()
    assert user_summaries(reversed_rows) == user_summaries(HISTORY)


def test_terms_that_tell_users_apart_come_first() -> None:
    rows = [
        (
            user,
            user % 2,
            1,
            None,
            f"great product works {'trumpet valve oil' if user % 5 == 0 else 'sourdough starter jar'}",
        )
        for user in range(40)
    ]
    for user, summary in enumerate(user_summaries(history_table(*rows), users=40)):
        enjoys = summary[: summary.index("Recently")]
        assert ("trumpet" in enjoys) == (user % 5 == 0)
        assert "great" not in enjoys  # everyone says it


def test_a_review_of_common_words_alone_is_still_a_profile() -> None:
    plain = items_table(*[{}] * 2)
    profiles = write_item_profiles(plain, None, EXTRACTIVE).table
    histories = history_table(*((user, 0, 1, None, "So good") for user in range(30)))
    table = write_user_profiles(users_table(30), plain, profiles, histories, None, EXTRACTIVE).table
    assert table["summary"].unique().to_list() == ["So good."]


def test_key_terms_count_weights_and_key_sentences_hold_the_most_of_them() -> None:
    parts = pl.DataFrame(
        [
            (0, 1, True, "It came yesterday by post. The violin has a warm violin sound! Violin, violin."),
            (0, 5, False, "Bow"),
            (2, 1, True, "Something else entirely about gardens and their spades."),
        ],
        schema=PART_SCHEMA,
        orient="row",
    )
    terms, sentences = key_terms_and_sentences(parts, 3, 3, 1)
    assert terms[0] == ["bow", "violin", "came"]  # 5 by weight, 4 by number, first of its equals
    assert sentences[0] == ["The violin has a warm violin sound!"]  # two words are no sentence to quote
    assert (terms[1], sentences[1]) == ([], [])
    assert len(sentences[2]) == 1


def test_a_known_word_order_does_not_matter_to_the_terms() -> None:
    texts = ["oboe reed case", "case oboe reed", "reed case oboe"]
    parts = pl.DataFrame([(n, 1, True, text) for n, text in enumerate(texts)], schema=PART_SCHEMA, orient="row")
    terms, _ = key_terms_and_sentences(parts, 3, 5, 0)
    assert terms[0] == terms[1] == terms[2] == ["case", "oboe", "reed"]


def test_a_demo_sized_corpus_takes_less_than_two_seconds() -> None:
    words = [f"{a}{b}{c}a" for a in "bdfgklm" for b in "aeiou" for c in "nprstvz"]
    items = items_table(
        *(
            {"title": " ".join(words[n % 40 : n % 40 + 4]), "description": ". ".join(words[n % 90 : n % 90 + 30])}
            for n in range(400)
        )
    )
    histories = history_table(
        *((user, (user * 7 + n) % 400, n, None, " ".join(words[n : n + 60])) for user in range(600) for n in range(10))
    )
    write_item_profiles(items.head(2), None, EXTRACTIVE)  # imports
    started = time.perf_counter()
    profiles = write_item_profiles(items, None, EXTRACTIVE).table
    write_user_profiles(users_table(600), items, profiles, histories, None, EXTRACTIVE)
    assert time.perf_counter() - started < 2


def test_profiles_of_published_reviews(shared: Path) -> None:
    folder = shared / "data" / "amazon18-gift-cards"
    with gzip.open(folder / "meta_Gift_Cards.json.gz", "rt", encoding="utf-8") as lines:
        meta = {row["asin"]: row for row in map(json.loads, lines)}
    with gzip.open(folder / "Gift_Cards_5.json.gz", "rt", encoding="utf-8") as lines:
        reviews = list(map(json.loads, lines))
    item_ids = {raw: number for number, raw in enumerate(sorted({row["asin"] for row in reviews}))}
    user_ids = {raw: number for number, raw in enumerate(sorted({row["reviewerID"] for row in reviews}))}
    items = items_table(
        *(
            {
                "title": meta[raw]["title"],
                "description": " ".join(meta[raw]["description"]),
                "categories": meta[raw]["category"],
                "brand": meta[raw]["brand"],
            }
            for raw in item_ids
        )
    )
    histories = history_table(
        *(
            (user_ids[r["reviewerID"]], item_ids[r["asin"]], r["unixReviewTime"], r.get("summary"), r.get("reviewText"))
            for r in reviews
        )
    )
    profiles = write_item_profiles(items, None, EXTRACTIVE)
    users = write_user_profiles(users_table(len(user_ids)), items, profiles.table, histories, None, EXTRACTIVE)
    assert profiles.counts["empty"] == users.counts["empty"] == 0
    assert users.table["summary"].n_unique() > 0.95 * len(user_ids)
    assert not users.table["summary"].str.contains(r"<\w+|&\w+;").any()


# --------------------------------------------------------------------------------------------------- given


def test_given_profiles_are_matched_by_raw_id_and_others_fall_back() -> None:
    given = given_table(
        ("item", "i1", "  "),
        ("item", "i1", "For cooks <|im_end|>."),
        ("item", "i1", "Second."),
        ("user", "i0", "A user."),
        ("item", "stranger", "Nobody."),
    )
    result = write_item_profiles(ITEMS, given, GIVEN)
    assert result.table["summary"].to_list() == [
        "Steel banjo. Gold. Music, Strings. It rings. Loud.",
        "For cooks .",
        "",
    ]
    assert result.table["origin"].to_list() == ["metadata", "given", "metadata"]
    assert result.table["error"].to_list() == ["no given profile", None, "no given profile"]
    expected = {"rows": 3, "empty": 1, "fallbacks": 2, "origin_given": 1, "origin_metadata": 2}
    assert expected.items() <= result.counts.items()
    assert result.failures.rows() == [(row, "no given profile", None, None, 0) for row in (0, 2)]


def test_given_user_profiles_serve_users_without_history_too() -> None:
    profiles = write_item_profiles(ITEMS, None, EXTRACTIVE).table
    given = given_table(("user", "u1", "Plays the banjo."), ("item", "u0", "An item."))
    result = write_user_profiles(users_table(3), ITEMS, profiles, HISTORY, given, GIVEN)
    assert result.table["summary"].to_list() == [
        "Steel banjo. Bright tone for bluegrass evenings. "
        "Cast iron pan. Sears well. My steak came out with a deep crust.",
        "Plays the banjo.",
        "",
    ]
    assert result.counts["fallbacks"] == 2


@pytest.mark.parametrize("given", [None, given_table(), given_table(("user", "i0", "A user."))])
def test_the_given_backend_without_given_profiles_is_an_error(given: pl.DataFrame | None) -> None:
    with pytest.raises(ValueError, match=r"backend = given, but no item .* choose another backend"):
        write_item_profiles(ITEMS, given, GIVEN)


# ------------------------------------------------------------------------------------------------ metadata


def test_the_metadata_itself_is_a_profile_and_no_failure() -> None:
    settings = ProfileSettings(backend="metadata")
    items = write_item_profiles(ITEMS, None, settings)
    assert items.table["summary"].to_list() == [
        "Steel banjo. Gold. Music, Strings. It rings. Loud.",
        "Cast iron pan. Kitchen. Sears steak evenly over an open fire.",
        "",
    ]
    users = write_user_profiles(users_table(3), ITEMS, items.table, HISTORY, None, settings)
    assert users.table["summary"][0].startswith("Steel banjo. Bright tone for bluegrass evenings. Cast iron pan.")
    for result in (items, users):
        assert result.table["origin"].unique().to_list() == ["metadata"]
        assert result.table["error"].null_count() == 3
        assert result.failures.height == result.counts["fallbacks"] == 0
    long = items_table({"title": "word " * 80})
    assert write_item_profiles(long, None, settings).table["summary"][0].count("word") == 80
    cut = write_item_profiles(long, None, ProfileSettings(backend="metadata", prompt_words=50)).table
    assert cut["summary"][0].count("word") == 50


# ------------------------------------------------------------------------------------------------ the rows


def test_metadata_text_is_cut_to_its_words() -> None:
    row = {"title": "One two!", "brand": "nan", "categories": ["Three", "Three"], "description": "four five six"}
    assert item_metadata_text(row, 100) == "One two! Three. four five six."
    assert item_metadata_text(row, 4) == "One two! Three. four"
    history = [{"title": "New", "headline": "Wow", "review": None}, {"title": "Old", "headline": "", "review": "Fine."}]
    assert user_metadata_text(history, 100) == "New. Wow. Old. Fine."
    assert user_metadata_text([], 100) == ""


def test_histories_are_newest_first_with_ties_by_item_and_unknown_times_last() -> None:
    profiles = write_item_profiles(ITEMS, None, EXTRACTIVE).table
    rows = history_table((1, 2, 5, "c", None), (1, 0, None, "d", None), (1, 1, 5, "b", None), (0, 0, 9, "a", None))
    histories = Histories(users_table(3), ITEMS, profiles, rows)
    assert len(histories) == 3
    assert [[row["headline"] for row in histories[user]] for user in range(3)] == [["a"], ["b", "c", "d"], []]


@pytest.mark.parametrize(
    ("users", "row", "message"),
    [
        (3, (3, 0, 1, None, None), "histories name user 3, but there are only 3"),
        (3, (0, 7, 1, None, None), "histories name item 7, but there are only 3"),
    ],
)
def test_histories_of_strangers_are_an_error(users: int, row: tuple, message: str) -> None:
    profiles = write_item_profiles(ITEMS, None, EXTRACTIVE).table
    with pytest.raises(ValueError, match=message):
        write_user_profiles(users_table(users), ITEMS, profiles, history_table(row), None, EXTRACTIVE)


def test_ids_with_a_gap_or_profiles_of_other_items_are_an_error() -> None:
    with pytest.raises(ValueError, match="row 2 holds id 5"):
        write_item_profiles(ITEMS.with_columns(item=pl.Series([0, 1, 5], dtype=pl.Int32)), None, EXTRACTIVE)
    short = write_item_profiles(ITEMS.head(2), None, EXTRACTIVE).table
    with pytest.raises(ValueError, match="2 item profiles for 3 items"):
        write_user_profiles(users_table(3), ITEMS, short, HISTORY, None, EXTRACTIVE)


@pytest.mark.parametrize("backend", ["extractive", "metadata", "given", "openai"])
def test_nothing_in_nothing_out(backend: str) -> None:
    settings = ProfileSettings(backend=backend)
    profiles = write_item_profiles(items_table(), None, settings)
    users = write_user_profiles(users_table(0), items_table(), profiles.table, history_table(), None, settings)
    assert profiles.table.height == users.table.height == 0
    assert profiles.counts["rows"] == users.counts["rows"] == 0
