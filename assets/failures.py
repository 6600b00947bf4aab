"""Why a run failed, in the words of the stage where it did."""

from collections.abc import Sequence

import dagster as dg
from dagster_shared.error import SerializableErrorInfo


class StageError(RuntimeError):
    """A stage stopped with an error; the message is the stage's own."""


def failed(events: Sequence[dg.DagsterEvent]) -> BaseException:
    """What a failed run raises: KeyboardInterrupt where it was told to stop, else a `StageError`."""
    errors = [getattr(event.event_specific_data, "error", None) for event in events if event.is_failure]
    if any(_is_interruption(error) for error in errors):
        return KeyboardInterrupt()
    return StageError(failure(events))


def _is_interruption(error: SerializableErrorInfo | None) -> bool:
    """Whether an error is Dagster's at a signal, or came of it: what a stage does then may fail in its own way."""
    if error is None:
        return False
    told = error.cls_name in ("DagsterExecutionInterruptedError", "KeyboardInterrupt")
    return told or _is_interruption(error.cause) or _is_interruption(error.context)


def failure(events: Sequence[dg.DagsterEvent]) -> str:
    """The error of a failed run, as its author worded it, after the stage where it happened."""
    ended = [event for event in events if event.is_step_failure] or [event for event in events if event.is_failure]
    error = getattr(ended[0].event_specific_data, "error", None)
    while error is not None and error.cause is not None and (error.cls_name or "").startswith("Dagster"):
        error = error.cause  # Dagster's own errors say only which step it was
    message = error.message.strip() if error else ended[0].message or "failed"
    return f"{ended[0].step_key}: {message}" if ended[0].step_key else message
