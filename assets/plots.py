"""Small pictures for the two UIs: degree histograms, loss and metric curves."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array


def degree_histogram(graph: csr_array) -> str:
    """Histogram of in- and out-degrees, as Markdown with the picture inside."""
    drawn, (axes,) = figure(6, 2.6)
    degrees = {"out": np.diff(graph.indptr), "in": np.bincount(graph.indices, minlength=graph.shape[1])}
    top = max(int(np.quantile(degree, 0.995)) for degree in degrees.values())
    width = -(-(top + 1) // 60)  # at most 60 bars
    edges = np.arange(0, top + width + 1, width) - 0.5  # bars stand over their degree, the last one holds `top`
    for name, degree in degrees.items():
        axes.hist(np.minimum(degree, top), bins=edges, alpha=0.6, label=f"{name}-degree")
    axes.set(xlabel=f"degree (larger ones are counted at {top})", ylabel="nodes")
    axes.legend(frameon=False)
    return embedded("degrees", png(drawn))


def embedded(name: str, picture: bytes) -> str:
    """A PNG as Markdown with the picture inside."""
    return f"![{name}](data:image/png;base64,{base64.b64encode(picture).decode()})"


def curves(series: Mapping[str, Sequence[tuple[int, float]]], title: str, best_epoch: int) -> Any:
    """One line a series of (epoch, value); the best epoch is marked. Gives a matplotlib figure."""
    drawn, (axes,) = figure(7, 4)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
    axes.axvline(best_epoch, color="gray", linestyle=":", linewidth=1, label=f"best epoch ({best_epoch})")
    axes.set(xlabel="epoch", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return drawn


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """An empty matplotlib figure, in inches, and its panels, row by row."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window system

    drawn = Figure(figsize=(width, height), layout="constrained")
    panels = list(drawn.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return drawn, panels


def png(drawn: Any) -> bytes:
    """The bytes of a picture, the same for the same figure."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
