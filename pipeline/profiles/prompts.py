"""Prompt templates: loaded from a file, checked when loaded, rendered within a budget (eqs. 1, 2)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
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
# Of FILTERS, those that go through all that they are given.
_GO_THROUGH = {"join", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique"}
# Rounds of loops, branches, macros and values that filters go through, for an item or entry; real ones take a few.
_MOST_STEPS = 20_000
# Characters written and values made on the way; of a prompt's data as many times as the second says, besides.
_MOST_CHARACTERS, _TIMES_THE_DATA = 1_000_000, 16
_MOST_NUMBER = 1 << 63
_METER = "(meter)"  # no name that a template could write
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError)


class TemplateError(ValueError):
    """A prompt template that cannot be used; the message names the file, the place and the remedy."""


class _Meter:
    """What is left of the steps and the characters that a rendering may take."""

    def __init__(self, entries: Sequence[Mapping[str, str]]) -> None:
        self.most_steps = self.steps = _MOST_STEPS * max(len(entries), 1)
        data = sum(len(text) for entry in entries for text in entry.values())
        self.most_characters = self.characters = _MOST_CHARACTERS + _TIMES_THE_DATA * data

    def step(self, count: int) -> None:
        self.steps -= count
        if self.steps < 0:
            raise jinja2.TemplateRuntimeError(f"it runs more than {self.most_steps} steps; take out loops")

    def write(self, count: int) -> None:
        self.characters -= count
        if self.characters < 0:
            raise jinja2.TemplateRuntimeError(
                f"it makes more than {self.most_characters} characters; shorten it, or take out what repeats text"
            )

    def text(self, value: Any) -> str:
        """`value` as text, which counts."""
        text = str(value)
        self.write(len(text))
        return text

    def made(self, value: Any) -> Any:
        """`value`, which counts with all that it holds, as often as it holds it."""
        if isinstance(value, str):
            self.write(len(value))
        elif isinstance(value, list | tuple | dict):
            self.write(len(value))
            for part in value:
                self.made(part)
                if isinstance(value, dict):
                    self.made(value[part])
        return value


class _Code(CodeGenerator):
    """Jinja's code, which counts what it runs and makes."""

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        """The body of a loop, a branch, a macro or the template: a step, and the characters of its own text."""
        body = list(body)
        outputs = (part for node in body if isinstance(node, nodes.Output) for part in node.nodes)
        written = sum(len(part.data) for part in outputs if isinstance(part, nodes.TemplateData))
        self.writeline(f"environment.begin(context, {written})")
        super().blockvisit(body, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        if node.test is not None:  # rounds that it leaves out count
            counted = nodes.EnvironmentAttribute("count_rounds")
            node.iter = nodes.Call(counted, [nodes.ContextReference(), node.iter], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat_parts(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._made(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _made(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write(f"context.parent[{_METER!r}].made(")
        visit(node, frame)
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja without what a prompt has no use for: functions, most filters, text times a number, powers."""

    code_generator_class = _Code
    intercepted_binops = frozenset({"*", "**", "%", "+", "-"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_or_not_given,
            optimized=False,  # what it would compute when it compiles is not counted
        )
        self.globals.clear()
        self.filters = {name: _counted(name, self.filters[name]) for name in FILTERS}

    def begin(self, context: Context, written: int) -> None:
        """Count a step and the characters that it writes."""
        meter = context.parent[_METER]
        meter.step(1)
        meter.write(written)

    def count_rounds(self, context: Context, values: Any) -> Any:
        """Count the rounds of a loop before it begins; a filter's values were counted where they come from."""
        if isinstance(values, Sized):
            context.parent[_METER].step(len(values))
        return values

    def concat_parts(self, context: Context, parts: tuple[Any, ...]) -> str:
        """What `~` makes of its parts."""
        return "".join([context.parent[_METER].text(part) for part in parts])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or not (numbers or operator in "+-"):
            raise jinja2.TemplateRuntimeError(
                f"{operator} is refused: a prompt has no powers, and * and % take numbers only"
            )
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, int) and abs(found) > _MOST_NUMBER:
            raise jinja2.TemplateRuntimeError(f"{operator} makes a number of more than 64 bits")
        return context.parent[_METER].made(found)


def _counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja's that counts what it goes through and what it makes."""

    @jinja2.pass_context
    def counted(context: Context, value: Any, *given: Any, **named: Any) -> Any:
        meter = context.parent[_METER]
        if name in _GO_THROUGH and isinstance(value, Sized):  # of others what they come from has counted
            meter.step(len(value))
        if name == "join":
            return _join(context, value, *given, **named)
        if name == "replace":
            meter.write(_growth(value, *given, **named))
        passed = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
            None: (),
        }[getattr(getattr(plain, "jinja_pass_arg", None), "name", None)]
        return meter.made(plain(*passed, value, *given, **named))

    return counted


def _join(context: Context, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = context.environment.call_filter("map", value, kwargs={"attribute": attribute}, context=context)
    meter, parts = context.parent[_METER], []
    for part in value:
        meter.write(len(str(d)))
        parts.append(meter.text(part))
    return str(d).join(parts)


def _growth(s: Any, old: str, new: str, count: int | None = None) -> int:
    """By how many characters `replace` makes a text longer."""
    found = str(s).count(str(old))
    if count is not None and count >= 0:
        found = min(found, count)
    return found * max(len(str(new)) - len(str(old)), 0)


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
    """What a template is given, its meter included: a rendering counts anew."""
    meter = {_METER: _Meter(entries)}
    if kind == "user":
        return meter | {"history": [_NOTHING | entry for entry in entries]}
    return meter | _NOTHING | (entries[0] if entries else {})


def _try(compiled: jinja2.Template, variables: Mapping[str, Any], what: str, path: Path) -> None:
    """Render to no end but the error, which names the line."""
    try:
        compiled.render(variables)
    except _FAILURES as error:
        line, trace = 0, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = trace.tb_lineno
            trace = trace.tb_next
        raise TemplateError(f"{path}, line {line}: {what} cannot be rendered: {error}") from error


@jinja2.pass_context
def _or_not_given(context: Context, value: Any) -> str:
    return context.parent[_METER].text(NOT_GIVEN if value is None or value == "" else value)


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
