"""Prompt templates: loaded from a file, checked when loaded, rendered within a budget (eqs. 1, 2)."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.profiles.text import clean_categories, clean_text, count_words, cut_words
from pipeline.settings import PROMPTS_FOLDER

Kind = Literal["item", "user"]

NOT_GIVEN = "(not given)"
# In the order in which they are kept when a prompt has to be cut.
ITEM_FIELDS = ("title", "brand", "price", "categories", "description")
ENTRY_FIELDS = ("title", "categories", "headline", "profile", "review")
FIELDS: dict[Kind, tuple[str, ...]] = {"item": ITEM_FIELDS, "user": ENTRY_FIELDS}
VARIABLES: dict[Kind, tuple[str, ...]] = {"item": ITEM_FIELDS, "user": ("history",)}
# With a history of several entries, no single text takes more than this share of the budget.
_LARGEST_SHARE = 4
# Hardly a token stands for more than two words (characters, in scripts without spaces).
_WORDS_PER_TOKEN = 2
_GUESSES = 4
_COMMENT = "\0"
_NOTHING = dict.fromkeys(ITEM_FIELDS + ENTRY_FIELDS, "")
# Of Jinja's filters those that choose among values and shape text: none draws at random, runs code, or pads.
FILTERS = (
    "capitalize", "count", "d", "default", "first", "int", "join", "last", "length", "list", "lower", "map", "reject",
    "rejectattr", "replace", "reverse", "select", "selectattr", "sort", "string", "striptags", "title", "trim",
    "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
_MOST_STEPS = 20_000  # lines that a template may run for a single item or entry; real ones take some dozens
_MOST_CHARACTERS = 1_000_000
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError)


class TemplateError(ValueError):
    """A prompt template that cannot be used; the message names the file, the place and the remedy."""


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja without what a prompt has no use for: functions, most filters, text times a number, powers."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_or_not_given)
        self.globals.clear()
        self.filters = {name: self.filters[name] for name in FILTERS}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise jinja2.TemplateRuntimeError(
                f"{operator} is refused: a prompt has no powers, and * and % take numbers only"
            )
        return super().call_binop(context, operator, left, right)


@dataclass(frozen=True)
class Template:
    """A checked prompt template.

    Attributes
    ----------
    path
        Where it was read from.
    text
        Its source without comments: all that a rendered prompt depends on, and so what a version should hash.
    fields
        The item's or the entry's fields that it shows.
    """

    kind: Kind
    path: Path
    text: str
    fields: tuple[str, ...]
    compiled: jinja2.Template


@dataclass(frozen=True)
class Budget:
    """How long a prompt may be.

    Attributes
    ----------
    limit
        Largest `measure` of a whole prompt.
    measure
        Length of a text: its words, or its tokens with the chat template around it.
    setting
        Where the limit comes from, for messages.
    control
        What the model's tokenizer would take for control tokens: taken out of the data.
    """

    limit: int
    measure: Callable[[str], int] = count_words
    setting: str = "profiles.prompt_words"
    control: re.Pattern[str] | None = None

    @cached_property
    def overhead(self) -> int:
        """What an empty text measures."""
        return self.measure("")


@dataclass(frozen=True)
class Rendered:
    """A prompt, its length by the budget's measure, the words of data there were for it, and those that were cut."""

    text: str
    length: int
    data_words: int
    cut_words: int


def load_template(name_or_path: str | Path, kind: Kind) -> Template:
    """Read and check a template.

    Parameters
    ----------
    name_or_path
        An absolute path, or a file name in `pipeline/prompts/`.
    kind
        What it describes; decides which variables there are.

    Raises
    ------
    TemplateError
        For a file that cannot be read, a syntax error, a variable, filter or attribute that does not exist, and a
        template that runs or writes without end.
    """
    path = PROMPTS_FOLDER / name_or_path
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{path}: the {kind} prompt cannot be read: {error}") from error
    environment = _Environment()
    try:
        used = _check_names(environment.parse(source), kind, path)
        text = _without_comments(source).strip()  # as the rendered prompt is
        fields = tuple(field for field in FIELDS[kind] if field in used)
        template = Template(kind, path, text, fields, environment.from_string(text))
        whole = environment.from_string(source)  # with its comments, so that a line is the file's
    except jinja2.TemplateSyntaxError as error:
        known = f" A prompt has {', '.join(FILTERS)}" if "No filter named" in str(error.message) else ""
        raise TemplateError(f"{path}, line {error.lineno}: {error.message}{known}") from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        raise TemplateError(f"{path}: nested too deeply, or too long ({error})") from error
    for value in ("", "word"):  # what only shows when it runs shows now, not after an hour
        _try(whole, _variables(kind, [dict.fromkeys(FIELDS[kind], value)]), f"the {kind} prompt", path)
    return template


