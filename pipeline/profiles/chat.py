"""Profiles from a chat model: one protocol for every way to reach one, with a cache by row in front of it."""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import polars as pl

from pipeline.fingerprint import file_states
from pipeline.profiles.answer import ANSWER_SCHEMA, Answer, Failure, parse_answer
from pipeline.row_cache import RowCache, row_key
from pipeline.settings import ChatModelSettings

# A repeat of the same request at temperature 0 is the same answer, whatever its seed.
REPEAT_TEMPERATURE = 0.5
# So many failed prompts before the first good answer mean that the model is at fault, not the prompts.
GIVE_UP_AFTER = 20


class Progress(Protocol):
    """Called with (done, total), and with how fast it goes where that is known."""

    def __call__(self, done: int, total: int, detail: str = "", /) -> None: ...


class ChatModel(Protocol):
    """A chat model that answers prompts.

    Attributes
    ----------
    origin
        What the `origin` column of the profiles says of its answers.
    settings
        The model and how it samples.
    counts
        What it did so far, for the run's report: repeated (requests), prompt_tokens, completion_tokens; and
        seconds_starting, before it could answer, where it was started here.
    """

    origin: str
    settings: ChatModelSettings
    counts: dict[str, float]

    def answers(self, prompts: Iterable[tuple[int, str]]) -> Generator[tuple[int, str | Failure]]:
        """Answer every (row, prompt) once, in any order, as answers arrive; `prompts` is read as there is room.

        An answer is the model's text as it came, which `parse_answer` can read. Without prompts nothing is contacted
        and nothing started.

        Raises
        ------
        ChatModelError
            If the model as a whole cannot be used, as opposed to one prompt failing.
        """
        ...


class ChatModelError(RuntimeError):
    """A chat model that cannot be used at all; the message says what to start or to set."""


def identity(settings: ChatModelSettings) -> dict[str, Any]:
    """All that an answer depends on apart from its prompt; the same for every way to reach the model."""
    return {
        "model": settings.name,
        "revision": settings.revision,
        "files": file_states(settings.folder) if settings.folder else {},
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "schema": ANSWER_SCHEMA,
    }


def sampling(settings: ChatModelSettings, attempt: int) -> dict[str, Any]:
    """Sampling parameters of an attempt, counted from 0, by the names that every way to reach a model shares."""
    return {
        "temperature": settings.temperature if attempt == 0 else max(settings.temperature, REPEAT_TEMPERATURE),
        "top_p": 1.0,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed + attempt,
    }


def usable(content: str, was_cut: bool, settings: ChatModelSettings) -> str | Failure:
    """The answer itself if it can be read, else what is wrong with it."""
    content = content.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be stored
    answer = parse_answer(content)
    if isinstance(answer, Answer):
        return content
    if was_cut:
        return Failure(f"cut at profiles.model.max_tokens = {settings.max_tokens}; {answer.reason}", content)
    return answer


@dataclass
class Answered:
    """Answers by row; a row without a prompt has None."""

    rows: list[Answer | Failure | None]
    counts: dict[str, float]


