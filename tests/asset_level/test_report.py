"""Reports from made tables: the numbers in them, their form, and that they are written whole."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from assets.reporting import report, sections
from assets.reporting.tables import Column, Table, wide

METRICS = ("recall_at_10", "recall_at_20", "ndcg_at_10", "ndcg_at_20")
MODELS = {"scale": "SCALE", "lightgcn": "LightGCN", "freedom": "FREEDOM", "bpr": "BPR | <b>MF</b>"}
HOSTILE = "Toys | <script>alert('x')</script> & *more*\nnews"
VOID = {"meta", "link"}


def long(
    keys: dict[str, list[object]], seed: int, names: tuple[str, ...] = METRICS, name: str = "metric"
) -> pl.DataFrame:
    """A row for each row of `keys` and each metric, with a mean, its spread and a count of seeds."""
    table = pl.DataFrame(keys).join(pl.DataFrame({name: names}), how="cross", maintain_order="left_right")
    values = np.random.default_rng(seed).uniform(0.02, 0.12, len(table))
    return table.with_columns(mean=values, sd=values / 20, seeds=3)


def compared(table: pl.DataFrame, by: str, first: str) -> pl.DataFrame:
    base = table.filter(pl.col(by) == first).select("metric", base="mean")
    own = pl.col(by) != first
    difference = pl.when(own).then(pl.col("mean") - pl.col("base"))
    return table.join(base, on="metric", maintain_order="left").with_columns(
        difference=difference,
        effect_size=pl.when(own).then(pl.lit(0.25)),
        t_test=pl.when(own).then(pl.lit(0.0004)),
        wilcoxon=pl.when(own).then(pl.lit(0.06)),
    )


def published() -> pl.DataFrame:
    table = long({"system": ["LightGCN", "SCALE"]}, 3).rename({"mean": "ours"}).with_columns(published=pl.lit(0.0754))
    why = pl.when(pl.col("system") == "SCALE").then(pl.lit("profiles without held-out reviews"))
    return table.with_columns(difference=pl.col("ours") - pl.col("published"), why=why).drop("seeds")


def sensitivity() -> pl.DataFrame:
    weights = pl.DataFrame({"panel": "weights", "setting": "weight_s", "value": [1e-5, 1e-3, 0.1]})
    pairs = pl.DataFrame({"value": [1.0, 2.0]}).join(pl.DataFrame({"value_2": [1.0, 2.0]}), how="cross")
    pairs = pairs.with_columns(panel=pl.lit("layers"), setting=pl.lit("L_I"), setting_2=pl.lit("L_S"))
    keys = pl.concat([weights, pairs], how="diagonal").select("panel", "setting", "value", "setting_2", "value_2")
    return long(keys.to_dict(as_series=False), 5)


def breakdown() -> pl.DataFrame:
    buckets = [
        ("activity", "1-5", 700),
        ("activity", "6-9", 200),
        ("popularity", "head", 30),
        ("popularity", "tail", 3000),
    ]
    table = pl.DataFrame(buckets, schema=["axis", "bucket", "count"], orient="row").join(models(), how="cross")
    return long(table.to_dict(as_series=False), 8, ("recall_at_20",))


def models() -> pl.DataFrame:
    return pl.DataFrame({"model": list(MODELS), "title": list(MODELS.values())})


def significance() -> pl.DataFrame:
    others = pl.DataFrame({"against": list(MODELS)[1:], "against_title": list(MODELS.values())[1:]})
    metrics = pl.DataFrame({"metric": ["recall_at_20", "ndcg_at_20"]})
    return metrics.join(others, how="cross").with_columns(
        model=pl.lit("scale"),
        title=pl.lit("SCALE"),
        difference=pl.Series([0.006, 0.01, -0.00001] * 2),
        low=pl.lit(-0.001),
        high=pl.lit(0.02),
        effect_size=pl.Series([0.1, math.inf, -0.2] * 2),
        t_test=pl.Series([0.03, 0.0004, 1.0] * 2),
        wilcoxon=pl.lit(0.2),
    )


def tables() -> dict[str, pl.DataFrame]:
    """One of every kind."""
    places = np.random.default_rng(9).normal(size=(120, 2)).round(3)
    cells = pl.DataFrame({"system": ["text"] * 60 + ["SCALE"] * 60, "item": [*range(60)] * 2})
    edges = {f"edges_{kind}": [1000, 20] for kind in ("uu", "ui", "ii")}
    costs = models().with_columns(seconds=pl.Series([900.0, 60, 400, 20]), seconds_per_epoch=2.5, epochs=50)
    return {
        "cost": costs.with_columns(
            best_epoch=30, peak_memory_gb=1.25, recall_at_20=pl.Series([0.09, 0.07, 0.08, 0.06])
        ),
        "comparison": long(models().to_dict(as_series=False), 1).with_columns(users=19_000),
        "significance": significance(),
        "table_1": published(),
        "table_2": published(),
        "ablations": compared(long({"variant": ["SCALE", "w/o LLM", "w/o L_align_s"]}, 4), "variant", "SCALE"),
        "sensitivity": sensitivity(),
        "leak_audit": compared(long({"history": ["train", "all"]}, 6), "history", "train"),
        "fusion_audit": long({"variant": ["union", sections.AS_PRINTED], **edges, "isolated_nodes": [0, 1500]}, 7),
        "split_study": pl.concat(
            long(models().head(2).to_dict(as_series=False), 8).with_columns(split=pl.lit(split))
            for split in ("random", "global_time")
        ),
        "modality_study": pl.concat(
            long(models().head(3).to_dict(as_series=False), 9).with_columns(modalities=pl.lit(modalities))
            for modalities in ("text", "images", "both")
        ),
        "breakdown": breakdown(),
        "lists": long(models().to_dict(as_series=False), 2, ("coverage_at_20", "gini"), "measure"),
        "item_map": cells.with_columns(title=pl.lit(HOSTILE), category=pl.lit(HOSTILE), x=places[:, 0], y=places[:, 1]),
        "item_map_purity": pl.DataFrame({"system": ["text", "SCALE"], "purity": [0.5, 0.6], "silhouette": [0.1, -0.1]}),
    }


FACTS: dict[str, object] = {
    "dataset": HOSTILE,
    "users": 19_445,
    "seeds": "0, 1, 2",
    "commit": "0eb8d3f",
    "date": "2026-01-01",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.render(HOSTILE, FACTS, tables(), tmp_path_factory.mktemp("report") / "tiny").parent


class Page(HTMLParser):
    """What a page loads and says, apart from its scripts; fails where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.loads += [value for name in ("src", "href") if (value := named.get(name)) and not value.startswith("#")]
        self.targets += [named["href"][1:] for _ in [0] if (named.get("href") or "").startswith("#")]
        self.ids += [named["id"]] if named.get("id") else []
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def markdown_cells(text: str) -> Iterator[str]:
    """The cells of every table in a Markdown text after the first, which holds the facts, as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    tables_before = 0
    for before, token in pairwise(tokens):
        tables_before += before.type == "table_open"
        if before.type in ("td_open", "th_open") and tables_before > 1:
            yield "".join(child.content for child in token.children or [])


def test_the_page_needs_no_other_file(written: Path):
    page = Page((written / "report.html").read_text())
    assert page.loads == ["data:,"]
    assert page.targets == [section.name for section in report.build(tables())]
    assert page.targets == page.ids == [name for name in report.COLUMNS if name != "item_map_purity"]


def test_every_chart_has_its_files(written: Path):
    charts = [chart.name for section in report.build(tables()) for chart in section.charts]
    assert len(charts) == len(set(charts)) == 12
    found = {path.name for path in (written / "figures").iterdir()}
    assert found == {f"{name}.{ending}" for name in charts for ending in ("png", "html")} | {"plotly.min.js"}
    text = (written / "report.md").read_text()
    assert re.findall(r"!\[[^\]]+\]\(figures/(\w+)\.png\)", text) == charts
    page = (written / "report.html").read_text()
    assert page.count('<div class="plot">') == len(charts)


def test_no_page_offers_to_send_its_figures_away(written: Path):
    for path in written.rglob("*.html"):
        text = path.read_text()
        assert re.search(r'"showSendToCloud": false', text), path
        assert not re.search(r'"plotlyServerURL": "http', text), path
    assert all(Page(path.read_text()).loads == ["plotly.min.js"] for path in (written / "figures").glob("*.html"))


def test_both_forms_hold_every_cell(written: Path):
    shown = [table for section in report.build(tables()) for table in section.tables]
    expected = [
        cell
        for table in shown
        for row in [
            [column.heading for column in table.columns],
            *([cell.text for cell in row.cells] for row in table.rows),
        ]
        for cell in row
    ]
    assert Page((written / "report.html").read_text()).cells == expected
    assert list(markdown_cells((written / "report.md").read_text())) == expected


def test_text_from_outside_is_shown_not_run(written: Path):
    page = (written / "report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page
    html = MarkdownIt("commonmark").enable("table").render((written / "report.md").read_text())
    assert "<script" not in html
    assert "<h1>Toys | &lt;script&gt;alert('x')&lt;/script&gt; &amp; *more* news</h1>" in html


def test_the_same_input_gives_the_same_bytes(written: Path, tmp_path: Path):
    again = report.render(HOSTILE, FACTS, tables(), tmp_path / "again").parent
    names = {path.relative_to(written) for path in written.rglob("*")}
    assert names == {path.relative_to(again) for path in again.rglob("*")}
    assert all(
        (written / name).read_bytes() == (again / name).read_bytes() for name in names if (written / name).is_file()
    )


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "tiny"
    few = {"comparison": tables()["comparison"]}
    report.render("first", {}, few, folder)
    (folder / "figures" / "old.png").touch()
    before = (folder / "report.md").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(report, "plotly_js", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report.render("second", {}, few, folder)
    assert (folder / "report.md").read_bytes() == before
    report.render("second", {}, few, folder)
    assert (folder / "report.md").read_text().startswith("# second")
    assert not (folder / "figures" / "old.png").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_an_asset_shows_its_charts_with_a_page_to_explore_or_else_its_tables(
    written: Path, tmp_path: Path, monkeypatch
):
    from dagster import build_asset_context

    from assets.replicates import drawn

    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    made = {section.name: section for section in report.build(tables())}
    context = build_asset_context(partition_key="tiny")
    shown = drawn(context, made["ablations"])
    assert str(shown["ablations"].value).startswith("![ablations](data:image/png;base64,")
    page = Path(str(shown["ablations, interactive"].value))
    assert page == tmp_path / "reports" / "tiny" / "figures" / "ablations.html"
    assert page.read_bytes() == (written / "figures" / "ablations.html").read_bytes()
    assert {path.name for path in page.parent.iterdir()} == {"ablations.html", "plotly.min.js"}
    in_report = (written / "report.md").read_text()
    for name in ("significance", "table_1", "table_2", "lists"):
        (text,) = (str(value.value) for value in drawn(context, made[name]).values())
        assert text.count("\n| --- |") == len(made[name].tables)
        assert all(part in in_report for part in text.split("\n\n"))


def test_missing_and_empty_tables_are_left_out():
    some = {"significance": significance().clear(), "lists": tables()["lists"], "comparison": tables()["comparison"]}
    assert [section.name for section in report.build(some)] == ["comparison", "lists"]
    with pytest.raises(ValueError, match="nothing to report on Toys"):
        report.render("Toys", {}, {"significance": significance().clear()}, Path("nowhere"))
    assert not Path("nowhere").exists()


def test_a_wrong_table_is_an_error():
    with pytest.raises(ValueError, match=r"no table 'ablation'; did you mean ablations\?"):
        report.build({"ablation": tables()["ablations"]})
    with pytest.raises(ValueError, match="table lists lacks measure, sd; it holds model, title, mean"):
        report.build({"lists": tables()["lists"].drop("measure", "sd", "seeds")})
    table = tables()["comparison"]
    with pytest.raises(ValueError, match=r"one row for \{'model': 'bpr', .*'metric': 'ndcg_at_20'\}"):
        report.build({"comparison": pl.concat([table, table.tail(1)])})


def texts(table: Table) -> list[list[str]]:
    return [[f"*{cell.text}*" if cell.bold else cell.text for cell in row.cells] for row in table.rows]


def test_how_cells_are_written():
    data = pl.DataFrame(
        {
            "model": ["scale", "a", None],
            "mean": [0.07444, 0.07436, None],
            "sd": [0.003, None, None],
            "difference": [-0.00001, 0.0062, math.inf],
            "high": [0.1, None, 1.0],
            "p": [0.0004, 0.05, 0.0499],
            "n": [12_345, 1, None],
            "value": [1e-5, 10.0, 0.1],
        }
    )
    columns = (
        Column("", "model", "text"),
        Column("", "mean", second="sd", best=True),
        Column("", "difference", "signed"),
        Column("", "difference", "interval", "high"),
        Column("", "p", "p"),
        Column("", "n", "count"),
        Column("", "value", "setting"),
        Column("", "value", "decimal"),
    )
    table = Table("", data, columns)
    assert texts(table) == [
        ["scale", "*0.0744 ± 0.0030*", "+0.0000", "+0.0000 to +0.1000", "*<0.001*", "12,345", "1e-05", "0.0"],
        ["a", "*0.0744*", "+0.0062", "+0.0062 to –", "0.050", "1", "10", "10.0"],
        ["–", "–", "+∞", "+∞", "*0.050*", "–", "0.1", "0.1"],
    ]
    assert [row.own for row in table.rows] == [True, False, False]


@given(
    st.sets(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", None]), st.sampled_from("mno")), min_size=1),
    st.randoms(),
)
def test_wide_tables_keep_order_and_values(keys: set[tuple[str, str | None, str]], order):
    rows = sorted(keys, key=str)
    order.shuffle(rows)
    table = pl.DataFrame(rows, schema=["k", "l", "metric"], orient="row").with_columns(
        mean=pl.int_range(pl.len()), sd=-pl.int_range(pl.len())
    )
    found = wide(table, ("k", "l"), ("mean", "sd"))
    assert found.select("k", "l").rows() == list(dict.fromkeys(row[:2] for row in rows))
    numbers = {row: number for number, row in enumerate(rows)}
    for row in found.iter_rows(named=True):
        for metric in {metric for *_, metric in rows}:
            number = numbers.get((row["k"], row["l"], metric))
            assert row[f"mean {metric}"] == number
            assert row[f"sd {metric}"] == (None if number is None else -number)


def cell(table: Table, row: int, heading: str) -> str:
    headings = [column.heading for column in table.columns]
    return texts(table)[row][headings.index(heading)]


def test_sections_show_the_numbers_of_their_tables():
    made = {section.name: section for section in report.build(tables())}
    given_tables = tables()

    def mean(name: str, **keys: object) -> str:
        found = given_tables[name].filter(*(pl.col(key) == value for key, value in keys.items())).row(0, named=True)
        return f"{found['mean']:.4f} ± {found['sd']:.4f}"

    (table,) = made["comparison"].tables
    assert cell(table, 2, "N@20").strip("*") == mean("comparison", model="freedom", metric="ndcg_at_20")
    variant = given_tables["fusion_audit"].filter(variant=sections.AS_PRINTED)
    in_order = [*given_tables["comparison"].filter(metric="recall_at_20")["mean"]]
    in_order += [*variant.filter(metric="recall_at_20")["mean"]]
    bold = [cell(table, row, "R@20").startswith("*") for row in range(5)]
    assert bold == [value == max(in_order) for value in in_order]
    assert [row[0] for row in texts(table)] == [*MODELS.values(), "SCALE (eq. 6 as printed), a variant"]
    assert cell(table, 4, "R@10").strip("*") == mean("fusion_audit", variant=sections.AS_PRINTED, metric="recall_at_10")
    assert [row.own for row in table.rows] == [True, False, False, False, False]
    assert "of 4 with" in made["comparison"].text  # a variant is no model
    first, second = made["significance"].tables
    assert (first.caption, second.caption) == ("Recall@20", "NDCG@20")
    assert texts(first)[1][1:] == ["FREEDOM", "+0.0100", "-0.0010 to +0.0200", "+∞", "*<0.001*", "0.200"]
    assert "4 of 6 differences are significant" in made["significance"].text
    numbers, gaps = made["table_1"].tables
    assert cell(numbers, 0, "R@10 published") == "*0.0754*"
    assert cell(gaps, 1, "what stands behind it") == "profiles without held-out reviews"
    assert cell(gaps, 0, "what stands behind it") == "–"
    means, gaps = made["ablations"].tables
    assert cell(means, 1, "R@10").strip("*") == mean("ablations", variant="w/o LLM", metric="recall_at_10")
    assert [row[:2] for row in texts(gaps)[:3]] == [
        ["Recall@10", "w/o LLM"], ["Recall@10", "w/o L_align_s"], ["Recall@20", "w/o LLM"],
    ]  # fmt: skip
    assert len(texts(gaps)) == 8
    assert texts(gaps)[0][3:] == ["+0.2500", "*<0.001*", "0.060"]
    (*_, last) = texts(made["leak_audit"].tables[1])
    assert (last[:2], last[3:]) == (["NDCG@20", "all"], ["+0.2500", "*<0.001*", "0.060"])
    (table,) = made["sensitivity"].tables
    assert texts(table)[0][:5] == ["weights", "weight_s", "1e-05", "–", "–"]
    assert cell(table, 6, "N@10") == mean("sensitivity", value=2.0, value_2=2.0, metric="ndcg_at_10")
    (table,) = made["fusion_audit"].tables
    assert texts(table)[1][:5] == ["intersection (eq. 6 as printed)", "20", "20", "20", "1,500"]
    activity, popularity = made["breakdown"].tables
    assert [column.heading for column in popularity.columns] == ["model", "head (30)", "tail (3,000)"]
    assert cell(activity, 3, "6-9 (200)").strip("*") == mean("breakdown", model="bpr", bucket="6-9")
    (table,) = made["lists"].tables
    assert any(cell(table, row, "Coverage@20").startswith("*") for row in range(4))
    assert not any(cell(table, row, "Gini").startswith("*") for row in range(4))
    assert texts(made["cost"].tables[0])[0] == ["SCALE", "*0.0900*", "900.0", "2.5000", "30", "50", "1.2"]


def test_what_is_not_known_is_a_dash(tmp_path: Path):
    some = {
        name: tables()[name] for name in ("table_1", "cost", "item_map", "item_map_purity", "comparison", "leak_audit")
    }
    none = pl.lit(None, pl.Float64)
    some["table_1"] = some["table_1"].with_columns(
        ours=pl.when(pl.col("system") == "SCALE").then("ours"), sd=none, difference=none
    )
    some["cost"] = some["cost"].with_columns(recall_at_20=pl.lit(math.nan), peak_memory_gb=none)
    some["item_map_purity"] = some["item_map_purity"].with_columns(silhouette=pl.lit(math.nan))
    some["comparison"] = some["comparison"].with_columns(mean=pl.when(pl.col("model") != "bpr").then("mean"))
    some["leak_audit"] = some["leak_audit"].with_columns(mean=none)
    made = {section.name: section for section in report.build(some)}
    assert list(made) == ["comparison", "table_1", "item_map", "cost"]
    assert cell(made["table_1"].tables[0], 0, "R@10 here") == "–"
    assert cell(made["table_1"].tables[1], 1, "R@10") == "–"
    assert [row[0] for row in texts(made["comparison"].tables[0])] == list(MODELS.values())[:3]
    assert made["item_map"].charts[0].panels[0].title == "text\nkNN purity 0.500"
    assert texts(made["cost"].tables[0])[0][1] == "–"
    assert made["cost"].charts[0].panels[0].marks == ()
    report.render("gaps", {}, some, tmp_path / "gaps")


def test_the_text_says_where_scale_stands():
    table = pl.DataFrame({"model": ["scale", "bpr", "kar"], "title": ["SCALE", "BPR", "KAR"], "mean": [0.2, 0.1, 0.3]})
    table = table.with_columns(metric=pl.lit("recall_at_20"), sd=pl.lit(None, pl.Float64), seeds=1, users=7)
    text = sections.comparison(table).text
    assert "SCALE is number 2 of 3 with 0.2000; the best other model is KAR with 0.3000" in text
    assert "number" not in sections.comparison(table.filter(pl.col("model") != "scale")).text


def test_reports_need_neither_dagster_nor_a_drawing_library_until_they_are_made():
    heavy = "{'dagster', 'mlflow', 'plotly', 'matplotlib', 'torch', 'sklearn'}"
    code = f"import sys, assets.reporting.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
