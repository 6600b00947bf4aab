"""Progress of long stages: into Dagster's log, or onto a terminal's progress bar."""

import time
from collections.abc import Callable

import dagster as dg

LOG_SECONDS = 5.0


class Progress(dg.ConfigurableResource):
    """Reports into the run's log, at most every few seconds; the command line replaces it by progress bars."""

    def bar(self, context: dg.AssetExecutionContext, label: str) -> Callable[[int, int], None]:
        """Give a callback `(done, total)` for the job called `label`."""
        last = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= LOG_SECONDS:
                last = time.monotonic()
                context.log.info(f"{label}: {done:,} of {total:,}" if total else f"{label}: {done:,}")

        return report

    def note(self, context: dg.AssetExecutionContext, text: str) -> None:
        """Show one line of news about the job at hand."""
        context.log.info(text)
