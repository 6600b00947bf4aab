from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pipeline import content, fingerprint

ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.text(max_size=5)),
        st.one_of(st.none(), st.integers(-5, 5)),
        st.one_of(st.none(), st.lists(st.text(max_size=2), max_size=3)),
    ),
    max_size=12,
)
SCHEMA = {"text": pl.String, "number": pl.Int32, "words": pl.List(pl.String)}


def frame(rows: list[tuple]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@given(rows=ROWS, cut=st.integers(0, 12))
def test_chunks_make_no_difference(rows, cut):
    whole = frame(rows)
    chunked = pl.concat([whole[:cut], whole[cut:]], rechunk=False)
    assert content.table_version(whole) == content.table_version(chunked)


@given(first=ROWS, second=ROWS)
def test_equal_exactly_when_content_is(first, second):
    same = frame(first).equals(frame(second), null_equal=True)
    assert (content.table_version(frame(first)) == content.table_version(frame(second))) == same


@pytest.mark.parametrize("row_group", [1, 3, 100])
def test_a_file_has_the_version_of_its_rows(tmp_path: Path, row_group: int):
    table = frame([("a", 1, ["x", "y"]), (None, None, None), ("b", 2, []), ("", 0, [""])])
    path = tmp_path / "table.parquet"
    pq.write_table(table.to_arrow(), path, row_group_size=row_group)
    assert content.file_version(path) == content.table_version(table)
    small_offsets = pa.table({"text": pa.array(["a", None, "b", ""], pa.string())})
    assert content.table_version(small_offsets) == content.table_version(table.select("text"))


def test_fixed_size_lists_count_values():
    vectors = [np.arange(6, dtype=np.float32), np.arange(6, dtype=np.float32)]
    vectors[1][5] = 9
    tables = [pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(v), 2)}) for v in vectors]
    assert content.table_version(tables[0]) != content.table_version(tables[1])


def test_column_names_and_order_count():
    table = pl.DataFrame({"a": [1], "b": [1]})
    assert content.table_version(table) != content.table_version(table.rename({"a": "c"}))
    assert content.table_version(table) != content.table_version(table.select("b", "a"))


def test_graph_version_ignores_edge_order_only():
    rows, columns = [0, 0, 2], [2, 1, 0]
    graph = csr_array((np.ones(3, np.float32), (rows, columns)), shape=(3, 3))
    shuffled = csr_array((np.ones(3, np.float32), (rows[::-1], columns[::-1])), shape=(3, 3))
    assert content.graph_version(graph) == content.graph_version(shuffled)
    assert content.graph_version(graph) != content.graph_version(csr_array(graph.T))


def test_code_version_sees_code_and_nothing_else():
    version = fingerprint.code_version
    base = version('"""Doc."""\n\n\ndef stage(x):\n    """Do."""\n    return x + 1\n')
    assert version('"""Other."""\n# why\ndef stage(x):\n    # note\n    return (x +\n        1)\n') == base
    assert version('"""Doc."""\n\n\ndef stage(x):\n    """Do."""\n    return x + 2\n') != base


def test_settings_version_ignores_key_order():
    assert fingerprint.settings_version({"a": 1, "b": 2}) == fingerprint.settings_version({"b": 2, "a": 1})
    assert fingerprint.settings_version({"a": 1}) != fingerprint.settings_version({"a": 2})
