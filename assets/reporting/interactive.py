"""Draws a chart as a Plotly figure, to be explored in a browser."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assets.reporting.charts import BAND, MAP, Bars, Chart, Grid, Line, Panel, Points, number, with_spread
from pipeline.files import atomic_path

SIDES = {"right": "middle right", "left": "middle left", "above": "top center", "below": "bottom center"}
GAP, AROUND = 90, 150  # pixels between rows of panels, and above and below them together
# How a page shows a figure. By default Plotly offers to send what is in it to its makers.
CONFIG = {"responsive": True, "displaylogo": False, "showSendToCloud": False}
LEGEND = 80  # pixels from the lowest axis to the legend


def interactive(chart: Chart) -> Any:
    """A `plotly.graph_objects.Figure`, as wide as its page. Names and titles in it are escaped."""
    from plotly.subplots import make_subplots

    rows, columns = chart.shape
    places = [divmod(index, columns) for index in range(len(chart.panels))]
    filled: Any = [[{} if (row, column) in places else None for column in range(columns)] for row in range(rows)]
    inner = rows * chart.height + (rows - 1) * GAP
    drawn = make_subplots(
        rows,
        columns,
        specs=filled,
        subplot_titles=[_markup(panel.title) for panel in chart.panels],
        vertical_spacing=GAP / inner,
        horizontal_spacing=0.26 / columns if chart.panels[0].horizontal else 0.2 / columns,
    )
    named: set[str] = set()
    for (row, column), panel in zip(places, chart.panels, strict=True):
        place = {"row": row + 1, "col": column + 1}
        for trace in _traces(panel):
            trace["showlegend"] = bool(trace.get("name")) and trace["name"] not in named and "fill" not in trace
            named |= {trace["name"]} if trace["showlegend"] else set()
            drawn.add_trace(trace, **place)
        across, up = _axes(panel)
        drawn.update_xaxes(**across, **place)
        drawn.update_yaxes(**up, **place)
    drawn.update_annotations(font_size=13)  # the panels' titles
    dots = any(isinstance(mark, Points) for panel in chart.panels for mark in panel.marks)
    drawn.update_layout(
        template="none",
        title={"text": _markup(chart.title), "x": 0.01, "font": {"size": 16}},
        height=inner + AROUND,
        margin={"l": 60, "r": 20, "t": 90, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -LEGEND / inner, "yanchor": "top", "x": 0}
        | {"itemsizing": "constant" if dots else "trace"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "rgba(128,128,128,0.6)", "activecolor": "#808080"},
        hovermode="closest",
        barmode="overlay",
        showlegend=len(named) > 1,
    )
    return drawn


def write_page(drawn: Any, page: Path) -> None:
    """Write a figure of `interactive` as a page that needs no network, only Plotly's script beside it."""
    script = page.with_name("plotly.min.js")
    if not script.exists():
        with atomic_path(script) as temporary:
            temporary.write_text(plotly_js(), encoding="utf-8")
    with atomic_path(page) as temporary:
        text = drawn.to_html(CONFIG, include_plotlyjs="directory", div_id=page.stem)
        temporary.write_text(text, encoding="utf-8")


