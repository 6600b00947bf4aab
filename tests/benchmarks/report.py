"""BENCHMARKS.md and its pictures, made of whatever results there are.

    python tests/benchmarks/report.py [FOLDER]

reads FOLDER/benchmarks/*.json (default: docs/) and writes FOLDER/BENCHMARKS.md and FOLDER/benchmarks/*.png.
"""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.results import Json, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = {"seconds": "seconds", "peak_gb": "peak GB"}  # figures of a curve -> what their axis is called

INTRODUCTION = """\
# Benchmarks

Made by `make bench-full` from the results in [`benchmarks/`](benchmarks); `make bench` does the same in minutes, with
fewer rounds, into `var/`. Jobs have a process each and take turns: a round goes through all of them, the others sleep
meanwhile, and a ratio is one of two jobs in the same round. Given are the median over rounds and, in brackets, the
least and the most. A goal is met when the median meets it.
"""


def report(contents: Sequence[Json], pictures: Mapping[str, str]) -> str:
    """The whole document.

    Parameters
    ----------
    contents
        Results, in the order in which they are shown.
    pictures
        Title of a result with curves, or `Goals` -> path of the picture from the document.
    """
    rows = [row for content in contents for row in rows_of(content) if row.goal is not None]
    counts = Counter(row.met for row in rows)
    missing = f", {counts[None]} not measured" if counts[None] else ""
    parts = [
        INTRODUCTION,
        f"## Goals\n\n{counts[True]} of {len(rows)} goals are met, {counts[False]} missed{missing}.\n",
    ]
    parts += [f"![Goals]({pictures['Goals']})\n"] if "Goals" in pictures else []
    parts += [goal_table(rows)]
    parts += [f"## {content['title']}\n\n{section(content, pictures)}" for content in contents]
    return "\n".join(parts)


def section(content: Json, pictures: Mapping[str, str] | None = None) -> str:
    """One result."""
    title, rounds = content["title"], content.get("rounds", 1)
    paragraphs = [
        content["about"],
        f"`{content['command']}`, {content['date']}; {rounds} round{'s' * (rounds > 1)}",
        machine(content["machine"]),
    ]
    if content.get("jobs"):
        paragraphs.append(job_table(content["jobs"]))
    if rows := rows_of(content):
        paragraphs.append(goal_table(rows).rstrip())
    if pictures and title in pictures:
        paragraphs.append(f"![{title}]({pictures[title]})")
    if content.get("curves"):
        paragraphs.append(curve_table(content["curves"]))
    if content.get("notes"):
        paragraphs.append("\n".join(f"- {note}" for note in content["notes"]))
    return "\n\n".join(paragraphs) + "\n"


def rows_of(content: Json) -> list[Row]:
    return [Row(**row) for row in content.get("rows", [])]


def machine(machine: Json) -> str:
    """One paragraph on where it ran, with what, and what else ran."""
    names = [machine[name] for name in ("cpu", "system") if name in machine]
    names += [f"{machine['memory_gb']:.0f} GB"] if "memory_gb" in machine else []
    names += [f"Python {machine['python']}"] if "python" in machine else []
    names += [f"{name} {version}" for name, version in machine.get("packages", {}).items()]
    parts = [", ".join([f"{machine['cores']} cores", *names]) + "."]
    if machine["load"]:
        parts.append(f"Load average, own jobs included: {cell(machine['load'])}.")
    if machine.get("environment"):
        parts.append("Set: " + ", ".join(f"`{name}={value}`" for name, value in machine["environment"].items()) + ".")
    return " ".join(parts)


def goal_table(rows: Sequence[Row]) -> str:
    """Every figure beside its goal."""
    lines = ["| job | figure | median (least–most) | goal | met |", "|---|---|---|---|---|"]
    for row in rows:
        found = row.missing if row.median is None else spread_text(vars(row), row.unit)
        goal = "" if row.goal is None else f"{'≥' if row.sense == 'at least' else '≤'} {number(row.goal, row.unit)}"
        met = {True: "yes", False: "**no**", None: "not measured" if row.median is None else ""}[row.met]
        lines.append(f"| {row.job} | {row.measure} | {found} | {goal} | {met} |")
    return "\n".join(lines) + "\n"


def job_table(jobs: Mapping[str, Json]) -> str:
    """Every figure of every job."""
    figures = list(dict.fromkeys(name for job in jobs.values() for name in job if job[name] != ""))
    lines = [f"| job | {' | '.join(map(title, figures))} |", "|---" * (len(figures) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(job.get(figure)) for figure in figures)} |" for name, job in jobs.items()]
    return "\n".join(lines)


