"""Draws a chart with matplotlib, as a PNG that needs no browser."""

from typing import Any

from assets import plots
from assets.reporting.charts import BAND, MAP, Bars, Chart, Grid, Line, Mark, Panel, Points, number

WIDTH, INCH = 9.6, 105  # of a picture in inches, and how many pixels of a page are drawn as one
OFFSETS = {  # of a text from its point, in points, and how it is aligned
    "right": (5, 0, "left", "center"),
    "left": (-5, 0, "right", "center"),
    "above": (0, 5, "center", "bottom"),
    "below": (0, -5, "center", "top"),
}


def picture(chart: Chart) -> bytes:
    """A PNG, about 900 pixels wide."""
    rows, columns = chart.shape
    entries: dict[str, Any] = {}
    drawn, panels = plots.figure(WIDTH, rows * (chart.height / INCH + 0.4) + 0.4, rows, columns)
    for axes, panel in zip(panels, chart.panels, strict=False):
        for index, mark in enumerate(panel.marks):
            handle = _draw(axes, panel, mark, index)
            if not isinstance(mark, Grid) and mark.name:
                entries.setdefault(_plain(mark.name), handle)
        _finish(axes, panel)
    for axes in panels[len(chart.panels) :]:
        axes.remove()
    drawn.suptitle(_plain(chart.title), fontsize=12, fontweight="bold", x=0.01, ha="left")
    if len(entries) > 1:
        columns = max(1, 120 // (max(map(len, entries)) + 10))  # letters to a line
        drawn.set_figheight(drawn.get_figheight() + 0.2 * -(-len(entries) // columns))
        place = {"loc": "outside lower left", "ncols": columns, "fontsize": 8, "frameon": False, "markerscale": 1.5}
        drawn.legend(entries.values(), entries.keys(), **place)
    return plots.png(drawn)


def _draw(axes: Any, panel: Panel, mark: Mark, index: int) -> Any:
    """Draw one mark with matplotlib; gives what stands for it in a legend, None for a grid."""
    match mark:
        case Bars():
            return _draw_bars(axes, panel, mark, index)
        case Line():
            dashes = "--" if mark.style.second else "-"
            look = {"color": mark.style.colour, "marker": "o", "markersize": 3.5, "linewidth": 0.7 * mark.style.width}
            look["zorder"] = 3 - index / len(panel.marks)
            (drawn,) = axes.plot(mark.x, mark.values, dashes, **look)
            if panel.banded and any(mark.spreads):
                axes.fill_between(mark.x, *mark.band, color=mark.style.colour, alpha=BAND, linewidth=0)
            return drawn
        case Points():
            size, symbol = (28, "o") if mark.places else (5, "^" if mark.style.second else "o")
            drawn = axes.scatter(mark.x, mark.y, s=size, marker=symbol, color=mark.style.colour, linewidths=0)
            for x, y, text, side in zip(mark.x, mark.y, mark.texts, mark.places, strict=False):
                *offset, across, along = OFFSETS[side]
                look = {"textcoords": "offset points", "ha": across, "va": along, "fontsize": 8}
                axes.annotate(_plain(text), (x, y), offset, **look)
            return drawn
        case Grid():
            values = [[float("nan") if value is None else value for value in row] for row in mark.values]
            image = axes.imshow(values, cmap=MAP, origin="lower", aspect="auto")
            for row, cells in enumerate(mark.values):
                for column, value in enumerate(cells):
                    colour = "black" if value is not None and image.norm(value) > 0.5 else "white"
                    axes.text(column, row, number(value), ha="center", va="center", fontsize=7, color=colour)
            axes.set_yticks(range(len(mark.rows)), mark.rows)
            return None


def _draw_bars(axes: Any, panel: Panel, bars: Bars, index: int) -> Any:
    places, width = panel.bar_places(index)
    values = [0.0 if value is None else value for value in bars.values]
    spreads = [spread or 0.0 for spread in bars.spreads]
    draw, error = (axes.barh, "xerr") if panel.horizontal else (axes.bar, "yerr")
    errors = {error: spreads, "error_kw": {"elinewidth": 1, "capsize": 2}} if any(spreads) else {}
    drawn = draw(places, values, width, color=bars.colours, **errors)
    if panel.labelled:
        for place, value, spread, shown in zip(places, values, spreads, bars.values, strict=True):
            tip, offset = ((value + spread, place), (4, 0)) if panel.horizontal else ((place, value + spread), (0, 3))
            side = {"ha": "left", "va": "center"} if panel.horizontal else {"ha": "center", "va": "bottom"}
            axes.annotate(number(shown), tip, offset, textcoords="offset points", fontsize=8, **side)
    return drawn


def _finish(axes: Any, panel: Panel) -> None:
    axes.set_title(_plain(panel.title), fontsize=9)
    axes.set_xlabel(_plain(panel.x_label), fontsize=9)
    axes.set_ylabel(_plain(panel.y_label), fontsize=9)
    axes.tick_params(labelsize=8)
    if panel.bare:
        axes.set_axis_off()
        return
    axes.set_axisbelow(True)
    labels = [_plain(label) for label in panel.categories]
    grid = any(isinstance(mark, Grid) for mark in panel.marks)
    if panel.horizontal:
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.margins(x=0.15)
    elif labels:
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.5 if grid else -0.6, len(labels) - (0.5 if grid else 0.4))
    if panel.log_x:
        axes.set_xscale("log")
    if panel.ticks:
        axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks], rotation=45 if panel.log_x else 0)
        axes.minorticks_off()
    if not grid:
        axes.grid(axis="x" if panel.horizontal else "y", alpha=0.25)


def _plain(text: str) -> str:
    """Text for matplotlib, which would read a formula between dollars and hide a name behind an underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
