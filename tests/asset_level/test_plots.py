import base64
import io
import re

import numpy as np
import pytest
from matplotlib.axes import Axes
from scipy.sparse import csr_array

from assets.plots import degree_histogram


@pytest.mark.parametrize("largest", [0, 3, 59, 60, 87, 500])
def test_every_node_is_in_the_histogram(largest: int, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    draw = Axes.hist
    monkeypatch.setattr(Axes, "hist", lambda *given, **named: drawn.append(draw(*given, **named)) or drawn[-1])
    graph = np.tri(largest + 1, k=-1)  # out-degrees 0 to `largest`, each once
    text = degree_histogram(csr_array(graph))
    assert [counts.sum() for counts, _, _ in drawn] == [largest + 1, largest + 1]
    assert all(len(counts) <= 60 for counts, _, _ in drawn)
    picture = re.fullmatch(r"!\[degrees\]\(data:image/png;base64,(.+)\)", text)
    assert picture is not None
    assert io.BytesIO(base64.b64decode(picture[1])).read(8) == b"\x89PNG\r\n\x1a\n"
