"""What is known of items and users without a model: their fields, their histories, and the plain text of both."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline.profiles.prompts import clean_fields
from pipeline.profiles.text import cut_words


class Histories:
    """The interactions of each user, newest first, with what is known of each item.

    Parameters
    ----------
    users
        Table with `user`, contiguous from 0.
    items
        Table with `item`, contiguous from 0, and the columns title, description, categories, brand, price.
    item_profiles
        Table with `item` and `summary`, one row per item in id order.
    histories
        Table with user, item, timestamp, summary, text; one row per interaction that may be shown.

    Raises
    ------
    ValueError
        If ids are not contiguous, or a history names a user or an item that there is not.
    """

    def __init__(
        self, users: pl.DataFrame, items: pl.DataFrame, item_profiles: pl.DataFrame, histories: pl.DataFrame
    ) -> None:
        for table, column in ((users, "user"), (items, "item"), (item_profiles, "item")):
            require_contiguous(table, column)
        if item_profiles.height != items.height:
            raise ValueError(f"{item_profiles.height} item profiles for {items.height} items; rebuild the profiles")
        for column, count in (("user", users.height), ("item", items.height)):
            strange = histories.filter((pl.col(column) < 0) | (pl.col(column) >= count))
            if strange.height:
                raise ValueError(f"histories name {column} {strange[column][0]}, but there are only {count}")
        # Ties in time go to the lower item id, so that the order never depends on the input's.
        self.rows = histories.select("user", "item", "timestamp", "summary", "text").sort(
            "user", "timestamp", "item", descending=[False, True, False], nulls_last=True
        )
        self.items = items
        self.profiles: list[str] = item_profiles["summary"].to_list()
        self._titles: list[str | None] = items["title"].to_list()
        self._categories: list[list[str] | None] = items["categories"].to_list()
        self._starts = np.searchsorted(self.rows["user"].to_numpy(), np.arange(users.height + 1))  # (M + 1,)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, user: int) -> list[dict[str, Any]]:
        """One user's rows, newest first: title, categories, profile, headline, review."""
        start, end = self._starts[user], self._starts[user + 1]
        return [
            {
                "title": self._titles[row["item"]],
                "categories": self._categories[row["item"]],
                "profile": self.profiles[row["item"]],
                "headline": row["summary"],
                "review": row["text"],
            }
            for row in self.rows.slice(start, end - start).to_dicts()
        ]


def require_contiguous(table: pl.DataFrame, column: str) -> None:
    """Raise ValueError unless `column` counts 0, 1, 2, ..."""
    ids = table[column].to_numpy()
    wrong = np.flatnonzero(ids != np.arange(len(ids)))
    if len(wrong):
        raise ValueError(
            f"column {column}: row {wrong[0]} holds id {ids[wrong[0]]}; ids must count from 0 in row order"
        )


def item_metadata_text(row: Mapping[str, Any], words: int) -> str:
    """Title, brand, categories and description of an item as plain text, at most `words` long."""
    return _sentences(clean_fields(row, ("title", "brand", "categories", "description")).values(), words)


def user_metadata_text(history: Iterable[Mapping[str, Any]], words: int) -> str:
    """Titles and reviews of a user's history as plain text, newest first, at most `words` long."""
    entries = (clean_fields(row, ("title", "headline", "review")) for row in history)
    return _sentences((text for entry in entries for text in entry.values()), words)


def _sentences(texts: Iterable[str], words: int) -> str:
    closed = (text if text.endswith((".", "!", "?")) else f"{text}." for text in texts if text)
    return cut_words(" ".join(closed), words)
