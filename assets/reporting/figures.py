"""The figures of a report, each from its table: long, one row a metric; see `report.COLUMNS`."""

import math
from collections.abc import Sequence

import polars as pl

from assets.reporting.charts import (
    COLOURS,
    OWN,
    QUIET,
    REST,
    STYLES,
    Bars,
    Chart,
    Grid,
    Line,
    Panel,
    Points,
    Style,
    style,
)

HEADLINE = ("recall_at_20", "ndcg_at_20")
LOG_SPAN = 100.0  # a setting tried over two decades or more is shown on a log axis
SHORT = {"recall": "R", "ndcg": "N"}
ERRORS = "An error bar is one standard deviation over seeds."
BANDS = "A band is one standard deviation over seeds."


def metric_title(metric: str, short: bool = False) -> str:
    """`Recall@20` (`R@20`) for `recall_at_20`, `Gini` for `gini`."""
    name, _, at = metric.partition("_at_")
    title = "NDCG" if name == "ndcg" else name.replace("_", " ").capitalize()
    return (SHORT.get(name, title) if short else title) + (f"@{at}" if at else "")


def headline(table: pl.DataFrame) -> list[str]:
    """The metrics of a table that get a figure: Recall@20 and NDCG@20, else the first one."""
    metrics = table["metric"].unique(maintain_order=True).to_list()
    return [name for name in HEADLINE if name in metrics] or metrics[:1]


def models(table: pl.DataFrame, metric: str) -> Chart:
    """Every model's mean of one metric, the best on top."""
    rows = _of(table, metric).sort("mean", descending=True, maintain_order=True)
    colours = [COLOURS[0] if model == OWN else QUIET for model in rows["model"]]
    title = metric_title(metric)
    return Chart(
        f"models_{metric}",
        f"Test {title} by model",
        f"Mean {title} on the test split. {ERRORS}",
        (_bars(rows, "title", colours, title),),
        _height(rows),
    )


def ablations(table: pl.DataFrame) -> Chart:
    """Every variant beside the full model, which comes first (Fig. 4a): it is the one without a difference."""
    panels = []
    for metric in headline(table):
        rows = _of(table, metric).sort(pl.col("difference").is_not_null(), maintain_order=True)
        colours = [COLOURS[0], *[QUIET] * (len(rows) - 1)]
        panels.append(_bars(rows, "variant", colours, metric_title(metric)))
    caption = f"The full model, and the model without one of its parts. {ERRORS}"
    return Chart("ablations", "Ablations", caption, tuple(panels), _height(table.unique("variant")))


def sensitivity(table: pl.DataFrame, metric: str) -> Chart:
    """One panel a setting: a line, or a heat map where two settings vary together (Fig. 5)."""
    rows = _of(table, metric)
    panels = [_setting(part, metric) for part in rows.partition_by("panel", maintain_order=True)]
    title = metric_title(metric)
    caption = f"{title} on the test split as one setting, or a pair of them, moves away from its default. {BANDS}"
    return Chart(f"sensitivity_{metric}", f"Sensitivity of {title} to settings", caption, tuple(panels), 300)


def audit(table: pl.DataFrame, by: str, name: str, title: str, caption: str) -> Chart:
    """Metrics side by side for each kind of `by`: of history, or of fusion."""
    metrics, marks = _side_by_side(table, by, "metric")
    labels = tuple(metric_title(metric) for metric in metrics)
    return Chart(name, title, caption, (Panel("", "", "mean over seeds", marks, labels),))


def by_model(table: pl.DataFrame, by: str, title: str) -> Chart:
    """The first metric of every model, a bar for each kind of `by`: of split, or of features."""
    metric = headline(table)[0]
    titles, marks = _side_by_side(_of(table, metric), by, "title")
    panel = Panel("", metric_title(metric), "", marks, titles, horizontal=True)
    return Chart(f"by_{by}", title, f"One bar a kind of {by}. {ERRORS}", (panel,), 120 + 24 * len(titles) * len(marks))