def answer_prompts(
    kind: Literal["item", "user"],
    prompt: Callable[[int], str | None],
    count: int,
    model: ChatModel,
    cache: Path | None,
    progress: Progress | None = None,
) -> Answered:
    """Answer the prompts of `count` rows: from the cache where it has them, else from the model.

    Parameters
    ----------
    kind
        What the rows are; its answers are those that pruning the cache keeps.
    prompt
        Renders the prompt of a row, None for a row that has nothing to say. Called once per row, in order, shortly
        before the model has room for it; maybe on another thread.
    cache
        Folder of the row cache; None asks the model for every row.

    Raises
    ------
    ChatModelError
        If the model cannot be used, or none of the first prompts gets a usable answer.

    Notes
    -----
    Rows with the same prompt are asked once. The cache holds answers as they came, and what cannot be read any more
    is asked again. Failures are not cached, so the next run tries them again.
    """
    depends_on = identity(model.settings)
    keys: list[str | None] = []
    settled: dict[str, Answer | Failure] = {}
    asked: dict[int, str] = {}
    reused: set[str] = set()
    seen: set[str] = set()
    tally = _Tally(count, model, progress)
    with RowCache(cache, {"answer": pl.String}) if cache is not None else nullcontext() as store:
        known: dict[str, str] = dict(store.rows().iter_rows()) if store is not None else {}

        def missing() -> Iterator[tuple[int, str]]:
            for row in range(count):
                text = prompt(row)
                key = None if text is None else row_key(text, depends_on)
                keys.append(key)
                if text is None or key is None or key in seen:
                    tally.passed()
                    continue
                seen.add(key)
                answer = parse_answer(known[key]) if key in known else None
                if isinstance(answer, Answer):
                    settled[key] = answer
                    reused.add(key)
                    tally.passed(reused=1)
                    continue
                asked[row] = key
                tally.asking()
                yield row, text

        with closing(model.answers(missing())) as answers:
            for row, raw in answers:
                answer = raw if isinstance(raw, Failure) else parse_answer(raw)
                settled[asked[row]] = answer
                if store is not None and isinstance(raw, str):
                    store.add(asked[row], raw)
                tally.passed(answered=isinstance(answer, Answer), failed=isinstance(answer, Failure))
                if isinstance(answer, Failure) and tally.answered == 0 and tally.failed >= GIVE_UP_AFTER:
                    raise ChatModelError(
                        f"profiles.model.name = {model.settings.name}: none of the first {tally.failed} prompts got a "
                        f"usable answer; the last one: {answer.reason}"
                    )
        if store is not None:
            store.mark_in_use(kind, seen)
    with_prompt = sum(key is not None for key in keys)
    rows_reused = sum(key in reused for key in keys)
    counts = {
        "rows_computed": with_prompt - rows_reused,
        "rows_reused": rows_reused,
        "prompts": with_prompt,
        "duplicate_prompts": with_prompt - len(seen),
        "from_cache": len(reused),
        "asked": len(asked),
        "failed": tally.failed,
    }
    return Answered([None if key is None else settled[key] for key in keys], counts | model.counts | tally.speed())


class _Tally:
    """What has been done so far and how fast; prompts may be read on another thread than answers."""

    def __init__(self, total: int, model: ChatModel, progress: Progress | None) -> None:
        self.done = self.reused = self.answered = self.failed = 0
        self._total, self._model, self._progress = total, model, progress
        self._started: float | None = None
        self._latest = 0.0
        self._lock = threading.Lock()

    def asking(self) -> None:
        """A prompt goes to the model."""
        if self._started is None:
            self._started = time.monotonic()

    def passed(self, reused: int = 0, answered: int = 0, failed: int = 0) -> None:
        """A row is done with."""
        with self._lock:
            self.done += 1
            self.reused += reused
            self.answered += answered
            self.failed += failed
            if answered or failed:
                self._latest = time.monotonic()
            if self._progress is not None:
                self._progress(self.done, self._total, self._detail())

    def speed(self) -> dict[str, float]:
        """seconds_asking (to the latest answer), prompts_per_second, tokens_per_second (prompt and completion)."""
        counts = self._model.counts
        seconds = 0.0 if self._started is None else self._latest - self._started - counts.get("seconds_starting", 0)
        tokens = counts["prompt_tokens"] + counts["completion_tokens"]
        per_second = 1 / seconds if seconds > 0 else 0.0
        return {
            "seconds_asking": round(max(seconds, 0.0), 2),
            "prompts_per_second": round((self.answered + self.failed) * per_second, 2),
            "tokens_per_second": round(tokens * per_second, 1),
        }

    def _detail(self) -> str:
        """`310 cached, 21.3 prompts/s, 3,410 tokens/s, about 22 min left`, as far as it is known."""
        parts = [f"{self.reused:,} cached"] if self.reused else []
        speed = self.speed()
        if self.answered + self.failed and speed["prompts_per_second"]:
            parts.append(f"{speed['prompts_per_second']:,.1f} prompts/s")
            if speed["tokens_per_second"]:
                parts.append(f"{speed['tokens_per_second']:,.0f} tokens/s")
            if self.done < self._total:
                parts.append(f"about {_duration((self._total - self.done) / speed['prompts_per_second'])} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
