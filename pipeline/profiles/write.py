"""Item and user profiles (eqs. 1, 2) by the backend that the settings name."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from pipeline.profiles.answer import Answer
from pipeline.profiles.chat import ChatModel, Progress, answer_prompts
from pipeline.profiles.extractive import describe_items, describe_users
from pipeline.profiles.metadata import Histories, item_metadata_text, require_contiguous, user_metadata_text
from pipeline.profiles.openai import OpenAIChat
from pipeline.profiles.prompts import Rendered, load_template, render_item, render_user
from pipeline.profiles.text import clean_text
from pipeline.settings import ProfileSettings

_NO_GIVEN_PROFILE = "no given profile"


@dataclass(frozen=True, slots=True)
class Profile:
    """One row of a profile table."""

    summary: str
    origin: str
    reasoning: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class ProfileResult:
    """Profiles and what happened on the way to them.

    Attributes
    ----------
    table
        id (`item` or `user`), summary, reasoning, origin, error; one row per id, in id order.
    counts
        rows, empty, fallbacks, origin_*, and what the backend counted (prompts, requests, words cut, ...).
    """

    table: pl.DataFrame
    counts: dict[str, int]


def write_item_profiles(
    items: pl.DataFrame,
    given: pl.DataFrame | None,
    settings: ProfileSettings,
    cache: Path | None = None,
    progress: Progress | None = None,
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

    def metadata(item: int) -> str:
        return item_metadata_text(rows[item], settings.prompt_words)

    counts: dict[str, int] = {}
    if settings.backend == "extractive":
        profiles = [Profile(summary, "extractive") for summary in describe_items(items)]
    elif settings.backend == "given":
        profiles = _given_profiles("item", items["raw_id"], given, metadata)
    else:
        template = load_template(settings.item_prompt, "item")
        profiles, counts = _answered_profiles(
            OpenAIChat(settings.openai),
            lambda item: render_item(template, rows[item], settings.prompt_words),
            metadata,
            len(rows),
            cache,
            progress,
        )
    return _result("item", profiles, counts)


def write_user_profiles(
    users: pl.DataFrame,
    items: pl.DataFrame,
    item_profiles: pl.DataFrame,
    histories: pl.DataFrame,
    given: pl.DataFrame | None,
    settings: ProfileSettings,
    cache: Path | None = None,
    progress: Progress | None = None,
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
    given, cache, progress
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

    def metadata(user: int) -> str:
        return user_metadata_text(history[user], settings.prompt_words)

    counts: dict[str, int] = {}
    if settings.backend == "extractive":
        profiles = [Profile(summary, "extractive") for summary in describe_users(history, progress)]
    elif settings.backend == "given":
        profiles = _given_profiles("user", users["raw_id"], given, metadata)
    else:
        template = load_template(settings.user_prompt, "user")
        profiles, counts = _answered_profiles(
            OpenAIChat(settings.openai),
            lambda user: render_user(template, history[user], settings.prompt_words),
            metadata,
            len(history),
            cache,
            progress,
        )
    return _result("user", profiles, counts)


def _given_profiles(
    kind: Literal["item", "user"], raw_ids: pl.Series, given: pl.DataFrame | None, metadata: Callable[[int], str]
) -> list[Profile]:
    """The given profile of each raw id, the first that says something where there are several; else its metadata."""
    by_id: dict[str, str] = {}
    if given is not None:
        for raw_id, text in given.filter(pl.col("kind") == kind).select("id", "profile").iter_rows():
            by_id[raw_id] = by_id.get(raw_id) or clean_text(text)
    found = [by_id.get(raw_id, "") for raw_id in raw_ids]
    if not any(found) and len(found):
        raise ValueError(
            f"profiles.backend = given, but no {kind} of this dataset came with a profile; "
            "name the source's profile files, or choose extractive or openai"
        )
    return [
        Profile(text, "given") if text else Profile(metadata(row), "metadata", error=_NO_GIVEN_PROFILE)
        for row, text in enumerate(found)
    ]


def _answered_profiles(
    model: ChatModel,
    render: Callable[[int], Rendered],
    metadata: Callable[[int], str],
    count: int,
    cache: Path | None,
    progress: Progress | None,
) -> tuple[list[Profile], dict[str, int]]:
    """A profile from the model for each row that has any text."""
    cut: dict[int, int] = {}

    def prompt(row: int) -> str | None:
        rendered = render(row)
        cut[row] = rendered.cut_words
        return rendered.text if rendered.data_words else None

    answered = answer_prompts(prompt, count, model, cache, progress)
    profiles = []
    for row, answer in enumerate(answered.rows):
        if answer is None:
            profiles.append(Profile("", model.origin))
        elif isinstance(answer, Answer):
            profiles.append(Profile(answer.summary, model.origin, answer.reasoning))
        else:
            profiles.append(Profile(metadata(row), "metadata", error=answer.reason))
    cuts = {"prompts_cut": sum(words > 0 for words in cut.values()), "words_cut": sum(cut.values())}
    return profiles, answered.counts | cuts


def _result(column: Literal["item", "user"], profiles: list[Profile], counts: dict[str, int]) -> ProfileResult:
    table = pl.DataFrame(
        {
            column: range(len(profiles)),
            "summary": [profile.summary for profile in profiles],
            "reasoning": [profile.reasoning for profile in profiles],
            "origin": [profile.origin for profile in profiles],
            "error": [profile.error for profile in profiles],
        },
        schema={
            column: pl.Int32,
            "summary": pl.String,
            "reasoning": pl.String,
            "origin": pl.String,
            "error": pl.String,
        },
    )
    origins = Counter(f"origin_{profile.origin}" for profile in profiles)
    return ProfileResult(
        table,
        {
            "rows": len(profiles),
            "empty": sum(not profile.summary for profile in profiles),
            "fallbacks": sum(profile.error is not None for profile in profiles),
            **dict(sorted(origins.items())),
            **counts,
        },
    )
