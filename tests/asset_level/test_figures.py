"""Figures from small tables: what they show, and that both ways to draw them show the same."""

import math
import warnings
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest

from assets import plots
from assets.reporting import figures, picture
from assets.reporting.charts import COLOURS, QUIET, REST, STYLES, Bars, Chart, Grid, Line, Panel, Points, Style, style
from assets.reporting.interactive import interactive

PNG = b"\x89PNG\r\n\x1a\n"


def comparison(means: dict[str, float], sd: float | None = 0.01) -> pl.DataFrame:
    table = pl.DataFrame({"model": list(means), "mean": list(means.values())})
    title = pl.col("model").str.to_uppercase()
    return table.with_columns(title=title, metric=pl.lit("recall_at_20"), sd=pl.lit(sd, pl.Float64))


def drawn(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The matplotlib figure behind a picture; no warning of its layout or its fonts passes."""
    kept = []
    monkeypatch.setattr(plots, "png", lambda figure: kept.append(figure) or b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.picture(chart)
        kept[0].draw_without_rendering()
    return kept[0]


def sensitivity(values: list[float], means: list[float]) -> pl.DataFrame:
    table = pl.DataFrame({"value": values, "mean": means}).with_columns(
        panel=pl.lit("p"), setting=pl.lit("s"), metric=pl.lit("recall_at_20"), sd=pl.lit(0.1), seeds=3
    )
    return table.with_columns(setting_2=pl.lit(None, pl.String), value_2=pl.lit(None, pl.Float64))


def items(categories: list[str | None], systems: tuple[str, ...] = ("text", "SCALE")) -> pl.DataFrame:
    table = pl.DataFrame({"system": systems}).join(
        pl.DataFrame({"category": categories}, schema={"category": pl.String}).with_row_index("item"),
        how="cross",
        maintain_order="left_right",
    )
    places = np.random.default_rng(0).normal(size=(len(table), 2))
    return table.with_columns(title=pl.lit(None, pl.String), x=places[:, 0], y=places[:, 1])


def breakdown(models: list[str]) -> pl.DataFrame:
    rows = [
        {"model": name, "title": name.upper(), "axis": axis, "bucket": bucket, "count": count, "metric": "ndcg_at_20"}
        | {"mean": 0.1 + 0.01 * place, "sd": None if name == "m0" else 0.002}
        for place, name in enumerate(models)
        for axis, bucket, count in (("activity", "1-5", 1200), ("activity", "6-9", 80), ("popularity", "head", 7))
    ]
    return pl.DataFrame(rows)


def costs(models: list[str]) -> pl.DataFrame:
    count = len(models)
    spread = np.random.default_rng(1)
    table = pl.DataFrame({"model": models, "title": [name.upper() for name in models]})
    return table.with_columns(seconds=10 ** spread.uniform(1, 4, count), recall_at_20=spread.uniform(0.05, 0.1, count))


@pytest.mark.parametrize(
    ("metric", "title", "short"),
    [("recall_at_20", "Recall@20", "R@20"), ("ndcg_at_10", "NDCG@10", "N@10"), ("gini", "Gini", "Gini")],
)
def test_titles_of_metrics(metric: str, title: str, short: str):
    assert (figures.metric_title(metric), figures.metric_title(metric, short=True)) == (title, short)


def test_models_stand_in_order_and_scale_stands_out():
    table = comparison({"bpr": 0.1, "scale": 0.3, "odd": math.nan, "lightgcn": 0.2})
    (panel,) = figures.models(table, "recall_at_20").panels
    (bars,) = panel.marks
    assert panel.categories == ("SCALE", "LIGHTGCN", "BPR")
    assert bars.values == (0.3, 0.2, 0.1)
    assert bars.colours == (COLOURS[0], QUIET, QUIET)


@pytest.mark.parametrize("sd", [None, 0.01])
@pytest.mark.parametrize("count", [1, 25])
def test_both_drawings_show_every_model(count: int, sd: float | None, monkeypatch: pytest.MonkeyPatch):
    means = {f"a model with a rather long name {place}": 0.01 + place / 100 for place in range(count)}
    chart = figures.models(comparison(means, sd), "recall_at_20")
    bars, texts = interactive(chart).data
    best_first = sorted(means.values(), reverse=True)
    assert list(bars.x) == best_first
    assert [text.strip() for text in texts.text] == [f"{mean:.4f}" for mean in best_first]
    assert bars.error_x.visible == (sd is not None)
    (axes,) = drawn(chart, monkeypatch).axes
    patches = [patch.get_width() for patch in axes.patches]
    assert patches == pytest.approx(best_first)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(chart.panels[0].categories)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top


def test_the_full_model_comes_first():
    table = pl.DataFrame(
        {"variant": ["w/o LLM", "full", "w/o SAG"], "mean": [0.2, 0.3, 0.1], "difference": [-0.1, None, -0.2]}
    ).with_columns(metric=pl.lit("recall_at_20"), sd=0.01, seeds=3, t_test=0.5)
    (panel,) = figures.ablations(table).panels
    assert panel.categories == ("full", "w/o LLM", "w/o SAG")
    assert panel.marks[0].colours == (COLOURS[0], QUIET, QUIET)


@pytest.mark.parametrize(
    ("values", "log"), [([0.1, 1e-5, 1e-3], True), ([2, 5, 15], False), ([0.0, 1e-4, 0.1], False), ([1], False)]
)
def test_weights_are_on_a_log_axis(values: list[float], log: bool, monkeypatch: pytest.MonkeyPatch):
    chart = figures.sensitivity(sensitivity(values, list(range(len(values)))), "recall_at_20")
    (panel,) = chart.panels
    (line,) = panel.marks
    assert panel.log_x == log
    assert list(line.x) == sorted(values)
    assert [values[int(mean)] for mean in line.values] == sorted(values)
    assert interactive(chart).layout.xaxis.type == ("log" if log else None)
    (axes,) = drawn(chart, monkeypatch).axes
    assert axes.get_xscale() == ("log" if log else "linear")


def test_two_settings_make_a_heat_map(monkeypatch: pytest.MonkeyPatch):
    cells = [(x, y) for x, y in product([1, 2, 3], [1, 2]) if (x, y) != (2, 1)]
    table = sensitivity([float(x) for x, _ in cells], [x + y / 10 for x, y in cells])
    table = table.with_columns(setting_2=pl.lit("t"), value_2=pl.Series([float(y) for _, y in cells]))
    chart = figures.sensitivity(
        pl.concat([table, sensitivity([1.0, 2.0], [0.1, 0.2]).with_columns(panel=pl.lit("q"))]), "recall_at_20"
    )
    pair, single = chart.panels
    (grid,) = pair.marks
    assert (pair.x_label, pair.categories, pair.y_label, grid.rows) == ("s", ("1", "2", "3"), "t", ("1", "2"))
    assert grid.values == ((1.1, None, 3.1), (1.2, 2.2, 3.2))
    assert isinstance(single.marks[0], Line)
    heat = next(trace for trace in interactive(chart).data if trace.type == "heatmap")
    assert [list(row) for row in heat.z] == [list(row) for row in grid.values]
    shown = drawn(chart, monkeypatch).axes[0].images[0].get_array()
    assert shown.tolist() == [[1.1, None, 3.1], [1.2, 2.2, 3.2]]


def test_an_audit_groups_metrics_and_knows_gaps(monkeypatch: pytest.MonkeyPatch):
    table = pl.DataFrame(
        {
            "history": ["train", "train", "all"],
            "metric": ["recall_at_20", "ndcg_at_20", "recall_at_20"],
            "mean": [0.2, 0.1, 0.4],
        }
    ).with_columns(sd=pl.lit(None, pl.Float64))
    chart = figures.audit(table, "history", "leak", "Leak", "")
    (panel,) = chart.panels
    assert panel.categories == ("Recall@20", "NDCG@20")
    assert [(bars.name, bars.values) for bars in panel.marks] == [("train", (0.2, 0.1)), ("all", (0.4, None))]
    bars = [trace for trace in interactive(chart).data if trace.type == "bar"]
    assert all(low < high for low, high in zip(bars[0].x, bars[1].x, strict=True))  # side by side
    assert drawn(chart, monkeypatch).legends


def test_the_map_colours_the_largest_categories():
    sizes = {f"c{rank:02}": 20 - rank for rank in range(STYLES + 2)}
    categories = [name for name, size in sizes.items() for _ in range(size)] + [None]
    chart = figures.item_map(
        items(categories), pl.DataFrame({"system": ["text"], "purity": [0.5], "silhouette": [-0.25]})
    )
    text, scale = chart.panels
    assert (text.title, scale.title) == ("text\nkNN purity 0.500, silhouette -0.250", "SCALE")
    other, *own = text.marks
    assert (other.name, other.style, len(other.x)) == ("other", Style(REST), 8 + 7 + 1)
    assert [(points.name, len(points.x)) for points in own] == list(sizes.items())[:STYLES]
    assert len({points.style for points in own}) == STYLES
    assert {points.name: points.style for points in scale.marks} == {points.name: points.style for points in text.marks}


def test_a_category_that_a_system_lacks_keeps_its_colour(monkeypatch: pytest.MonkeyPatch):
    table = pl.concat([items(["a", "b", "a"], ("text",)), items(["b"], ("SCALE",))])
    chart = figures.item_map(table, None)
    assert [[(points.name, points.style) for points in panel.marks] for panel in chart.panels] == [
        [("a", style(0)), ("b", style(1))],
        [("b", style(1))],
    ]
    assert [(trace.name, trace.showlegend) for trace in interactive(chart).data] == [
        ("a", True),
        ("b", True),
        ("b", False),
    ]
    assert [text.get_text() for text in drawn(chart, monkeypatch).legends[0].get_texts()] == ["a", "b"]


@pytest.mark.parametrize("count", [1, 3, 25])
def test_a_breakdown_draws_scale_on_top(count: int, monkeypatch: pytest.MonkeyPatch):
    names = ["scale", *(f"m{place}" for place in range(count - 1))]
    chart = figures.breakdown(breakdown(names), "ndcg_at_20")
    activity, popularity = chart.panels
    assert activity.categories == ("1-5\n(1,200)", "6-9\n(80)")
    assert popularity.categories == ("head\n(7)",)
    assert (activity.marks[0].name, activity.marks[0].style) == ("SCALE", style(0))
    assert [line.style for line in activity.marks] == [style(rank) for rank in range(count)]
    first, *_ = axes = drawn(chart, monkeypatch).axes
    assert len(axes) == 2
    assert max(first.lines, key=lambda line: line.zorder).get_color() == style(0).colour
    top = max((trace for trace in interactive(chart).data), key=lambda trace: trace.zorder)
    assert top.name == "SCALE"
    assert len({trace.name for trace in interactive(chart).data}) == count


def test_cost_names_every_model_that_took_time(monkeypatch: pytest.MonkeyPatch):
    table = costs(["bpr", "scale", *(f"model {place}" for place in range(23))])
    table = table.with_columns(seconds=pl.when(pl.col("model") == "bpr").then(0.0).otherwise("seconds"))
    chart = figures.cost(table)
    (panel,) = chart.panels
    others, own = panel.marks
    assert own.texts == ("SCALE",)
    assert set(others.texts) == {f"MODEL {place}" for place in range(23)}
    assert all(len(mark.places) == len(mark.x) for mark in panel.marks)
    (axes,) = drawn(chart, monkeypatch).axes
    assert {text.get_text() for text in axes.texts} == {*others.texts, *own.texts}


def test_texts_avoid_each_other_and_the_edge():
    assert figures.label_places([0, 1], [0, 1], ["SCALE", "LightGCN"]) == ["right", "left"]
    near = figures.label_places([0, 0.02, 1, 0.04], [0.5, 0.5, 1, 0.5], ["one name", "two names", "far", "three names"])
    assert len({near[0], near[1], near[3]}) == 3
    assert figures.label_places([5], [5], ["alone"]) == ["right"]


HOSTILE = '_<a href="javascript:alert(1)">$5 to $</a> %{x}'


def test_names_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch):
    chart = Chart(
        "c",
        HOSTILE,
        "",
        (
            Panel(HOSTILE, HOSTILE, HOSTILE, (Bars(HOSTILE, (1.0,), (0.1,), ("red",)),) * 2, (HOSTILE,)),
            Panel("", "", "", (Line(HOSTILE, (0.0,), (1.0,), (0.1,), style(0)),), (HOSTILE,)),
            Panel("", "", "", (Points(HOSTILE, (1.0,), (1.0,), (HOSTILE,), style(7), ("right",)),), log_x=True),
            Panel("", HOSTILE, "", (Grid((HOSTILE,), ((1.0,),), ((None,),)),), (HOSTILE,)),
        ),
    )
    assert "<a" not in interactive(chart).to_json().replace("\\u003c", "<")
    with monkeypatch.context() as patched:
        shown = drawn(chart, patched)
    assert shown.get_suptitle() == HOSTILE.replace("$", r"\$").replace("_", " _")
    assert len(shown.legends) == 0  # one name needs none
    assert picture.picture(chart).startswith(PNG)


def test_the_same_chart_gives_the_same_bytes():
    charts = [figures.item_map(items(["a", "b", None]), None) for _ in range(2)]
    first, second = ((picture.picture(chart), interactive(chart).to_json()) for chart in charts)
    assert first == second


def test_models_have_a_bar_for_each_kind_and_none_where_it_is_missing():
    both = comparison({"a": 0.3, "b": 0.2}).with_columns(split=pl.lit("random"))
    one = comparison({"b": 0.1}, sd=None).with_columns(split=pl.lit("global_time"))
    (panel,) = figures.by_model(pl.concat([both, one]), "split", "Splits").panels
    assert panel.categories == ("A", "B")
    first, second = panel.marks
    assert (first.name, first.values, first.spreads) == ("random", (0.3, 0.2), (0.01, 0.01))
    assert (second.name, second.values, second.spreads) == ("global_time", (None, 0.1), (None, None))
    assert len({*first.colours, *second.colours}) == 2