def plotly_js() -> str:
    """Plotly's own script."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _traces(panel: Panel) -> Iterator[dict[str, Any]]:
    for index, mark in enumerate(panel.marks):
        match mark:
            case Bars():
                yield from _bar_traces(panel, mark, index)
            case Line():
                yield from _line_traces(panel, mark, index)
            case Points():
                yield _point_trace(mark)
            case Grid():
                yield _grid_trace(mark)


def _bar_traces(panel: Panel, bars: Bars, index: int) -> Iterator[dict[str, Any]]:
    places, width = panel.bar_places(index)
    along, up = ("y", "x") if panel.horizontal else ("x", "y")
    texts = [with_spread(*both) for both in zip(bars.values, bars.spreads, strict=True)]
    name = _markup(bars.name)
    hover = [_joined(_markup(label), name, text) for label, text in zip(panel.categories, texts, strict=True)]
    shared = {along: places, "legendgroup": name, "hovertext": hover, "hoverinfo": "text"}
    spreads = [spread or 0.0 for spread in bars.spreads]
    yield shared | {
        "type": "bar",
        "name": name,
        up: bars.values,
        "width": width,
        "orientation": "h" if panel.horizontal else "v",
        "marker": {"color": bars.colours},
        f"error_{up}": {"type": "data", "array": spreads, "visible": any(spreads), "thickness": 1.2, "width": 3}
        | {"color": "#808080"},
    }
    if panel.labelled:
        tips = [None if value is None else value + spread for value, spread in zip(bars.values, spreads, strict=True)]
        text = [f"\u00a0\u00a0{number(value)}" if panel.horizontal else number(value) for value in bars.values]
        side = "middle right" if panel.horizontal else "top center"
        yield shared | {
            "type": "scatter",
            "mode": "text",
            up: tips,
            "text": text,
            "textposition": side,
            "textfont": {"size": 11},
            "cliponaxis": False,
        }


def _line_traces(panel: Panel, line: Line, index: int) -> Iterator[dict[str, Any]]:
    name = _markup(line.name)
    shared = {"type": "scatter", "name": name, "legendgroup": name, "zorder": len(panel.marks) - index}
    if panel.banded and any(line.spreads):
        low, high = line.band
        yield shared | {
            "x": (*line.x, *reversed(line.x)),
            "y": (*high, *reversed(low)),
            "mode": "lines",
            "fill": "toself",
            "line": {"width": 0},
            "opacity": BAND,
            "fillcolor": line.style.colour,
            "hoverinfo": "skip",
        }
    labels = [panel.categories[int(x)].replace("\n", " ") if panel.categories else f"{x:g}" for x in line.x]
    texts = [with_spread(*both) for both in zip(line.values, line.spreads, strict=True)]
    yield shared | {
        "x": line.x,
        "y": line.values,
        "mode": "lines+markers",
        "line": {
            "color": line.style.colour,
            "width": line.style.width,
            "dash": "dash" if line.style.second else "solid",
        },
        "marker": {"color": line.style.colour, "size": 6},
        "hovertext": [_joined(name, _markup(label), text) for label, text in zip(labels, texts, strict=True)],
        "hoverinfo": "text",
    }


def _point_trace(points: Points) -> dict[str, Any]:
    name = _markup(points.name)
    texts = [_markup(text) for text in points.texts]
    labelled = {"mode": "markers+text", "text": texts, "textposition": [SIDES[side] for side in points.places]}
    return {
        "type": "scatter" if points.places else "scattergl",
        "mode": "markers",
        "name": name,
        "legendgroup": name,
        "x": points.x,
        "y": points.y,
        "marker": {
            "color": points.style.colour,
            "symbol": "triangle-up" if points.style.second else "circle",
            "size": 9 if points.places else 4,
        },
        "hovertext": texts if points.places else [_joined(name, text) for text in texts],
        "hoverinfo": "x+y+text" if points.places else "text",
        **(labelled if points.places else {}),
    }


def _grid_trace(grid: Grid) -> dict[str, Any]:
    rows = zip(grid.values, grid.spreads, strict=True)
    return {
        "type": "heatmap",
        "z": grid.values,
        "text": [[number(value) for value in row] for row in grid.values],
        "texttemplate": "%{text}",
        "hovertext": [[with_spread(*both) for both in zip(*row, strict=True)] for row in rows],
        "hoverinfo": "text",
        "colorscale": MAP,
        "showscale": False,
    }


def _axes(panel: Panel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the x and the y axis."""
    shown = {"showgrid": True, "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True}
    across = shown | {"title": {"text": _markup(panel.x_label), "standoff": 8}}
    up = shown | {"title": {"text": _markup(panel.y_label)}, "hoverformat": ".4f"}
    if panel.bare:
        hidden = {"visible": False}
        return hidden, hidden
    if panel.categories:
        count = len(panel.categories)
        labels = [_markup(label) for label in panel.categories]
        named = {"tickvals": list(range(count)), "ticktext": labels, "showgrid": False, "ticklabelstandoff": 5}
        if panel.horizontal:
            return across | {"range": [0, 1.13 * _longest(panel) or 1]}, up | named | {"range": [count - 0.4, -0.6]}
        across |= named | {"range": [-0.6, count - 0.4]}
    if panel.ticks:
        across |= {"tickvals": panel.ticks, "ticktext": [f"{tick:g}" for tick in panel.ticks]}
    if panel.log_x:
        across |= {"type": "log"} if panel.ticks else {"type": "log", "dtick": "D2", "hoverformat": ",.0f"}
    grid = [mark for mark in panel.marks if isinstance(mark, Grid)]
    if grid:
        up |= {"tickvals": list(range(len(grid[0].rows))), "ticktext": [_markup(row) for row in grid[0].rows]}
    return across, up


def _longest(panel: Panel) -> float:
    """Where the longest bar ends, its error bar included."""
    both = [
        pair for bars in panel.marks if isinstance(bars, Bars) for pair in zip(bars.values, bars.spreads, strict=True)
    ]
    return max((value or 0.0) + (spread or 0.0) for value, spread in both)


def _joined(*texts: str) -> str:
    return " · ".join(filter(None, texts))


def _markup(text: str) -> str:
    """Text for Plotly, which would read tags and entities in it."""
    return html.escape(text, quote=False).replace("\n", "<br>")
