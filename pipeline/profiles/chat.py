"""Profiles from a chat model: one protocol for every way to reach one, with a cache by row in front of it."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.profiles.answer import Answer, Failure
from pipeline.profiles.cache import AnswerCache, cache_key

Progress = Callable[[int, int], None]


class ChatModel(Protocol):
    """A chat model that answers prompts.

    Attributes
    ----------
    origin
        What the `origin` column of the profiles says of its answers.
    identity
        All that an answer depends on apart from the prompt: model, sampling parameters, answer schema.
    counts
        What it did (requests, retries, ...), for the run's report.
    """

    origin: str
    identity: Mapping[str, Any]
    counts: dict[str, int]

    def answers(self, prompts: Iterable[tuple[int, str]]) -> Generator[tuple[int, Answer | Failure]]:
        """Answer every (row, prompt) once, in any order, as answers arrive; `prompts` is read as there is room.

        Without prompts nothing is contacted.

        Raises
        ------
        ChatModelError
            If the model as a whole cannot be used, as opposed to one prompt failing.
        """
        ...


class ChatModelError(RuntimeError):
    """A chat model that cannot be used at all; the message says what to start or to set."""


@dataclass
class Answered:
    """Answers by row; a row without a prompt has None."""

    rows: list[Answer | Failure | None]
    counts: dict[str, int]


def answer_prompts(
    prompt: Callable[[int], str | None],
    count: int,
    model: ChatModel,
    cache: Path | None,
    progress: Progress | None = None,
) -> Answered:
    """Answer the prompts of `count` rows: from the cache where it has them, else from the model.

    Parameters
    ----------
    prompt
        Renders the prompt of a row, None for a row that has nothing to say. Called up to twice per row, so that the
        prompts of a large dataset are never all in memory; must be a pure function.
    cache
        Folder of the row cache; None asks the model for every row.

    Notes
    -----
    Rows with the same prompt are asked once. Failures are not cached, so the next run tries them again.
    """
    keys: list[str | None] = []
    for row in range(count):
        text = prompt(row)
        keys.append(None if text is None else cache_key(text, model.identity))
    first_rows = {key: row for row, key in reversed(list(enumerate(keys))) if key is not None}
    store = AnswerCache(cache) if cache is not None else None
    settled: dict[str, Answer | Failure] = dict(store.lookup(first_rows)) if store is not None else {}
    prompts = sum(key is not None for key in keys)
    counts = {
        "prompts": prompts,
        "duplicate_prompts": prompts - len(first_rows),
        "from_cache": len(settled),
    }
    missing = {row: key for key, row in first_rows.items() if key not in settled}
    asked = ((row, text) for row in sorted(missing) if (text := prompt(row)) is not None)
    try:
        with closing(model.answers(asked)) as answers:
            for row, answer in answers:
                settled[missing[row]] = answer
                if store is not None and isinstance(answer, Answer):
                    store.add(missing[row], answer)
                if progress is not None:
                    progress(len(settled), len(first_rows))
    finally:
        if store is not None:
            store.flush()
    return Answered([None if key is None else settled[key] for key in keys], counts | model.counts)
