"""What the command line shows: tables and messages; its progress bars are in `bars`."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from assets.metrics import METRIC, ranking_metrics
from model.registry import MODELS

if TYPE_CHECKING:  # a table of results needs no Dagster
    import polars as pl

    from assets.nodes import Node
    from assets.refresh import Plan, Report
    from assets.results import Cache
    from assets.sweep import Found

console = Console(highlight=False)
SHOWN_STAGES = 12
SHOWN_TRIALS = 10
TESTS, SIGNIFICANT = ("t_test", "wilcoxon"), 0.05
ROW_COUNTS = ("rows_computed", "rows_reused")
STATE_COLOURS = {"fresh": "green", "stale": "yellow", "missing": "red"}


def note(text: str) -> None:
    """One line of news."""
    console.print(f"  [dim]{escape(text)}[/]")


def show_wave(wave: "Mapping[Node, str]") -> None:
    """Say what runs now and why, one line a reason."""
    reasons: dict[str, list[str]] = {}
    for node, why in wave.items():
        reasons.setdefault(why, []).append(node.name)
    for why, names in reasons.items():
        console.print(f"[bold]running[/] {_listed(names)} [dim]({escape(why)})[/]")


def show_report(report: "Report") -> None:
    """What ran and why, what was cut off and why, rows computed and reused, seconds saved."""
    from assets.staleness import NEVER

    not_run = len(report.cut_off) + len(report.untouched)
    total = len(report.ran) + not_run
    if not report.ran:
        console.print(f"all {total} stages are up to date; nothing ran ({report.seconds:.1f} s)")
        return
    if any(ran.why != NEVER for ran in report.ran):
        table = Table(header_style="bold")
        for name in ("ran", "result", "computed", "reused", "seconds"):
            table.add_column(name, justify="left" if name in ("ran", "result") else "right")
        for ran in report.ran:
            counts = [f"{ran.shown[count]:,}" if count in ran.shown else "-" for count in ROW_COUNTS]
            result = "changed" if ran.changed else "[green]unchanged[/]"
            table.add_row(ran.node.name, result, *counts, f"{ran.shown.get('seconds', 0):.1f}")
        console.print(table)
    stopped: dict[str, list[str]] = {}
    for node, above in report.cut_off.items():
        stopped.setdefault(_listed([each.name for each in above]), []).append(node.name)
    for unchanged, names in stopped.items():
        console.print(f"[bold]cut off[/] {_listed(names)} [dim](unchanged above: {escape(unchanged)})[/]")
    computed, reused = (report.rows(count) for count in ROW_COUNTS)
    console.print(
        f"ran {len(report.ran)} of {total} stages in {report.seconds:.0f} s; in profiles, embeddings and graphs "
        f"{computed:,} rows were computed and {reused:,} reused"
    )
    if not_run:
        console.print(f"{not_run} stages did not run: {report.seconds_saved:.0f} s saved, by what they took last")
    console.print()


def status_table(dataset: str, plan: "Plan") -> Table:
    """Every stage of a dataset: its state and why, rows and age."""
    table = Table(title=dataset, title_justify="left", header_style="bold")
    for name in ("stage", "state", "rows", "age", "why"):
        table.add_column(name, justify="right" if name in ("rows", "age") else "left", overflow="fold")
    for node, state in plan.states.items():
        rows = state.record.shown.get("dagster/row_count") if state.record else None
        age = _age(time.time() - state.record.made_at) if state.record else "-"
        why = "; ".join(state.reasons) or ("something above it is stale" if node in plan.perhaps else "")
        table.add_row(
            node.name,
            f"[{STATE_COLOURS[state.status]}]{state.status}[/]",
            "-" if rows is None else f"{rows:,}",
            age,
            escape(why),
        )
    return table


def trials_table(model: str, found: "Found") -> Table:
    """The best trials of a sweep, how many there were of those asked for, and how many were stopped early."""
    whole = sorted((t for t in found.trials if t["state"] == "complete"), key=lambda t: t["value"], reverse=True)
    stopped = len(found.trials) - len(whole)
    title = f"{model}: {len(found.trials)} trials ({found.budget}), {stopped} of them stopped early; the best"
    table = Table(title=title, title_justify="left", header_style="bold")
    settings = [key for key in whole[0] if key not in ("trial", "state", "value")]
    table.add_column("trial", justify="right")
    table.add_column("validation", justify="right")
    for key in settings:
        table.add_column(key.removeprefix(f"models.{model}."), justify="right", overflow="fold")
    for trial in whole[:SHOWN_TRIALS]:
        cells = [escape(str(trial[key])) for key in settings]
        table.add_row(str(trial["trial"]), _metric(trial["value"], found.value), *cells)
    return table


def show_plan(dataset: str, plan: "Plan") -> None:
    """What a refresh would run, for sure and perhaps."""
    if not plan.surely:
        console.print(f"{dataset}: all {len(plan.states)} stages are up to date\n")
        return
    console.print(f"a refresh of {dataset} runs {_listed([node.name for node in plan.surely])}")
    if plan.perhaps:
        names = _listed([node.name for node in plan.perhaps])
        console.print(f"and, as far as the results above them change, {names}")
    console.print()


def caches_table(found: "Sequence[Cache]") -> Table:
    """Row caches: rows, those in use, shards, megabytes, and what the last runs took from them."""
    table = Table(header_style="bold")
    for name in ("dataset", "cache", "rows", "in use", "shards", "MB", "hit rate of the last run"):
        table.add_column(name, justify="left" if name in ("dataset", "cache") else "right")
    for each in found:
        rates = ", ".join(f"{stage} {rate:.0%}" for stage, rate in each.hit_rates.items()) or "-"
        size = each.size
        counts = (f"{size.rows:,}", f"{size.in_use:,}", f"{size.shards:,}", f"{size.bytes / 1e6:.1f}")
        table.add_row(each.dataset, each.kind, *counts, rates)
    return table


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= SHOWN_STAGES else f"{len(names)} stages, {names[0]} to {names[-1]}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


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
    metrics = ranking_metrics(name for row in rows for name in row)
    for name in metrics:
        table.add_column(_heading(name), justify="right")
    best = {name: max((row[name] for row in rows if row.get(name) is not None), default=None) for name in metrics}
    for row in rows:
        cells = [_metric(row.get(name), best[name]) for name in metrics]
        table.add_row(escape(str(row["run"])), str(row.get("seed", "")), str(row.get("best_epoch", "")), *cells)
    if published:
        table.add_section()
        for system, values in published.items():
            cells = [_metric(values.get(name), None) for name in metrics]
            table.add_row(f"{escape(system)} (published)", "", "", *cells, style="dim")
    return table


def comparison_table(dataset: str, found: "pl.DataFrame") -> Table:
    """Models over several seeds, mean ± sd, the best first."""
    counts = " or ".join(map(str, found["seeds"].unique().sort()))
    title = f"Test metrics on {dataset}, mean ± sd over seeds ({counts})"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("model", overflow="fold")
    metrics = ranking_metrics(found["metric"])
    for name in metrics:
        table.add_column(_heading(name), justify="right")
    cells = {(row["title"], row["metric"]): row for row in found.iter_rows(named=True)}
    best = {name: max(found.filter(metric=name)["mean"]) for name in metrics}
    by = "recall_at_20" if "recall_at_20" in metrics else metrics[0]
    order = found.filter(metric=by).sort("mean", descending=True)
    for title in order["title"]:
        shown = []
        for name in metrics:
            cell = cells[title, name]
            sd = "" if cell["sd"] is None else f"±{cell['sd']:.4f}"
            shown.append(_metric(cell["mean"], best[name]) + sd)
        table.add_row(title, *shown)
    return table


def significance_table(model: str, metric: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One model against others, paired by user."""
    own = f"{MODELS[model].title}, test {_heading(metric)} {rows[0]['mean']:.4f}"
    title = f"{own}, against each other model, {rows[0]['users']:,} users"
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("against", "its mean", "difference", "95 % interval", "effect size", "p (t-test)", "p (Wilcoxon)"):
        table.add_column(name, justify="left" if name == "against" else "right")
    for row in rows:
        table.add_row(
            MODELS[row["model"]].title,
            f"{row['other']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} to {row['high']:+.4f}",
            f"{row['effect_size']:+.2f}",
            *(f"[bold]{row[test]:.2g}[/]" if row[test] < SIGNIFICANT else f"{row[test]:.2g}" for test in TESTS),
        )
    return table


def _heading(metric: str) -> str:
    """`recall_at_20` -> `R@20`."""
    match = METRIC.fullmatch(metric)
    return f"{match['kind'][0].upper()}@{match['k']}" if match else metric


def _metric(value: float | None, best: float | None) -> str:
    if value is None:
        return "-"
    return f"[bold green]{value:.4f}[/]" if value == best else f"{value:.4f}"


def recommendations_table(user: str, history: Sequence[str], recommended: "pl.DataFrame") -> Table:
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
