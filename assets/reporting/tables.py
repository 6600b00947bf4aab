"""Tables of a report: what a column holds says how its cells are written; the best of each is bold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from assets.reporting.charts import OWN, with_spread

SIGNIFICANT = 0.05
NOTHING = "–"
# text; a whole number; four decimals (`second` names its spread); the same with a sign; the lower end of an interval
# (`second` names the upper one); a p-value; a number as short as it can be; one decimal.
Kind = Literal["text", "count", "number", "signed", "interval", "p", "setting", "decimal"]


@dataclass(frozen=True)
class Column:
    """A column: `name` is that of the data; in `best` ones the largest value is bold."""

    heading: str
    name: str
    kind: Kind = "number"
    second: str = ""
    best: bool = False


@dataclass(frozen=True)
class Cell:
    """What is written, and by what the column is sorted (None comes last)."""

    text: str
    key: float | str | None
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """One row; `own` is true for the model that the report is about."""

    cells: tuple[Cell, ...]
    own: bool


@dataclass(frozen=True)
class Table:
    """A table as it is shown.

    Parameters
    ----------
    caption
        What it shows and in which unit.
    data
        One row a shown row; a column `model`, if any, tells which rows are of SCALE.
    """

    caption: str
    data: pl.DataFrame
    columns: tuple[Column, ...]

    @property
    def rows(self) -> list[Row]:
        """The cells, written."""
        written = [_cells(self.data, column) for column in self.columns]
        models = self.data["model"].to_list() if "model" in self.data.columns else [""] * len(self.data)
        return [Row(tuple(cells), model == OWN) for *cells, model in zip(*written, models, strict=True)]


def wide(table: pl.DataFrame, index: Sequence[str], values: Sequence[str], names: str = "metric") -> pl.DataFrame:
    """One row for each `index`, in their order; a column `VALUE NAME` for each of `values` (two or more) and name."""
    keys = [*index, names]
    twice = table.filter(pl.struct(keys).is_duplicated())
    if len(twice):
        raise ValueError(f"a report's table must hold one row for {twice.select(keys).row(0, named=True)}, not several")
    return table.pivot(names, index=list(index), values=list(values), separator=" ")


def _cells(data: pl.DataFrame, column: Column) -> list[Cell]:
    values = data[column.name].to_list()
    seconds = data[column.second].to_list() if column.second else [None] * len(values)
    best = max((round(value, 4) for value in values if _known(value)), default=None) if column.best else None
    return [_cell(column, value, second, best) for value, second in zip(values, seconds, strict=True)]


def _cell(column: Column, value: Any, second: float | None, best: float | None) -> Cell:
    if column.kind == "text":
        return Cell(str(value) if value else NOTHING, value)
    if not _known(value):
        infinite = value is not None and not math.isnan(value)
        return Cell(f"{value:+}".replace("inf", "∞") if infinite else NOTHING, None)
    bold = value < SIGNIFICANT if column.kind == "p" else best is not None and round(value, 4) == best
    return Cell(_written(column.kind, value, second), value, bold)


def _written(kind: Kind, value: float, second: float | None) -> str:
    match kind:
        case "count":
            return f"{value:,.0f}"
        case "signed":
            return _signed(value)
        case "interval":
            return f"{_signed(value)} to {NOTHING if second is None else _signed(second)}"
        case "p":
            return "<0.001" if value < 0.001 else f"{value:.3f}"
        case "setting":
            return f"{value:g}"
        case "decimal":
            return f"{value:,.1f}"
        case _:
            return with_spread(value, second)


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # no -0.0000


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)
