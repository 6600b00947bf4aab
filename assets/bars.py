"""Progress bars on the terminal: one set of them, drawn while `with bars:` lasts."""

import time
from collections.abc import Callable
from typing import Any

import dagster as dg
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from assets import terminal
from assets.progress import Progress, lines

SHOW_AFTER = 0.5  # seconds: a shorter job needs no bar
LINE_SECONDS = 30.0  # between two lines of a job where there is no terminal to draw a bar on

bars = RichProgress(
    TextColumn("  {task.description:<24}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("[dim]{task.fields[detail]}"),
    console=terminal.console,
    transient=True,
)


class TerminalProgress(Progress):
    """A progress bar for every job that takes a while; a line now and then where the output goes to a file."""

    def bar(self, context: dg.AssetExecutionContext, label: str) -> Callable[..., None]:
        if not terminal.console.is_terminal:
            return lines(terminal.note, label, LINE_SECONDS)
        started = time.monotonic()
        task: Any = None

        def report(done: int, total: int, detail: str = "") -> None:
            nonlocal task
            if task is None and time.monotonic() - started >= SHOW_AFTER:
                task = bars.add_task(label, total=total, detail="")
            if task is not None:
                bars.update(task, completed=done, total=total, detail=detail, visible=done < total)

        return report

    def note(self, context: dg.AssetExecutionContext, text: str) -> None:
        terminal.note(text)


def trial_bar(model: str) -> Callable[[int, int, str], None]:
    """A bar for a sweep's trials, or lines."""
    if not terminal.console.is_terminal:
        return lines(terminal.note, f"trials of {model}", LINE_SECONDS)
    task = bars.add_task(f"trials of {model}", total=None, detail="")

    def report(done: int, total: int, best: str) -> None:
        bars.update(task, completed=done, total=total, detail=best, visible=done < total)

    return report
