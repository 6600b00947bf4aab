"""Text that strangers wrote, made safe to show to a model and to count in words."""

import html
import re

# Whole-field spellings of "no value" that table tools leave behind.
_NO_VALUE = frozenset({"nan", "NaN", "None", "null", "NULL", "N/A", "n/a"})

# Bidirectional overrides, zero-width characters, tag characters, surrogates and non-characters: invisible to a
# reader, not to a tokenizer. The joiners U+200C and U+200D stay, since Persian and emoji need them.
_INVISIBLE = re.compile(
    "[\u00ad\u200b\u2060-\u2064\ufeff\u200e\u200f\u202a-\u202e\u2066-\u206f\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CODE_BLOCK = re.compile(r"<(/?)(script|style)\b", re.IGNORECASE)
# HTML tags, prompt delimiters and chat-template tokens alike: <br>, </record>, <s>, <<SYS>>, <|im_end|>, <｜User｜>.
# No quantifier can run over another "<", so the search stays linear in the text's length.
_TAG = re.compile(r"<{1,2}[/!?]?[A-Za-z|｜][^<>]*>{0,2}(?<=>)|</|<[|｜]|[|｜]>")
# The last line holds words that people put into brackets too: those count as tokens in the tokens' own spelling only.
_BRACKET_TOKEN = re.compile(
    r"\[/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|IMG|IMG_BREAK|IMG_END|CALL_ID"
    r"|BEGIN_AUDIO|MODEL_SETTINGS|CLS|SEP|[GS]?MASK|PAD|UNK"
    r"|(?-i:ARGS|AUDIO|MIDDLE|PREFIX|SUFFIX|THINK))\]",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")

# Scripts without spaces: one character counts as a word. A run of 40 characters without a space is no word but
# an address or junk: it counts as several and may be cut, so that a budget in words always bounds the text.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_LONGEST_WORD = 40
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]{{1,{_LONGEST_WORD}}}")


def clean_text(text: str | None) -> str:
    """One line of plain text: no markup, no chat-template tokens, no control or invisible characters.

    HTML entities are resolved first, so that an escaped token does not slip through. What is taken out leaves a
    space, so that its neighbours cannot join into a new token. A missing value (None, "nan", "null") is "".
    """
    if text is None:
        return ""
    text = html.unescape(text) if "&" in text else text
    text = _INVISIBLE.sub("", _CONTROL.sub(" ", text))
    if "<" in text or ">" in text:
        text = _TAG.sub(" ", _without_code(text))
    if "[" in text:
        text = _BRACKET_TOKEN.sub(" ", text)
    text = _SPACE.sub(" ", text).strip()
    return "" if text in _NO_VALUE else text


def clean_categories(categories: list[str] | None) -> str:
    """Category names, each once and in their order, separated by commas."""
    names = [clean_text(name) for name in categories or []]
    return ", ".join(dict.fromkeys(name for name in names if name))


def count_words(text: str) -> int:
    """Number of words; a character of an unspaced script is one, a run of n > 40 characters is ceil(n / 40)."""
    return len(text.split()) if _has_plain_words(text) else len(_WORD.findall(text))


def cut_words(text: str, limit: int) -> str:
    """The first `limit` words of `text`, as they stand in it."""
    if limit <= 0:
        return ""
    if _has_plain_words(text):
        pieces = text.split(None, limit)
        return text if len(pieces) <= limit else text[: -len(pieces[-1])].rstrip()
    for number, match in enumerate(_WORD.finditer(text), start=1):
        if number == limit:
            return text[: match.end()]
    return text


def _has_plain_words(text: str) -> bool:
    """Whether white space alone says where the words are: many times faster than a search."""
    if not text.isascii() and _UNSPACED_CHARACTER.search(text):
        return False
    return max(map(len, text.split()), default=0) <= _LONGEST_WORD


def _without_code(text: str) -> str:
    """`text` without what stands between a script or style tag and its closing tag."""
    pieces, kept_to, opened = [], 0, None
    for tag in _CODE_BLOCK.finditer(text):
        if opened is None and not tag[1]:
            opened = tag
        elif opened is not None and tag[1] and tag[2].lower() == opened[2].lower():
            pieces.append(text[kept_to : opened.start()])
            kept_to, opened = tag.start(), None
    return " ".join([*pieces, text[kept_to:]])
