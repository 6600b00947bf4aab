"""Why a run failed, in the words of the stage where it did."""

from collections.abc import Sequence

import dagster as dg


class StageError(RuntimeError):
    """A stage stopped with an error; the message is the stage's own."""


def failure(events: Sequence[dg.DagsterEvent]) -> str:
    """The error of a failed run, as its author worded it, after the stage where it happened."""
    failed = [event for event in events if event.is_step_failure] or [event for event in events if event.is_failure]
    error = getattr(failed[0].event_specific_data, "error", None)
    while error is not None and error.cause is not None and (error.cls_name or "").startswith("Dagster"):
        error = error.cause  # Dagster's own errors say only which step it was
    message = error.message.strip() if error else failed[0].message or "failed"
    return f"{failed[0].step_key}: {message}" if failed[0].step_key else message
