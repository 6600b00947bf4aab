"""The demo's raw files: names, sentences and image vectors that follow from what is planted."""

import gzip
import io
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.sources.amazon import IMAGE_SIZE, RECORD
from pipeline.sources.planted import Planted

FIRST_DAY, DAYS = 16071, 1461  # the years 2014 to 2017, in days since 1970
DAY_SECONDS = 86_400

BRANDS = (
    "Alderway",
    "Bramble",
    "Cinderfox",
    "Dunmore",
    "Everlode",
    "Fernhill",
    "Gladewell",
    "Harrow",
    "Ironbark",
    "Juniper",
    "Kestrel",
    "Larkspur",
    "Marlowe",
    "Northpine",
    "Oakhurst",
    "Pebblebrook",
    "Quillon",
    "Ravenna",
    "Saltmarsh",
    "Tamarack",
)
EDITIONS = ("", "", "", "Pro", "Classic", "Compact", "Deluxe", "Starter", "Mark II", "Travel Edition")
DESCRIPTIONS = (
    "A {product} made for {a} and {b}.",
    "Our {product} brings {a} within reach and takes care of {b}.",
    "Anyone who enjoys {theme} knows {a}; this {product} was designed around it, with {b} in mind.",
    "Think of {a}, think of {b}: the {edition} {product} handles both.",
)
MORE = ("Loved for {a} and {b}.", "Works well with {a} and {b}.", "Tested on {a}, ready for {b}.")
FILLERS = (
    "Ships in recyclable packaging.",
    "One year limited warranty.",
    "Colors may vary slightly from the picture.",
    "A thoughtful gift for any occasion.",
    "Please read the instructions before first use.",
)
REVIEWS = (
    "I bought this for {theme} and it is perfect for {a}. It also helped with {b}.",
    "Been into {theme} for years, and {a} has never been easier. My favorite part is {b}.",
    "After a month of use: {a} is great, {b} takes a little practice.",
    "If you care about {a} you want this. {interest} is my hobby, and {b} was what I was missing.",
    "It does {a} well. I had hoped for more on {b}, but I would buy it again.",
)
GIFTS = (
    "Bought as a gift, they seem to like it.",
    "Not really my thing, but it arrived on time.",
    "It was on sale so I tried it. It is fine.",
)
PLAIN = ("Great product, fast shipping.", "Exactly as described.", "Good value for the money.", "Works as expected.")


class _Words:
    """Words of an item's themes, drawn in proportion to their shares."""

    def __init__(self, truth: Planted, rng: np.random.Generator) -> None:
        self._truth, self._rng = truth, rng
        self._names = list(truth.bank)

    def fill(self, templates: tuple[str, ...], item: int, **fixed: str) -> str:
        interest = self._names[self._truth.item_interest[item]]
        themes = self._truth.bank[interest]
        shares = self._truth.item_themes[item]
        first, second = (list(themes)[place] for place in self._rng.choice(len(themes), size=2, p=shares))
        a, b = self.one(themes[first]["words"]), self.one(themes[second]["words"])
        sentence = self.one(templates).format(a=a, b=b, theme=first, interest=interest, **fixed)
        return " ".join(sentence.split())

    def one(self, options: Any) -> str:
        return str(options[int(self._rng.integers(len(options)))])

    def share(self) -> float:
        return float(self._rng.random())

    def chance(self, share: float) -> bool:
        return self.share() < share


def item_names(truth: Planted, seed: int) -> list[str]:
    """ASIN of each item: ten characters, in no order that tells of the item."""
    return [f"B0{code:08d}" for code in _codes(truth.item_interest.size, seed, stream=1)]


def user_names(truth: Planted, seed: int) -> list[str]:
    """Reviewer id of each user."""
    return [f"A{code:08d}DEMO" for code in _codes(truth.user_themes.shape[0], seed, stream=2)]


def _codes(count: int, seed: int, stream: int) -> list[int]:
    codes: list[int] = np.random.default_rng([seed, stream]).choice(10**8, size=count, replace=False).tolist()
    return codes


