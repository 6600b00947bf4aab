"""Progress of long stages: into Dagster's log, or onto a terminal's progress bar."""

import time
from collections.abc import Callable

import dagster as dg

LOG_SECONDS = 5.0


class Progress(dg.ConfigurableResource):
    """Reports into the run's log, at most every few seconds; the command line replaces it by progress bars."""

    def bar(self, context: dg.AssetExecutionContext, label: str) -> Callable[..., None]:
        """Give a callback `(done, total, detail="")` for the job called `label`; `detail` says how fast it goes."""
        return lines(context.log.info, label, LOG_SECONDS)

    def note(self, context: dg.AssetExecutionContext, text: str) -> None:
        """Show one line of news about the job at hand."""
        context.log.info(text)


def lines(say: Callable[[str], None], label: str, seconds: float) -> Callable[..., None]:
    """A callback `(done, total, detail="")` saying how far a job is, at most every so many seconds; no line twice."""
    last, said = time.monotonic(), ""

    def report(done: int, total: int, detail: str = "") -> None:
        nonlocal last, said
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            far = f"{done:,} of {total:,}" if total else f"{done:,}"
            text = f"{label}: {far} ({detail})" if detail else f"{label}: {far}"
            if text != said:
                said = text
                say(text)

    return report