def render_item(template: Template, row: Mapping[str, Any], budget: Budget) -> Rendered:
    """The prompt for one item.

    Parameters
    ----------
    row
        title, description, brand and price (text or None), categories (list of text or None).
    budget
        How long the whole prompt may be; the description is cut first.

    Raises
    ------
    TemplateError
        If the template alone is too long.
    """
    return _render_within(template, [_data(row, template, budget)], budget)


def render_user(template: Template, history: Sequence[Mapping[str, Any]], budget: Budget) -> Rendered:
    """The prompt for one user.

    Parameters
    ----------
    history
        Newest first: title, headline, profile and review (text or None), categories (list of text or None).
    budget
        How long the whole prompt may be; the oldest entries go first.

    Raises
    ------
    TemplateError
        If the template alone is too long.
    """
    return _render_within(template, [_data(row, template, budget) for row in history], budget)


def clean_fields(row: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, str]:
    """The named fields of an item or a history entry as clean text, in that order; "" where one is missing."""
    return {
        field: clean_categories(row.get(field)) if field == "categories" else clean_text(row.get(field))
        for field in fields
    }


def _data(row: Mapping[str, Any], template: Template, budget: Budget) -> dict[str, str]:
    """What the template shows of an item or a history entry, without anything the model could take for control."""
    fields = clean_fields(row, template.fields)
    if budget.control is None:
        return fields
    return {field: _without(text, budget.control) for field, text in fields.items()}


def _without(text: str, pattern: re.Pattern[str]) -> str:
    while pattern.search(text):  # again, because what is taken out can join its neighbours into another
        text = " ".join(pattern.sub(" ", text).split())
    return text


def _render_within(template: Template, entries: list[dict[str, str]], budget: Budget) -> Rendered:
    """Render as many words of `entries`, first entry and first field first, as fit into `budget`."""
    available = _words(entries)
    if len(entries) > 1:
        share = budget.limit // min(_LARGEST_SHARE, len(entries))
        entries = [{field: _shorten(text, share, budget) for field, text in entry.items()} for entry in entries]
    entries = _first_words(entries, _WORDS_PER_TOKEN * budget.limit)
    kept = _words(entries)
    prompt = _render(template, entries)
    length = budget.measure(prompt)
    if length > budget.limit:
        frame = _frame_length(template, budget)
        if frame > budget.limit:
            raise TemplateError(
                f"{template.path}: the template alone has a length of {frame}, more than "
                f"{budget.setting} = {budget.limit}; shorten it or raise the setting"
            )
        whole = entries
        kept = _most(
            lambda words: budget.measure(_render(template, _first_words(whole, words))),
            budget.limit,
            (0, frame),
            (kept, length),
        )
        prompt = _render(template, _first_words(entries, kept))
        length = budget.measure(prompt)
    return Rendered(prompt, length, available, available - kept)


@lru_cache(maxsize=8)
def _frame_length(template: Template, budget: Budget) -> int:
    """How long a prompt without any data is."""
    return budget.measure(_render(template, []))


def _shorten(text: str, share: int, budget: Budget) -> str:
    """The start of a text, in whole words, that takes no more than `share` of the budget."""
    if len(text.encode()) <= share:  # neither words nor tokens are more than bytes
        return text
    text = cut_words(text, _WORDS_PER_TOKEN * share)
    limit, length = share + budget.overhead, budget.measure(text)
    if length <= limit:
        return text
    kept = _most(
        lambda words: budget.measure(cut_words(text, words)), limit, (0, budget.overhead), (count_words(text), length)
    )
    return cut_words(text, kept)


def _most(measure: Callable[[int], int], limit: int, fits: tuple[int, int], too_long: tuple[int, int]) -> int:
    """The most words that measure at most `limit`, or a few less where each of them measures differently.

    Parameters
    ----------
    measure
        Number of words -> the length that they come to; a costly call.
    fits, too_long
        Numbers of words, with their lengths, between which to look.
    """
    (low, low_length), (count, length) = fits, too_long
    high = count - 1
    per_word = max((length - low_length) / max(count - low, 1), 0.1)
    slack = limit // 256
    guesses = 0
    while low < high and limit - low_length >= per_word and limit - low_length > slack:
        guesses += 1
        step = int((limit - low_length) / per_word) if guesses <= _GUESSES else (high - low + 1) // 2
        middle = min(max(low + step, low + 1), high)
        length = measure(middle)
        per_word = max((length - low_length) / (middle - low), 0.1)
        if length <= limit:
            low, low_length = middle, length
            high = min(high, low + _WORDS_PER_TOKEN * (limit - length))
        else:
            high = middle - 1
    return low


