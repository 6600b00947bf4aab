"""Item and user profiles (eqs. 1, 2) by the backend that the settings name."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl

from pipeline.profiles.answer import Answer, Failure
from pipeline.profiles.chat import ChatModel, Progress, answer_prompts
from pipeline.profiles.extractive import describe_items, describe_users
from pipeline.profiles.metadata import Histories, item_metadata_text, require_contiguous, user_metadata_text
from pipeline.profiles.openai import OpenAIChat
from pipeline.profiles.prompts import Budget, Kind, Rendered, Template, load_template, render_item, render_user
from pipeline.profiles.text import clean_text
from pipeline.settings import ProfileSettings

if TYPE_CHECKING:
    from pipeline.compute import Cluster

_NO_GIVEN_PROFILE = "no given profile"


@dataclass(frozen=True, slots=True)
class Profile:
    """One row of a profile table; where an error explains it, what was asked and answered."""

    summary: str
    origin: str
    reasoning: str | None = None
    error: str | None = None
    prompt: str | None = None
    answer: str | None = None
    attempts: int = 0


@dataclass(frozen=True)
class ProfileResult:
    """Profiles and what happened on the way to them.

    Attributes
    ----------
    table
        id (`item` or `user`), summary, reasoning, origin, error; one row per id, in id order.
    failures
        id, error, prompt, answer (the model's last one, as it came), attempts; one row per error, in id order.
    counts
        rows, rows_computed, rows_reused (from the cache), empty, fallbacks, origin_*, and what the backend counted
        (prompts, tokens, seconds, words cut, ...).
    """

    table: pl.DataFrame
    failures: pl.DataFrame
    counts: dict[str, float]


@dataclass(frozen=True)
class _Source:
    """What is known of the items, or of the users, of a dataset.

    Attributes
    ----------
    describe
        Every row's extractive profile.
    render
        A row's prompt.
    metadata
        A row's plain text, at most so many words long.
    """

    kind: Kind
    raw_ids: pl.Series
    describe: Callable[[], list[str]]
    render: Callable[[Template, int, Budget], Rendered]
    metadata: Callable[[int, int], str]


def write_item_profiles(
    items: pl.DataFrame,
    given: pl.DataFrame | None,
    settings: ProfileSettings,
    cache: Path | None = None,
    progress: Progress | None = None,
    cluster: "Cluster | None" = None,
) -> ProfileResult:
    """Write one profile per item (eq. 1).

    Parameters
    ----------
    items
        item, raw_id, title, description, categories, brand, price; ids contiguous from 0.
    given
        Profiles that came with the data: kind, id (raw), profile. Needed by the backend `given` alone.
    cache
        Folder of the row cache of chat models; None keeps no cache.
    progress
        Called with (done, total).
    cluster
        Where vLLM's engines run. Default: one here. No other backend has use for it.

    Raises
    ------
    ValueError
        For ids that are not contiguous, and for the backend `given` without any given item profile.
    TemplateError, ChatModelError
        For a prompt template, or a chat model, that cannot be used.

    Notes
    -----
    An item without any text has the summary "". An item for which the backend fails has its metadata as its
    summary, origin "metadata" and the reason in `error`.
    """
    require_contiguous(items, "item")
    rows = items.select("title", "description", "categories", "brand", "price").to_dicts()

    source = _Source(
        "item",
        items["raw_id"],
        lambda: describe_items(items),
        lambda template, item, budget: render_item(template, rows[item], budget),
        lambda item, words: item_metadata_text(rows[item], words),
    )
    return _write(source, given, settings, settings.item_prompt, cache, progress, cluster)


def write_user_profiles(
    users: pl.DataFrame,
    items: pl.DataFrame,
    item_profiles: pl.DataFrame,
    histories: pl.DataFrame,
    given: pl.DataFrame | None,
    settings: ProfileSettings,
    cache: Path | None = None,
    progress: Progress | None = None,
    cluster: "Cluster | None" = None,
) -> ProfileResult:
    """Write one profile per user (eq. 2).

    Parameters
    ----------
    users
        user, raw_id; ids contiguous from 0.
    items, item_profiles
        As `write_item_profiles` takes and gives them.
    histories
        user, item, timestamp, summary (the review's headline), text: the interactions that a profile may show. What
        is left out here, held-out interactions above all, reaches no profile.
    given, cache, progress, cluster
        As in `write_item_profiles`.

    Raises
    ------
    ValueError, TemplateError, ChatModelError
        As in `write_item_profiles`; ValueError also for a history that names an unknown user or item.

    Notes
    -----
    A user without history has the summary "", unless a profile was given.
    """
    history = Histories(users, items, item_profiles, histories)

    source = _Source(
        "user",
        users["raw_id"],
        lambda: describe_users(history, progress),
        lambda template, user, budget: render_user(template, history[user], budget),
        lambda user, words: user_metadata_text(history[user], words),
    )
    return _write(source, given, settings, settings.user_prompt, cache, progress, cluster)


def _write(
    source: _Source,
    given: pl.DataFrame | None,
    settings: ProfileSettings,
    prompt: str,
    cache: Path | None,
    progress: Progress | None,
    cluster: "Cluster | None",
) -> ProfileResult:
    rows = range(len(source.raw_ids))
    counts: dict[str, float] = {"rows_computed": len(rows), "rows_reused": 0}
    match settings.backend:
        case "extractive":
            profiles = [Profile(summary, "extractive") for summary in source.describe()]
        case "metadata":
            profiles = [Profile(source.metadata(row, settings.prompt_words), "metadata") for row in rows]
        case "given":
            profiles = _given_profiles(source, given, settings.prompt_words)
        case "openai" | "vllm":
            template, model = load_template(prompt, source.kind), _chat_model(settings, cluster)
            profiles, counts = _answered_profiles(source, template, *model, cache, progress)
    return _result(source.kind, profiles, counts)


def _given_profiles(source: _Source, given: pl.DataFrame | None, words: int) -> list[Profile]:
    """The given profile of each raw id, the first that says something where there are several; else its metadata."""
    by_id: dict[str, str] = {}
    if given is not None:
        for raw_id, text in given.filter(pl.col("kind") == source.kind).select("id", "profile").iter_rows():
            by_id[raw_id] = by_id.get(raw_id) or clean_text(text)
    found = [by_id.get(raw_id, "") for raw_id in source.raw_ids]
    if not any(found) and len(found):
        raise ValueError(
            f"profiles.backend = given, but no {source.kind} of this dataset came with a profile; "
            "name the source's profile files, or choose another backend (extractive needs no model)"
        )
    return [
        Profile(text, "given") if text else Profile(source.metadata(row, words), "metadata", error=_NO_GIVEN_PROFILE)
        for row, text in enumerate(found)
    ]


def _answered_profiles(
    source: _Source,
    template: Template,
    model: ChatModel,
    budget: Budget,
    cache: Path | None,
    progress: Progress | None,
) -> tuple[list[Profile], dict[str, float]]:
    """A profile from the model for each row that has any text."""
    cut: dict[int, int] = {}

    def prompt(row: int) -> str | None:
        rendered = source.render(template, row, budget)
        cut[row] = rendered.cut_words
        return rendered.text if rendered.data_words else None

    answered = answer_prompts(source.kind, prompt, len(source.raw_ids), model, cache, progress)
    profiles = []
    for row, answer in enumerate(answered.rows):
        match answer:
            case None:
                profiles.append(Profile("", model.origin))
            case Answer():
                profiles.append(Profile(answer.summary, model.origin, answer.reasoning))
            case Failure():
                text = source.metadata(row, budget.limit)
                failed = (answer.reason, prompt(row), answer.answer, answer.attempts)
                profiles.append(Profile(text, "metadata", None, *failed))
    cuts = {"prompts_cut": sum(words > 0 for words in cut.values()), "words_cut": sum(cut.values())}
    return profiles, answered.counts | cuts


def _chat_model(settings: ProfileSettings, cluster: "Cluster | None") -> tuple[ChatModel, Budget]:
    """The model that the settings name, and how long its prompts may be."""
    if settings.tokenizer is None:
        return OpenAIChat(settings), Budget(settings.prompt_words)
    from pipeline.profiles.tokens import ChatTokenizer

    tokenizer = ChatTokenizer(settings)
    if settings.backend == "openai":
        return OpenAIChat(settings), tokenizer.budget
    from pipeline.profiles.spread import SpreadChat
    from pipeline.profiles.vllm import VLLMChat

    model = VLLMChat(settings, tokenizer) if cluster is None else SpreadChat(settings, cluster)
    return model, tokenizer.budget


def _result(kind: Literal["item", "user"], profiles: list[Profile], counts: dict[str, float]) -> ProfileResult:
    texts = ("summary", "reasoning", "origin", "error")
    rows = [(row, *(getattr(profile, name) for name in texts)) for row, profile in enumerate(profiles)]
    table = pl.DataFrame(rows, schema={kind: pl.Int32} | dict.fromkeys(texts, pl.String), orient="row")
    failures = pl.DataFrame(
        [
            (row, profile.error, profile.prompt, profile.answer, profile.attempts)
            for row, profile in enumerate(profiles)
            if profile.error is not None
        ],
        schema={kind: pl.Int32, "error": pl.String, "prompt": pl.String, "answer": pl.String, "attempts": pl.Int32},
        orient="row",
    )
    origins = Counter(f"origin_{profile.origin}" for profile in profiles)
    shown: dict[str, float] = {
        "rows": len(profiles),
        "empty": sum(not profile.summary for profile in profiles),
        "fallbacks": failures.height,
    }
    return ProfileResult(table, failures, shown | dict(sorted(origins.items())) | counts)
