"""From raw reviews to contiguous ids, a k-core, a split, and the histories that profiles may show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from pipeline.settings import InteractionSettings
from pipeline.splits import SPLITS, global_time_split, pair_draws, random_split, user_time_split

ITEM_FIELDS = ("title", "description", "categories", "brand", "price")


class InteractionError(ValueError):
    """Reviews that give no usable interactions; the message says which setting to change."""


@dataclass(frozen=True)
class InteractionTables:
    """The interactions stage's result; ids are contiguous from 0, in the order of the raw ids.

    Attributes
    ----------
    users
        user i32, raw_id str.
    items
        item i32, raw_id str, title, description, categories, brand, price.
    interactions
        user i32, item i32, split str, timestamp i64; one row per pair, sorted by (user, item).
    counts
        What came in, what was left out and why, and what is left.
    """

    users: pl.DataFrame
    items: pl.DataFrame
    interactions: pl.DataFrame
    counts: Mapping[str, int]


def build_interactions(reviews: pl.LazyFrame, items: pl.LazyFrame, settings: InteractionSettings) -> InteractionTables:
    """Collapse, filter, number and split the interactions (ALGORITHM 1).

    Several reviews of one pair collapse to the newest (of equally new ones, the last in the file). Then ratings below
    `min_rating`, and missing ones if it is set, are left out, and the k-core is taken. A user whose training part is
    empty loses the held-out rows, for such a user cannot be evaluated; the user and the items keep their ids, so ids
    do not depend on the split. An item may be held out only: it stays, as a cold one.

    Parameters
    ----------
    reviews, items
        The raw tables. Items without a row in `items` get null fields and are counted.

    Raises
    ------
    InteractionError
        Nothing is left, a given split is missing or unknown somewhere, or a time is missing that a split needs.
    """
    pairs, counts = _newest(reviews, settings)
    if settings.min_rating is not None:
        rated = pl.col("rating") >= settings.min_rating
        kept = pairs.filter(rated.fill_null(False))
        counts["below_min_rating"] = pairs.height - kept.height
        pairs = kept
    core = k_core(pairs["user"].to_numpy(), pairs["item"].to_numpy(), settings.core)
    counts["outside_core"] = int((~core).sum())
    pairs = pairs.filter(core)
    if pairs.is_empty():
        below = counts.get("below_min_rating", 0)
        raise InteractionError(
            f"no interactions are left of {counts['reviews']} reviews ({counts['pairs']} pairs), {below} for having a "
            f"lower rating or none: lower interactions.core (now {settings.core}) or interactions.min_rating (now "
            f"{settings.min_rating}; null takes those without a rating, too)"
        )
    users, user_codes = _contiguous(_identifiers(reviews, "user"), pairs["user"], "user")
    item_ids, item_codes = _contiguous(_identifiers(reviews, "item"), pairs["item"], "item")
    pairs = pairs.with_columns(user_codes, item_codes).sort("user", "item")
    pairs = _evaluable(pairs.with_columns(split=_split(pairs, users["raw_id"], item_ids["raw_id"], settings)), counts)
    table = _with_metadata(item_ids, items, counts)
    counts |= {"users": users.height, "items": table.height, "interactions": pairs.height}
    counts |= {name: int((pairs["split"] == code).sum()) for code, name in enumerate(SPLITS)}
    names = pl.col("split").replace_strict(dict(enumerate(SPLITS)), return_dtype=pl.String)
    return InteractionTables(users, table, pairs.select("user", "item", names, "timestamp"), counts)


def k_core(users: np.ndarray, items: np.ndarray, core: int) -> np.ndarray:
    """Which pairs belong to the largest part in which every user and item has at least `core` pairs.

    Parameters
    ----------
    users, items
        Non-negative integer codes, (n,), each pair once.

    Returns
    -------
    Mask, bool (n,).
    """
    kept = np.arange(users.size)
    while kept.size:
        frequent_users = np.bincount(users[kept]) >= core
        frequent_items = np.bincount(items[kept]) >= core
        good = frequent_users[users[kept]] & frequent_items[items[kept]]
        if good.all():
            break
        kept = kept[good]
    mask = np.zeros(users.size, dtype=bool)
    mask[kept] = True
    return mask


def user_histories(
    reviews: pl.LazyFrame,
    tables: InteractionTables,
    settings: InteractionSettings,
    history: Literal["train", "all"] = "train",
) -> pl.LazyFrame:
    """What a user's profile may show: the user's own reviews, newest first.

    With `train` only pairs of the training split are there, so no held-out pair and no word of its review can reach
    a profile. A pair with several reviews shows the one that the interactions stage kept. Only row numbers are held
    in memory here; the texts are read when the result is collected or written to a file.

    Returns
    -------
    user i32, item i32, timestamp i64, summary str, text str; by user, then newest first (a missing time is the
    oldest, equal times go by item).
    """
    shown = tables.interactions.filter(pl.col("split") == "train") if history == "train" else tables.interactions
    raw = shown.select("user", "item", "timestamp").with_columns(
        raw_user=tables.users["raw_id"].gather(shown["user"]), raw_item=tables.items["raw_id"].gather(shown["item"])
    )
    pairs, _ = _newest(reviews, settings)
    coded = raw.lazy().with_columns(
        raw_user=_coded("raw_user", _identifiers(reviews, "user")),
        raw_item=_coded("raw_item", _identifiers(reviews, "item")),
    )
    rows = coded.join(pairs.lazy(), left_on=["raw_user", "raw_item"], right_on=["user", "item"]).select(
        "row", "user", "item", "timestamp"
    )
    return (
        reviews.select("summary", "text")
        .with_row_index("row")
        .join(rows, on="row")
        .sort("user", "timestamp", "item", descending=[False, True, False], nulls_last=True)
        .select("user", "item", "timestamp", "summary", "text")
    )


def _newest(reviews: pl.LazyFrame, settings: InteractionSettings) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row per pair: codes of user and item, rating, timestamp, split code, row number of the review kept.

    Of a pair that a given split names twice, the training row goes before the others, and validation before test:
    nothing is evaluated that was trained on.
    """
    given = settings.split == "given"
    splits = pl.col("split").replace_strict({name: code for code, name in enumerate(SPLITS)}, default=None)
    rows = (
        reviews.select("user", "item", "rating", "timestamp", splits.cast(pl.Int8) if given else pl.lit(0, pl.Int8))
        .with_row_index("row")
        .with_columns(_coded("user", _identifiers(reviews, "user")), _coded("item", _identifiers(reviews, "item")))
        .rename({} if given else {"literal": "split"})
        .collect(engine="streaming")
    )
    if given and rows["split"].null_count():
        raise InteractionError(_missing_split(reviews, rows["split"].null_count()))
    # Nearly every pair has one review: only the others need the long sort.
    pair = pl.col("user") * (pl.col("item").max() + 1) + pl.col("item")
    rows = rows.with_columns(pair=pair).sort("pair")
    repeated = pl.col("pair").eq_missing(pl.col("pair").shift(1)) | pl.col("pair").eq_missing(pl.col("pair").shift(-1))
    several = rows.filter(repeated).sort(
        "pair", "split", "timestamp", "row", descending=[False, False, True, True], nulls_last=True
    )
    pairs = pl.concat([rows.filter(~repeated), several.unique("pair", keep="first", maintain_order=True)]).sort("pair")
    counts = {"reviews": rows.height, "pairs": pairs.height, "repeated_reviews": rows.height - pairs.height}
    if given:
        counts["pairs_in_two_splits"] = several.unique(["pair", "split"]).height - several["pair"].n_unique()
    return pairs.drop("pair"), counts


