"""One report a dataset: a page that needs no network, the same as Markdown, and every figure as a file of its own."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from assets.reporting import sections
from assets.reporting.interactive import CONFIG, interactive, plotly_js, write_page
from assets.reporting.picture import picture
from assets.reporting.sections import Section
from assets.reporting.tables import Table
from pipeline.files import atomic_folder

RESULT = ("metric", "mean", "sd", "seeds")
TESTS = ("effect_size", "t_test", "wilcoxon")
COSTS = ("seconds", "seconds_per_epoch", "best_epoch", "epochs", "peak_memory_gb")
PUBLISHED = ("system", "metric", "published", "ours", "sd", "difference", "why")
# What each table must hold, in long form: one row a metric (or measure). `sd` is null where there is one seed.
COLUMNS: dict[str, tuple[str, ...]] = {
    "comparison": ("model", "title", *RESULT, "users"),
    "significance": ("model", "title", "against", "against_title", "metric", "difference", "low", "high", *TESTS),
    "table_1": PUBLISHED,
    "table_2": PUBLISHED,
    "ablations": ("variant", *RESULT, "difference", *TESTS),
    "sensitivity": ("panel", "setting", "value", "setting_2", "value_2", *RESULT),
    "leak_audit": ("history", *RESULT, "difference", *TESTS),
    "fusion_audit": ("variant", "edges_uu", "edges_ui", "edges_ii", "isolated_nodes", *RESULT),
    "split_study": ("split", "model", "title", *RESULT),
    "modality_study": ("model", "title", "modalities", *RESULT),
    "breakdown": ("model", "title", "axis", "bucket", "count", "metric", "mean", "sd"),
    "lists": ("model", "title", "measure", "mean", "sd"),
    "item_map": ("system", "item", "title", "category", "x", "y"),
    "item_map_purity": ("system", "purity", "silhouette"),
    "cost": ("model", "title", "recall_at_20", *COSTS),
}
_SIGNS = re.compile(r"([\\`*_{}\[\]<>|~$&])")  # that mean something in Markdown


def render(title: str, facts: Mapping[str, object], tables: Mapping[str, pl.DataFrame], folder: Path) -> Path:
    """Write a report into `folder`, in the place of what was there, whole or not at all.

    The same input gives the same bytes.

    Parameters
    ----------
    title
        Of the report.
    facts
        What a reader needs to place it, as it is shown: dataset, users, split, encoder, seeds, commit, date, ...
    tables
        By name, each with the columns in `COLUMNS`; missing and empty ones are left out.
    folder
        Gets `report.html`, `report.md` and, in `figures/`, `NAME.png` and `NAME.html` of every chart.

    Returns
    -------
    Path
        Of `report.html`.

    Raises
    ------
    ValueError
        As `build`, or when no table holds a row.
    """
    made = build(tables)
    if not made:
        raise ValueError(f"nothing to report on {title}: no table holds a row")
    shown = {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in facts.items()}
    content = {"title": title, "facts": shown, "sections": made}
    with atomic_folder(folder) as temporary:
        figures = _write_figures(made, temporary / "figures")
        page = _template("report.html.j2").render(content, figures=figures, config=CONFIG, plotly=plotly_js())
        (temporary / "report.html").write_text(page, encoding="utf-8")
        (temporary / "report.md").write_text(_template("report.md.j2").render(content), encoding="utf-8")
    return folder / "report.html"


def build(tables: Mapping[str, pl.DataFrame]) -> list[Section]:
    """The sections of the tables that are there; an empty table is none.

    Raises
    ------
    ValueError
        A table of an unknown name, without a column that it must hold, or with two rows where one is due.
    """
    checked = {name: _checked(name, table) for name, table in tables.items() if not table.is_empty()}
    clean = {name: table for name, table in checked.items() if not table.is_empty()}
    purity = clean.pop("item_map_purity", None)
    makers: dict[str, Callable[[pl.DataFrame], Section]] = {
        "comparison": lambda table: sections.comparison(table, clean.get("fusion_audit")),
        "significance": sections.significance,
        "table_1": lambda table: sections.published(table, 1),
        "table_2": lambda table: sections.published(table, 2),
        "ablations": sections.ablations,
        "sensitivity": sections.sensitivity,
        "leak_audit": sections.leak_audit,
        "fusion_audit": sections.fusion_audit,
        "split_study": sections.split_study,
        "modality_study": sections.modality_study,
        "breakdown": sections.breakdown,
        "lists": sections.lists,
        "item_map": lambda table: sections.item_map(table, purity),
        "cost": sections.cost,
    }
    return [make(clean[name]) for name, make in makers.items() if name in clean]


def _checked(name: str, table: pl.DataFrame) -> pl.DataFrame:
    """The table, its NaNs as nulls, without rows that tell no mean."""
    if name not in COLUMNS:
        near = difflib.get_close_matches(name, COLUMNS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COLUMNS)}"
        raise ValueError(f"a report has no table {name!r}; {hint}")
    missing = [column for column in COLUMNS[name] if column not in table.columns]
    if missing:
        raise ValueError(f"the report's table {name} lacks {', '.join(missing)}; it holds {', '.join(table.columns)}")
    table = table.with_columns(cs.float().fill_nan(None))
    return table.drop_nulls("mean") if "mean" in table.columns else table


def _write_figures(made: list[Section], folder: Path) -> dict[str, str]:
    """Write every chart as a picture and as a page; gives what the report's own page draws them from, by name."""
    folder.mkdir()
    embedded = {}
    for chart in (chart for section in made for chart in section.charts):
        (folder / f"{chart.name}.png").write_bytes(picture(chart))
        drawn = interactive(chart)
        write_page(drawn, folder / f"{chart.name}.html")
        drawn.update_layout(title=None, margin_t=64, height=drawn.layout.height - 26)
        embedded[chart.name] = drawn.to_json().replace("<", "\\u003c")  # nothing in it can end its script element
    return embedded


def markdown(table: Table) -> str:
    """A table as the report's Markdown has it, its caption above."""
    text: str = _template("table.md.j2").render(table=table)
    return text


def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template(name)


def plain(text: str) -> str:
    """Text as Markdown that shows it as it is, on one line."""
    return _SIGNS.sub(r"\\\1", " ".join(text.split()))
