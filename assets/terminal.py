"""What the command line shows: progress bars, tables, messages."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from assets.progress import Progress
from assets.refresh import Finding, Node

console = Console(highlight=False)
METRICS = ("recall_at_10", "recall_at_20", "ndcg_at_10", "ndcg_at_20")
HEADINGS = {"recall_at_10": "R@10", "recall_at_20": "R@20", "ndcg_at_10": "N@10", "ndcg_at_20": "N@20"}
SHOW_AFTER = 0.5  # seconds: a shorter job needs no bar
SHOWN_STAGES = 12


# One terminal, one set of bars; drawn while `with bars:` lasts.
bars = RichProgress(
    TextColumn("  {task.description:<24}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    console=console,
    transient=True,
)


class TerminalProgress(Progress):
    """A progress bar for every job that takes a while."""

    def bar(self, context: dg.AssetExecutionContext, label: str) -> Callable[[int, int], None]:
        started = time.monotonic()
        task: Any = None

        def report(done: int, total: int) -> None:
            nonlocal task
            if task is None and time.monotonic() - started >= SHOW_AFTER:
                task = bars.add_task(label, total=total)
            if task is not None:
                bars.update(task, completed=done, total=total, visible=done < total)

        return report

    def note(self, context: dg.AssetExecutionContext, text: str) -> None:
        console.print(f"  [dim]{escape(text)}[/]")


def show_wave(wave: Mapping[Node, Finding]) -> None:
    """Say what runs now and why, one line a reason."""
    reasons: dict[str, list[str]] = {}
    for node, finding in wave.items():
        reasons.setdefault(finding.reason, []).append(node.name)
    for reason, names in reasons.items():
        shown = ", ".join(names) if len(names) <= SHOWN_STAGES else f"{len(names)} stages, {names[0]} to {names[-1]}"
        console.print(f"[bold]running[/] {shown} [dim]({escape(reason)})[/]")


def results_table(rows: Sequence[Mapping[str, Any]], published: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """Test metrics side by side, the best of each column in bold, published numbers below.

    Parameters
    ----------
    rows
        `run`, `seed`, `epochs` and the metrics, as far as they are known.
    """
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("run", "seed", "best epoch"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for name in METRICS:
        table.add_column(HEADINGS[name], justify="right")
    best = {name: max((row[name] for row in rows if row.get(name) is not None), default=None) for name in METRICS}
    for row in rows:
        cells = [_metric(row.get(name), best[name]) for name in METRICS]
        table.add_row(escape(str(row["run"])), str(row.get("seed", "")), str(row.get("best_epoch", "")), *cells)
    if published:
        table.add_section()
        for system, values in published.items():
            cells = [_metric(values.get(name), None) for name in METRICS]
            table.add_row(f"{escape(system)} (published)", "", "", *cells, style="dim")
    return table


def _metric(value: float | None, best: float | None) -> str:
    if value is None:
        return "-"
    return f"[bold green]{value:.4f}[/]" if value == best else f"{value:.4f}"


def recommendations_table(user: str, history: Sequence[str], recommended: pl.DataFrame) -> Table:
    """One user's recommendations with their reasons, under a line of what the user has."""
    shown = "; ".join(history[:5]) + (f"; and {len(history) - 5} more" if len(history) > 5 else "")
    table = Table(
        title=f"User {escape(user)}, who has: {escape(shown)}",
        title_justify="left",
        header_style="bold",
        show_lines=False,
    )
    for name in ("#", "item", "title", "score", "because of"):
        table.add_column(name, justify="right" if name in ("#", "score") else "left", overflow="fold")
    for row in recommended.iter_rows(named=True):
        reasons = escape("; ".join(row["reasons"]) or "-")
        title = escape(row["title"] or "-")
        table.add_row(str(row["rank"]), escape(row["item_raw_id"]), title, f"{row['score']:.3f}", reasons)
    return table


def fail(message: str) -> None:
    """Say what went wrong, and leave."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}")
    sys.exit(1)