def _split(pairs: pl.DataFrame, users: pl.Series, items: pl.Series, settings: InteractionSettings) -> np.ndarray:
    """Split code of each pair, int8 (n,); pairs are sorted by (user, item), `users` and `items` are raw ids."""
    if settings.split == "given":
        return pairs["split"].to_numpy()
    user, item = pairs["user"].to_numpy(), pairs["item"].to_numpy()
    if settings.split == "random":
        return random_split(user, pair_draws(users, items, settings.seed)(user, item))
    if count := pairs["timestamp"].null_count():
        first = pairs.filter(pl.col("timestamp").is_null()).row(0, named=True)
        raise InteractionError(
            f"interactions.split is `{settings.split}`, but {count} of {pairs.height} pairs have no time; the first is "
            f"user {users[first['user']]!r}, item {items[first['item']]!r}. Fill the source's timestamp column, or set "
            "interactions.split to random"
        )
    times = pairs["timestamp"].to_numpy()
    return user_time_split(user, times) if settings.split == "user_time" else global_time_split(times)


def _missing_split(reviews: pl.LazyFrame, count: int) -> str:
    first = reviews.filter(~pl.col("split").is_in(SPLITS).fill_null(False)).head(1).collect().row(0, named=True)
    return (
        f"interactions.split is `given`, but {count} reviews have no split of {', '.join(SPLITS)}; the first is user "
        f"{first['user']!r}, item {first['item']!r}, split {first['split']!r}. Fill the source's split column, or set "
        "interactions.split to random"
    )


def _identifiers(reviews: pl.LazyFrame, column: str) -> pl.Series:
    """Raw ids that occur, sorted."""
    return reviews.select(pl.col(column).unique().sort()).collect(engine="streaming").to_series()


def _coded(column: str, identifiers: pl.Series) -> pl.Expr:
    """Place of each raw id in the sorted ids, as an integer."""
    return pl.col(column).cast(pl.Enum(identifiers)).to_physical().cast(pl.Int64)


def _contiguous(identifiers: pl.Series, codes: pl.Series, name: str) -> tuple[pl.DataFrame, pl.Series]:
    """Table of the ids that `codes` still uses, and the codes renumbered without gaps, in the same order."""
    used, renumbered = np.unique(codes.to_numpy(), return_inverse=True)
    table = pl.DataFrame({name: np.arange(used.size, dtype=np.int32), "raw_id": identifiers.gather(used)})
    return table, pl.Series(name, renumbered.astype(np.int32))


def _evaluable(pairs: pl.DataFrame, counts: dict[str, int]) -> pl.DataFrame:
    """Pairs without the held-out rows of users who have no training interaction."""
    trained = (pl.col("split") == 0).any().over("user")
    kept = pairs.filter(trained)
    counts["users_without_training"] = pairs["user"].n_unique() - kept["user"].n_unique()
    counts["held_out_without_training"] = pairs.height - kept.height
    return kept


def _with_metadata(item_ids: pl.DataFrame, items: pl.LazyFrame, counts: dict[str, int]) -> pl.DataFrame:
    known = items.select(pl.col("item").alias("raw_id"), *ITEM_FIELDS).unique(
        "raw_id", keep="first", maintain_order=True
    )
    joined = (
        item_ids.lazy()
        .join(known.with_columns(pl.lit(True).alias("known")), on="raw_id", how="left", maintain_order="left")
        .collect(engine="streaming")
    )
    counts["items_without_metadata"] = joined["known"].null_count()
    return joined.drop("known")
