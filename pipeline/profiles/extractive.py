"""Profiles without a language model: key terms and key sentences from an item's or a user's own texts."""

from collections.abc import Iterable

import polars as pl

from pipeline.profiles.chat import Progress
from pipeline.profiles.keywords import PART_SCHEMA, key_terms_and_sentences
from pipeline.profiles.metadata import Histories, item_metadata_text, user_metadata_text
from pipeline.profiles.prompts import clean_fields
from pipeline.profiles.text import clean_text, cut_words

_ITEM_TERMS, _ITEM_SENTENCES = 12, 3
_USER_TERMS, _USER_SENTENCES, _USER_TITLES = 24, 3, 12
# A word of a title or a category counts three times, a brand's twice, any other once.
_ITEM_WEIGHTS = {"title": 3, "categories": 3, "brand": 2, "description": 1}
_USER_WEIGHTS = {"title": 3, "categories": 3, "headline": 1, "review": 1}
_QUOTABLE = ("description", "review")
# What one text, and one user's history, may contribute: the newest interactions say the most.
_LARGEST_TEXT = 1500  # characters
_LARGEST_HISTORY = 50  # interactions
_SENTENCE_WORDS = 30
_TITLE_WORDS = 16


def describe_items(items: pl.DataFrame) -> list[str]:
    """A text per item from its title, brand, categories and description; "" where there is none.

    Parameters
    ----------
    items
        title, brand, categories, description; one row per item, in id order.
    """
    rows = [clean_fields(row, tuple(_ITEM_WEIGHTS)) for row in items.select(*_ITEM_WEIGHTS).to_dicts()]
    parts = [part for item, row in enumerate(rows) for part in _parts(item, row, _ITEM_WEIGHTS)]
    terms, sentences = key_terms_and_sentences(
        pl.DataFrame(parts, schema=PART_SCHEMA, orient="row"), len(rows), _ITEM_TERMS, _ITEM_SENTENCES
    )
    profiles = []
    for item, row in enumerate(rows):
        profile = _text(
            row["title"],
            _labelled("Brand", row["brand"]),
            _labelled("Categories", row["categories"]),
            _labelled("About", ", ".join(terms[item])),
            *(cut_words(sentence, _SENTENCE_WORDS) for sentence in sentences[item]),
        )
        profiles.append(profile or item_metadata_text(row, _SENTENCE_WORDS))
    return profiles


def describe_users(histories: Histories, progress: Progress | None = None) -> list[str]:
    """A text per user from the titles, categories and own reviews of their history; "" where there is none."""
    titles: list[list[str]] = []
    pieces = [pl.DataFrame(schema=PART_SCHEMA)]
    parts: list[tuple[int, int, bool, str]] = []
    for user in range(len(histories)):
        rows = [_entry(row) for row in histories[user][:_LARGEST_HISTORY]]
        titles.append(list(dict.fromkeys(row["title"] for row in rows if row["title"])))
        parts += [part for row in rows for part in _parts(user, row, _USER_WEIGHTS)]
        if len(parts) > 100_000 or user + 1 == len(histories):
            pieces.append(pl.DataFrame(parts, schema=PART_SCHEMA, orient="row"))
            parts = []
            if progress is not None:
                progress(user + 1, len(histories))
    terms, sentences = key_terms_and_sentences(pl.concat(pieces), len(histories), _USER_TERMS, _USER_SENTENCES)
    profiles = []
    for user in range(len(histories)):
        profile = _text(
            _labelled("Enjoys", ", ".join(terms[user])),
            _labelled("Recently", "; ".join(titles[user][:_USER_TITLES])),
            _labelled("Says", " ".join(cut_words(sentence, _SENTENCE_WORDS) for sentence in sentences[user])),
        )
        profiles.append(profile or user_metadata_text(histories[user], _SENTENCE_WORDS))
    return profiles


def _entry(row: dict[str, str | None]) -> dict[str, str]:
    """A cleaned history row; an item without a title goes by the start of its profile."""
    entry = clean_fields(row, tuple(_USER_WEIGHTS))
    return entry | {"title": entry["title"] or cut_words(clean_text(row["profile"]), _TITLE_WORDS)}


def _parts(document: int, row: dict[str, str], weights: dict[str, int]) -> Iterable[tuple[int, int, bool, str]]:
    """Rows of `PART_SCHEMA` for the fields that say something."""
    for field, weight in weights.items():
        if row[field]:
            yield document, weight, field in _QUOTABLE, row[field][:_LARGEST_TEXT]


def _labelled(label: str, text: str) -> str:
    return f"{label}: {text}" if text else ""


def _text(*pieces: str) -> str:
    """The pieces that are not empty as sentences of one text."""
    return " ".join(piece if piece.endswith((".", "!", "?")) else f"{piece}." for piece in pieces if piece)
