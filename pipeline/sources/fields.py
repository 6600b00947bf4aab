"""Single raw values: identifiers, numbers, times, and text freed of markup."""

import html
import math
import re
from datetime import UTC, date, datetime
from typing import Any

from pipeline.sources.lines import BadRow

LAST_SECOND = 253_402_300_799  # the end of the year 9999
PRICE_CHARACTERS = 40  # a longer "price" is a piece of the page it was cut from

_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_PRICE = re.compile(r"[^{}]*\d[^{}]*")
_SPACE = re.compile(r"\s+")


def identifier(value: Any, name: str) -> str:
    """A raw id as text: 12 and 12.0 are "12", and "007" stays as it is.

    Raises
    ------
    BadRow
        There is none.
    """
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None if math.isnan(value) else value
    if value is None or isinstance(value, bool | dict | list):
        raise BadRow(f"missing {name}")
    text = str(value).strip()
    if not text:
        raise BadRow(f"missing {name}")
    if not is_unicode(text):
        raise BadRow(f"{name} is not valid Unicode")
    return text


def number(value: Any, name: str) -> float | None:
    """A finite number, given as one or as text; null where there is none."""
    if _is_missing(value):
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise BadRow(f"{name} is not a number")
    return found


def seconds(value: Any, name: str) -> int | None:
    """Unix seconds of a count of seconds, a date, or an ISO date and time (UTC unless it says otherwise)."""
    if _is_missing(value):
        return None
    if isinstance(value, str) and not value.strip().lstrip("-").replace(".", "", 1).isdigit():
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise BadRow(f"{name} is not a time") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    found = number(value, name)
    if found is None or not 0 <= found <= LAST_SECOND:
        raise BadRow(f"{name} is not in the years 1970 to 9999 in seconds")
    return int(found)


def text(value: Any) -> str | None:
    """Readable text of a string, number, or list of them: no markup, no entities, single spaces; null if empty."""
    if isinstance(value, list | tuple):
        parts = [part for part in (text(part) for part in value) if part]
        return " ".join(parts) or None
    if _is_missing(value) or isinstance(value, bool | dict):
        return None
    found = str(value)
    if "<" in found or "&" in found:
        found = _plain(found)
    found = _SPACE.sub(" ", found).strip()
    if not is_unicode(found):
        found = found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return found or None


def labels(value: Any) -> list[str] | None:
    """Category names of a nested list, in order, each once; null if there are none."""
    found: dict[str, None] = {}
    pending = [value]
    while pending:
        part = pending.pop(0)
        if isinstance(part, list | tuple):
            pending[:0] = part
        elif label := text(part):
            found[label] = None
    return list(found) or None


def price(value: Any) -> str | None:
    """A price as printed; null where the field holds no figure or a piece of a page."""
    found = text(value)
    if found is None or len(found) > PRICE_CHARACTERS or not _PRICE.fullmatch(found):
        return None
    return found


def _plain(marked: str) -> str:
    if "</script" in marked or "</style" in marked:
        marked = _SCRIPT.sub(" ", marked)
    # Published texts hold both markup and escaped markup (`&lt;br&gt;`): once before unescaping, once after.
    return _TAG.sub(" ", html.unescape(_TAG.sub(" ", marked)))


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("", "nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_unicode(found: str) -> bool:
    """Whether the text can be stored: JSON may hold half of a surrogate pair."""
    return found.isascii() or not any("\ud800" <= character <= "\udfff" for character in found)