def curve_table(curves: Sequence[Json]) -> str:
    """Every figure of every curve, one size a line."""
    figures = list(dict.fromkeys(name for curve in curves for name in curve if name not in ("name", "x")))
    lines = [f"| | size | {' | '.join(map(title, figures))} |", "|---" * (len(figures) + 2) + "|"]
    for curve in curves:
        for place, size in enumerate(curve["x"]):
            cells = [cell(curve[name][place]) if name in curve else "" for name in figures]
            lines.append(f"| {curve['name']} | {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def title(figure: str) -> str:
    """`peak_gb` as a table calls it."""
    return figure.replace("_gb", " GB").replace("_", " ")


def cell(value: Mapping[str, float] | float | str | None) -> str:
    """A spread, a number or a text."""
    match value:
        case dict():
            return spread_text(value, "")
        case int() | float():
            return number(value, "")
        case _:
            return value or ""


def spread_text(values: Mapping[str, float], unit: str) -> str:
    """`2.53 (2.32–2.87) ×`; the median alone where nothing varies."""
    if values["least"] == values["most"]:
        return number(values["median"], unit)
    least, most = number(values["least"], ""), number(values["most"], "")
    return f"{number(values['median'], '')} ({least}–{most}) {unit}".rstrip()


def number(value: float, unit: str) -> str:
    """Three figures, and no fewer than stand before the point."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{text} {unit}".rstrip()


# -------------------------------------------------------------------------------------------------------- pictures


def draw(contents: Sequence[Json], folder: Path) -> dict[str, str]:
    """Draw the goals and the curves of each result into `folder`; title -> file name."""
    from matplotlib.figure import Figure

    pictures = {}
    rows = [row for content in contents for row in rows_of(content) if row.margins]
    if rows:
        figure = Figure(figsize=(9, 1 + 0.26 * len(rows)), layout="constrained")
        _draw_goals(figure, rows)
        pictures["Goals"] = _save(figure, folder / "goals.png")
    for content in contents:
        if content.get("curves"):
            figure = Figure(figsize=(12, 6), layout="constrained")
            _draw_curves(figure, content["curves"])
            name = "-".join(re.findall("[a-z0-9]+", content["title"].lower()))
            pictures[content["title"]] = _save(figure, folder / f"{name}.png")
    return pictures


def _draw_goals(figure: "Figure", rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        assert row.margins is not None
        median, least, most = row.margins
        color = "tab:green" if row.met else "tab:red"
        axes.plot([least, most], [place, place], color=color, linewidth=2)
        axes.plot([median], [place], "o", color=color)
    axes.set_yticks(range(len(rows)), [f"{row.job}: {row.measure}" for row in reversed(rows)], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times better than its goal: median, least and most")
    axes.grid(axis="x", which="both", alpha=0.2)


def _draw_curves(figure: "Figure", curves: Sequence[Json]) -> None:
    """Seconds and peak memory by size, on logarithmic axes; a line for each curve, hollow where not measured whole."""
    for axes, (drawn, label) in zip(figure.subplots(1, len(DRAWN)), DRAWN.items(), strict=True):
        for place, curve in enumerate(curves):
            if drawn in curve:
                marker = "osd^v<>"[place // 10 % 7]  # the ten colours begin anew
                (line,) = axes.plot(curve["x"], curve[drawn], f"-{marker}", label=curve["name"], markersize=4)
                parts = [place for place, how in enumerate(curve.get("measured", [])) if how != "whole"]
                x, y = ([curve[name][part] for part in parts] for name in ("x", drawn))
                axes.plot(x, y, marker, markerfacecolor="white", color=line.get_color(), markersize=4)
        axes.set(xscale="log", yscale="log", xlabel="size (hollow: not measured whole)", ylabel=label)
        axes.grid(which="both", alpha=0.2)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def _save(figure: "Figure", path: Path) -> str:
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same figures, the same file
    return path.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    folder = parser.parse_args().folder
    files = sorted((folder / "benchmarks").glob("*.json"))
    if not files:
        raise SystemExit(f"{folder / 'benchmarks'} holds no results (*.json): `make bench` makes them")
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    pictures = {title: f"benchmarks/{name}" for title, name in draw(contents, folder / "benchmarks").items()}
    (folder / "BENCHMARKS.md").write_text(report(contents, pictures), encoding="utf-8")
    print(f"{folder / 'BENCHMARKS.md'}: {len(contents)} results")


if __name__ == "__main__":
    main()