def metadata_bytes(truth: Planted, seed: int) -> bytes:
    """Metadata lines, gzip; one in 30 items has another's text, some rows come twice, a few are cut off."""
    rng = np.random.default_rng([seed, 3])
    words = _Words(truth, rng)
    records: list[dict[str, Any]] = []
    for item, asin in enumerate(item_names(truth, seed)):
        record = _item_record(truth, item, words) | {"asin": asin}
        alike = np.flatnonzero(truth.item_interest[:item] == truth.item_interest[item])
        if alike.size and words.chance(1 / 30):
            twin = records[int(rng.choice(alike))]
            record |= {key: twin[key] for key in ("title", "description") if key in twin}
        records.append(record)
    lines = [json.dumps(record) for record in records]
    again = [line for line in lines if words.chance(0.01)]
    broken = [line[: len(line) // 2] for line in lines[: len(lines) // 200]]
    return _packed([*lines, *again], broken, rng)


def _item_record(truth: Planted, item: int, words: _Words) -> dict[str, Any]:
    interest, themes = list(truth.bank.items())[truth.item_interest[item]]
    product = words.one(list(themes.values())[int(truth.item_themes[item].argmax())]["products"])
    brand, edition = words.one(BRANDS), words.one(EDITIONS)
    sentences = [words.fill(DESCRIPTIONS, item, product=product, edition=edition.lower())]
    sentences += [words.fill(MORE, item) for _ in range(3)]
    if words.chance(0.4):
        sentences.append(words.one(FILLERS))
    record: dict[str, Any] = {"title": " ".join(f"{brand} {edition} {product}".title().split())}
    if words.chance(0.9):
        record["description"] = [" ".join(sentences)]
    if words.chance(0.9):
        record["category"] = ["Hobbies &amp; Leisure", interest]
    record["brand"] = brand if words.chance(0.9) else ""
    if words.chance(0.85):
        record["price"] = f"${5 + 120 * words.share() ** 2:.2f}"
    return record


def review_bytes(truth: Planted, seed: int) -> bytes:
    """Review lines, gzip, in order of time; one pair in 200 is reviewed twice, one line in 400 is broken."""
    rng = np.random.default_rng([seed, 4])
    words = _Words(truth, rng)
    users, items = user_names(truth, seed), item_names(truth, seed)
    days = FIRST_DAY + rng.integers(DAYS, size=truth.users.size)
    records: list[tuple[int, str]] = []
    for user, item, off, day in zip(truth.users, truth.items, truth.off_interest, days, strict=True):
        for again in range(2 if words.chance(0.005) else 1):
            record = _review_record(int(item), bool(off), int(day) + 30 * again, words)
            record |= {"reviewerID": users[user], "asin": items[item]}
            records.append((int(day) + 30 * again, json.dumps(record)))
    lines = [line for _, line in sorted(records)]
    few = len(lines) // 800
    cut = [line[: len(line) // 3] for line in lines[:few]]
    nameless = [line.replace('"asin"', '"lost"') for line in lines[few : 2 * few]]
    return _packed(lines, [*cut, *nameless], rng)


def _review_record(item: int, off_interest: bool, day: int, words: _Words) -> dict[str, Any]:
    if off_interest:
        text, rating = words.one(GIFTS), words.one("234")
    elif words.chance(0.2):
        text, rating = words.one(PLAIN), words.one("45")
    else:
        text, rating = words.fill(REVIEWS, item), words.one("3445555")
    headlines = {"2": "Not for me", "3": "It is okay", "4": "Four stars"}
    review: dict[str, Any] = {"overall": float(rating), "verified": True, "unixReviewTime": day * DAY_SECONDS}
    review["reviewTime"] = f"{datetime.fromtimestamp(day * DAY_SECONDS, UTC):%m %d, %Y}"
    review["summary"] = headlines.get(rating) or words.fill(("Great for {a}", "Love it for {a}", "{a}!"), item)
    if words.chance(0.97):
        review["reviewText"] = text
    return review


def image_bytes(truth: Planted, seed: int) -> bytes:
    """Image features: a mixture of the item's theme directions, noise on top, nothing below zero.

    One item in 25 has no image, one in 300 a vector with a NaN.
    """
    rng = np.random.default_rng([seed, 5])
    interests, themes = truth.user_themes.shape[1:]
    directions = rng.gamma(0.3, size=(interests, themes, IMAGE_SIZE))  # few large values, like a rectified layer's
    count = truth.item_interest.size
    vectors = rng.gamma(0.3, scale=0.8, size=(count, IMAGE_SIZE))
    for theme in range(themes):
        vectors += truth.item_themes[:, theme, None] * directions[truth.item_interest, theme]
    vectors[: count // 300, 0] = np.nan
    records = np.zeros(count, RECORD)
    records["item"] = item_names(truth, seed)
    records["vector"] = vectors
    return records[rng.random(count) >= 0.04].tobytes()


def _packed(lines: list[str], broken: list[str], rng: np.random.Generator) -> bytes:
    """Lines with the broken ones put in at random places, gzip without a time stamp."""
    lines = list(lines)
    for line in broken:
        lines.insert(int(rng.integers(len(lines) + 1)), line)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
        packed.write("".join(f"{line}\n" for line in lines).encode())
    return buffer.getvalue()