def _words(entries: list[dict[str, str]]) -> int:
    return sum(count_words(text) for entry in entries for text in entry.values())


def _first_words(entries: list[dict[str, str]], limit: int) -> list[dict[str, str]]:
    """The first `limit` words of all entries together; an entry left without any is dropped."""
    kept = []
    for entry in entries:
        if limit <= 0:
            break
        shortened = {}
        for field, text in entry.items():
            shortened[field] = cut_words(text, limit)
            limit -= count_words(shortened[field])
        kept.append(shortened)
    return kept


def _render(template: Template, entries: list[dict[str, str]]) -> str:
    try:
        return template.compiled.render(_variables(template.kind, entries)).strip()
    except _FAILURES as error:
        raise TemplateError(f"{template.path}: the {template.kind} prompt cannot be rendered: {error}") from error


def _variables(kind: Kind, entries: list[dict[str, str]]) -> dict[str, Any]:
    if kind == "user":
        return {"history": [_NOTHING | entry for entry in entries]}
    return _NOTHING | (entries[0] if entries else {})


def _try(compiled: jinja2.Template, variables: Mapping[str, Any], what: str, path: Path) -> None:
    """Render, within bounds and to no end but the error, which names the line."""
    steps = characters = 0

    def follow(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != "<template>":
            return None
        steps += event == "line"
        if steps > _MOST_STEPS:
            raise jinja2.TemplateRuntimeError(f"it runs more than {_MOST_STEPS} steps for one item")
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        for piece in compiled.generate(variables):
            characters += len(piece)
            if characters > _MOST_CHARACTERS:
                raise TemplateError(f"{path}: {what} is longer than {_MOST_CHARACTERS} characters for one item")
    except _FAILURES as error:
        if isinstance(error, TemplateError):
            raise
        line, trace = 0, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = trace.tb_lineno
            trace = trace.tb_next
        raise TemplateError(f"{path}, line {line}: {what} cannot be rendered: {error}") from error
    finally:
        sys.settrace(before)


def _or_not_given(value: Any) -> Any:
    return NOT_GIVEN if value is None or value == "" else value


def _without_comments(source: str) -> str:
    """`source` without `{# #}`; lines that held nothing else go with them, other lines keep their ends."""
    pieces = []
    for _, token, text in jinja2.Environment().lex(source.replace(_COMMENT, "")):
        if token == "comment":
            pieces.append(_COMMENT)
        elif token not in ("comment_begin", "comment_end"):
            pieces.append(text)
    marked = "".join(pieces)
    return re.sub(rf"(?m)^[ \t]*{_COMMENT}[ \t{_COMMENT}]*(\n|\Z)", "", marked).replace(_COMMENT, "")


def _check_names(tree: nodes.Template, kind: Kind, path: Path) -> set[str]:
    """The names of variables and attributes in a template, all of which exist."""
    known = VARIABLES[kind]
    unknown = meta.find_undeclared_variables(tree) - set(known)
    for name in tree.find_all(nodes.Name):
        if name.name in unknown and name.ctx == "load":
            raise TemplateError(
                f"{path}, line {name.lineno}: unknown variable {name.name!r}; the {kind} prompt has {', '.join(known)}"
            )
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise TemplateError(f"{path}, line {node.lineno}: a prompt is one file; it cannot take in another template")
    attributes = {_check_attribute(node, kind, path) for node in tree.find_all((nodes.Getattr, nodes.Getitem))}
    return {name.name for name in tree.find_all(nodes.Name)} | attributes


def _check_attribute(node: nodes.Expr, kind: Kind, path: Path) -> str:
    """The name of an attribute; only fields of a history entry, jinja's own `loop.*`, numbers and slices pass."""
    holder = node.node  # type: ignore[attr-defined]
    argument = nodes.Const(node.attr) if isinstance(node, nodes.Getattr) else node.arg  # type: ignore[attr-defined]
    name = getattr(argument, "value", None)
    if isinstance(argument, nodes.Slice) or isinstance(name, int):
        return ""
    if isinstance(holder, nodes.Name) and holder.name == "loop":
        return ""
    if kind == "user" and name in ENTRY_FIELDS:
        return str(name)
    there_are = f"an entry of the history has {', '.join(ENTRY_FIELDS)}" if kind == "user" else "values are plain text"
    raise TemplateError(f"{path}, line {node.lineno}: unknown attribute {name!r}; {there_are}")
