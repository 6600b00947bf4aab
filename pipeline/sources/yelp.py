"""The Yelp academic dataset: JSON lines of businesses and reviews."""

import ast
import re
from pathlib import Path
from typing import Any

from pipeline.settings import YelpSource
from pipeline.sources import Progress
from pipeline.sources.download import fetch
from pipeline.sources.fields import identifier, labels, number, seconds, text
from pipeline.sources.lines import ByteProgress, read_rows
from pipeline.sources.writer import RawWriter

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PRICE = "RestaurantsPriceRange2"


def read(source: YelpSource, writer: RawWriter, downloads: Path, progress: Progress | None = None) -> None:
    """Read Yelp's business and review files into the raw tables."""
    reviews, businesses = (fetch(file, downloads, progress) for file in (source.reviews, source.business))
    read_bytes = ByteProgress([reviews, businesses], progress)
    read_rows(reviews, "reviews", review, writer, read_bytes)
    read_rows(businesses, "items", business, writer, read_bytes)


def review(record: dict[str, Any]) -> tuple[Any, ...]:
    """One row of `reviews`."""
    return (
        identifier(record.get("user_id"), "user_id"),
        identifier(record.get("business_id"), "business_id"),
        number(record.get("stars"), "stars"),
        seconds(record.get("date"), "date"),
        None,
        text(record.get("text")),
        None,
    )


def business(record: dict[str, Any]) -> tuple[Any, ...]:
    """One row of `items`: the place and its attributes make the description, the price range the price."""
    categories = record.get("categories")
    attributes = record.get("attributes") or {}
    place = ", ".join(part for part in (text(record.get(key)) for key in ("address", "city", "state")) if part)
    facts = _facts(attributes) if isinstance(attributes, dict) else []
    level = _value(attributes.get(_PRICE)) if isinstance(attributes, dict) else None
    return (
        identifier(record.get("business_id"), "business_id"),
        text(record.get("name")),
        ". ".join(part for part in (place, ", ".join(facts)) if part) or None,
        labels(categories.split(",") if isinstance(categories, str) else categories),
        None,
        "$" * level if isinstance(level, int) and 1 <= level <= 4 else None,
    )


def _facts(attributes: dict[str, Any]) -> list[str]:
    """Attributes in words: what holds by its name, a choice with its value; what does not hold is left out."""
    found = []
    for name, printed in attributes.items():
        value = _value(printed)
        words = _CAPITAL.sub(" ", name).lower()
        if isinstance(value, dict):
            holds = [part for part, held in value.items() if held is True]
            if holds:
                found.append(f"{words}: {' and '.join(holds)}")
        elif value is True:
            found.append(words)
        elif isinstance(value, str) and value not in ("none", "no"):
            found.append(f"{words}: {value.replace('_', ' ')}")
    return found


def _value(printed: Any) -> Any:
    """The value of an attribute, which is published as a printed Python literal: `"u'free'"`, `"True"`, `"2"`."""
    try:
        return ast.literal_eval(printed) if isinstance(printed, str) else printed
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return printed