def item_map(table: pl.DataFrame, purity: pl.DataFrame | None) -> Chart:
    """Items of every system in two dimensions, coloured by category (Figs. 1 and 3).

    As many categories as there are styles, those of most items, have one of their own; the others are grey.
    """
    sizes = table.drop_nulls("category").group_by("category").agg(pl.col("item").n_unique())
    largest = sizes.sort(["item", "category"], descending=[True, False])["category"].head(STYLES).to_list()
    styles = {category: style(index) for index, category in enumerate(largest)}
    panels = []
    for part in table.partition_by("system", maintain_order=True):
        other = part.filter(~pl.col("category").is_in(largest).fill_null(False))
        marks = [_items(other, "other", Style(REST))] if len(other) else []
        marks += [_items(part.filter(pl.col("category") == each), each, styles[each]) for each in largest]
        title = part["system"][0] + _purity(purity, part["system"][0])
        panels.append(Panel(title, "", "", tuple(mark for mark in marks if mark.x), bare=True))
    caption = (
        "t-SNE of item representations, coloured by category. Distances between clusters mean nothing; kNN purity and "
        "silhouette are measured on the representations themselves."
    )
    return Chart("item_map", "Items by category", caption, tuple(panels), 380)


def breakdown(table: pl.DataFrame, metric: str) -> Chart:
    """A metric by buckets of users' activity and of items' popularity, one line a model.

    SCALE and the best of the others have a style of their own, the rest is grey.
    """
    rows = _of(table, metric)
    order = rows.group_by("model").agg(pl.col("mean").mean()).sort(["mean", "model"], descending=[True, False])["model"]
    ranks = {name: rank for rank, name in enumerate((name for name in order if name != OWN), start=1)} | {OWN: 0}
    panels = []
    for part in rows.partition_by("axis", maintain_order=True):
        counts = dict(part.select("bucket", "count").unique("bucket", maintain_order=True).iter_rows())
        places = {bucket: float(place) for place, bucket in enumerate(counts)}
        lines = sorted(part.partition_by("model", maintain_order=True), key=lambda line: ranks[line["model"][0]])
        marks = [
            Line(
                line["title"][0],
                tuple(places[bucket] for bucket in line["bucket"]),
                tuple(line["mean"]),
                tuple(line["sd"]),
                style(ranks[line["model"][0]]),
            )
            for line in lines
        ]
        labels = tuple(f"{bucket}\n({count:,})" for bucket, count in counts.items())
        axis = part["axis"][0]
        panels.append(Panel(f"by {axis}", f"{axis} (how many)", metric_title(metric), tuple(marks), labels))
    title = f"{metric_title(metric)} by activity and popularity"
    caption = f"Mean over seeds in each bucket of users, or of items. {BANDS if panels[0].banded else ''}".rstrip()
    return Chart(
        f"breakdown_{metric}",
        title,
        caption,
        tuple(panels),
        380,
    )


def cost(table: pl.DataFrame, metric: str = "recall_at_20") -> Chart:
    """What a training takes against what it gives."""
    rows = table.filter(pl.col(metric).is_finite() & (pl.col("seconds") > 0))
    seconds = [math.log(value) for value in rows["seconds"]]
    places = label_places(seconds, rows[metric].to_list(), rows["title"].to_list())
    rows = rows.with_columns(place=pl.Series(places, dtype=pl.String))
    marks = []
    for which, colour in ((pl.col("model") != OWN, QUIET), (pl.col("model") == OWN, COLOURS[0])):
        part = rows.filter(which)
        x, y, titles, sides = (tuple(part[column]) for column in ("seconds", metric, "title", "place"))
        marks.append(Points("", x, y, titles, Style(colour), sides))
    panel = Panel("", "seconds of training (log)", metric_title(metric), tuple(m for m in marks if m.x), log_x=True)
    caption = "Test metric against the time of one training until early stopping; up and left is better."
    return Chart("cost", f"{metric_title(metric)} against training time", caption, (panel,), 440)


def label_places(x: Sequence[float], y: Sequence[float], texts: Sequence[str]) -> list[str]:
    """For every point the side for its text that covers fewest texts and points set before, `right` first."""
    points = list(zip(_unit(x), _unit(y), strict=True))
    taken = [(-1.0, -0.02, -1.0, 2.0), (1.02, 2.0, -1.0, 2.0)]  # beyond the edges
    taken += [(across - 0.008, across + 0.008, up - 0.012, up + 0.012) for across, up in points]
    places = []
    for (across, up), text in zip(points, texts, strict=True):
        wide, high = 0.009 * len(text), 0.04  # of letters on a page about 900 pixels wide
        boxes = {
            "right": (across + 0.012, across + 0.012 + wide, up - high / 2, up + high / 2),
            "left": (across - 0.012 - wide, across - 0.012, up - high / 2, up + high / 2),
            "above": (across - wide / 2, across + wide / 2, up + 0.02, up + 0.02 + high),
            "below": (across - wide / 2, across + wide / 2, up - 0.02 - high, up - 0.02),
        }
        place = min(boxes, key=lambda side: sum(_overlap(boxes[side], other) for other in taken))
        taken.append(boxes[place])
        places.append(place)
    return places


