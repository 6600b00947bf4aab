"""What a chart shows, apart from how it is drawn: panels of bars, lines, points or a grid of values.

`figures` makes charts from tables. Each is drawn twice: by `interactive` to be explored in a browser, by `picture` as a
PNG.
"""

from dataclasses import dataclass

OWN = "scale"  # the model that reports are about
# Okabe and Ito's colours for the colour-blind, without those that vanish on white or on black; the first is for `OWN`.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
QUIET = "#6B8BA8"  # what is compared with `OWN`
REST = "#9AA0A6"  # what has no colour of its own
STYLES = 2 * len(COLOURS)
MAP = "cividis"  # colours of a heat map, even to colour-blind eyes
BAND = 0.16  # opacity
GROUP = 0.8  # of the distance between two categories that bars take up
LABELLED = 12  # upright bars that leave room for their values over them
BANDED = 6  # lines that leave room for their bands


@dataclass(frozen=True)
class Style:
    """Colour of a mark; `second` tells apart the two of one colour: by dashes, or triangles for dots."""

    colour: str
    second: bool = False

    @property
    def width(self) -> float:
        """Of a line, in pixels."""
        return 1.0 if self.colour == REST else 2.0


def style(index: int) -> Style:
    """The style of the n-th thing in a chart; from `STYLES` on they are all grey."""
    return Style(COLOURS[index % len(COLOURS)], index >= len(COLOURS)) if index < STYLES else Style(REST)


@dataclass(frozen=True)
class Bars:
    """One bar a category, from zero; several of them in a panel stand side by side.

    Parameters
    ----------
    values, spreads
        Mean and standard deviation by category; None where there is none.
    colours
        One a bar.
    """

    name: str
    values: tuple[float | None, ...]
    spreads: tuple[float | None, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """Means over `x`, in a band of one standard deviation where one is known and few lines leave room for it."""

    name: str
    x: tuple[float, ...]
    values: tuple[float, ...]
    spreads: tuple[float | None, ...]
    style: Style

    @property
    def band(self) -> tuple[list[float], list[float]]:
        """Its lower and its upper edge."""
        both = [(value, spread or 0.0) for value, spread in zip(self.values, self.spreads, strict=True)]
        return [value - spread for value, spread in both], [value + spread for value, spread in both]


@dataclass(frozen=True)
class Points:
    """A scatter.

    Parameters
    ----------
    texts
        One a point: shown when it is pointed at or, with `places`, beside it.
    places
        Side of the point that its text stands on: `right`, `left`, `above` or `below`.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    texts: tuple[str, ...]
    style: Style
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A heat map over the panel's categories (along x) and `rows` (along y); None where a value is missing."""

    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    spreads: tuple[tuple[float | None, ...], ...]


Mark = Bars | Line | Points | Grid


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Parameters
    ----------
    categories
        Labels of the positions 0, 1, ... along x, or along y in a `horizontal` panel, there from the top; without
        any, the axis is one of numbers.
    marks
        Of lines, the first lies on top.
    ticks
        Numbers to mark on an x axis without categories; as many as fit by default.
    bare
        Whether the axes mean nothing and are not drawn.
    """

    title: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]
    categories: tuple[str, ...] = ()
    horizontal: bool = False
    log_x: bool = False
    ticks: tuple[float, ...] = ()
    bare: bool = False

    @property
    def labelled(self) -> bool:
        """Whether each bar's value is written at its end."""
        return self.horizontal or len(self.marks) * len(self.categories) <= LABELLED

    @property
    def banded(self) -> bool:
        """Whether lines lie in bands."""
        return len(self.marks) <= BANDED

    def bar_places(self, index: int) -> tuple[list[float], float]:
        """Middles of the bars of the n-th mark, and the width of each."""
        width = GROUP / len(self.marks)
        first = (index - (len(self.marks) - 1) / 2) * width
        return [place + first for place in range(len(self.categories))], width if len(self.marks) == 1 else 0.92 * width


@dataclass(frozen=True)
class Chart:
    """A figure of a report.

    Parameters
    ----------
    name
        Of its files, without an ending.
    height
        Of a panel, in pixels of a page about 900 wide.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    height: int = 340

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of panels: up to three beside each other, four as two by two."""
        count = len(self.panels)
        columns = 2 if count in (2, 4) else min(count, 3)
        return -(-count // columns), columns


def number(value: float | None) -> str:
    """Four decimals, or nothing."""
    return "" if value is None else f"{value:.4f}"


def with_spread(value: float | None, spread: float | None) -> str:
    """`0.0744 ± 0.0030`, or the value alone."""
    return number(value) if spread is None else f"{number(value)} ± {spread:.4f}"