def _of(table: pl.DataFrame, metric: str) -> pl.DataFrame:
    return table.filter((pl.col("metric") == metric) & pl.col("mean").is_finite())


def _height(rows: pl.DataFrame) -> int:
    return 70 + 26 * len(rows)


def _bars(rows: pl.DataFrame, labels: str, colours: Sequence[str], x_label: str) -> Panel:
    bars = Bars("", tuple(rows["mean"]), tuple(rows["sd"]), tuple(colours))
    return Panel("", x_label, "", (bars,), tuple(rows[labels]), horizontal=True)


def _side_by_side(rows: pl.DataFrame, by: str, along: str) -> tuple[tuple[str, ...], tuple[Bars, ...]]:
    """The values of `along`, and for each kind of `by` its bars over them; None where it has no row."""
    places = tuple(rows[along].unique(maintain_order=True))
    marks = []
    for index, part in enumerate(rows.partition_by(by, maintain_order=True)):
        found = {place: (mean, sd) for place, mean, sd in part.select(along, "mean", "sd").iter_rows()}
        values, spreads = zip(*(found.get(place, (None, None)) for place in places), strict=True)
        marks.append(Bars(part[by][0], values, spreads, (style(index).colour,) * len(places)))
    return places, tuple(marks)


def _setting(rows: pl.DataFrame, metric: str) -> Panel:
    title = rows["panel"][0]
    pairs = rows.drop_nulls("value_2")
    if len(pairs):
        return _grid(pairs, title)
    parts = rows.sort("value").partition_by("setting", maintain_order=True)
    several = len(parts) > 1
    lines = [
        Line(
            part["setting"][0] if several else "",
            tuple(part["value"]),
            tuple(part["mean"]),
            tuple(part["sd"]),
            style(index),
        )
        for index, part in enumerate(parts, start=1)
    ]
    ticks = tuple(rows["value"].unique().sort())
    log = ticks[0] > 0 and ticks[-1] / ticks[0] >= LOG_SPAN
    label = "value" if several else rows["setting"][0]
    return Panel(title, label + (" (log)" if log else ""), metric_title(metric), tuple(lines), log_x=log, ticks=ticks)


def _grid(rows: pl.DataFrame, title: str) -> Panel:
    across, up = (rows[name].unique().sort() for name in ("value", "value_2"))
    found = {(x, y): (mean, sd) for x, y, mean, sd in rows.select("value", "value_2", "mean", "sd").iter_rows()}
    cells = [[found.get((x, y), (None, None)) for x in across] for y in up]
    values, spreads = (tuple(tuple(cell[part] for cell in row) for row in cells) for part in (0, 1))
    grid = Grid(tuple(f"{y:g}" for y in up), values, spreads)
    return Panel(title, rows["setting"][0], rows["setting_2"][0], (grid,), tuple(f"{x:g}" for x in across))


def _items(rows: pl.DataFrame, name: str, drawn: Style) -> Points:
    texts = rows.select(pl.coalesce("title", pl.col("item").cast(pl.String))).to_series()
    x, y = (tuple(rows[axis].round_sig_figs(4)) for axis in ("x", "y"))
    return Points(name, x, y, tuple(texts), drawn)


def _purity(purity: pl.DataFrame | None, system: str) -> str:
    if purity is None or system not in purity["system"]:
        return ""
    found = purity.row(by_predicate=pl.col("system") == system, named=True)
    named = (("kNN purity", found["purity"]), ("silhouette", found["silhouette"]))
    return "\n" + ", ".join(f"{name} {value:.3f}" for name, value in named if value is not None)


def _unit(values: Sequence[float]) -> list[float]:
    low, span = min(values, default=0.0), max(values, default=0.0) - min(values, default=0.0)
    return [(value - low) / span if span else 0.5 for value in values]


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    across, up = min(one[1], other[1]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[2], other[2])
    return max(across, 0.0) * max(up, 0.0)
