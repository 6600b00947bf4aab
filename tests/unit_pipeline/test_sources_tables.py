import gzip
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.settings import DatasetSettings, validate
from pipeline.sources import RawTables, SourceError, read_source, tables

Write = Callable[[Path], None]


def read(folder: Path, bad_share: float = 1.0, **files: tuple[str, bytes | pl.DataFrame, dict[str, str]]) -> RawTables:
    """Read a source of files given as (name, content, column map)."""
    source: dict = {"kind": "tables"}
    for part, (name, content, columns) in files.items():
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.write_parquet(path)
        source[part] = {"path": str(path), "columns": columns}
    settings = {"title": "t", "source": source, "raw": {"max_bad_share": bad_share}}
    return read_source(validate(DatasetSettings, settings, "test"), folder / "out", folder)


ROWS = [
    {"who": "007", "what": 'Zoë, the "B"', "stars": 4.5, "when": 1529193600, "part": "trn"},
    {"who": "7", "what": "日本", "stars": None, "when": None, "part": "tst"},
]
COLUMNS = {"user": "who", "item": "what", "rating": "stars", "timestamp": "when", "split": "part"}
CSV = 'who,what,stars,when,part\n007,"Zoë, the ""B""",4.5,1529193600,trn\n7,日本,,,tst\n'.encode()
TSV = 'who\twhat\tstars\twhen\tpart\r\n007\t"Zoë, the ""B"""\t4.5\t2018-06-17\ttrn\r\n7\t日本\t\tNaN\ttst\r\n'.encode()
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("i.csv", CSV),
        ("i.csv", b"\xef\xbb\xbf" + CSV),
        ("i.csv.gz", gzip.compress(CSV)),
        ("i.tsv", TSV),
        ("i.tsv.gz", gzip.compress(TSV)),
        ("i.jsonl", JSONL),
        ("i.jsonl.gz", gzip.compress(JSONL)),
        ("i.parquet", pl.DataFrame(ROWS)),
    ],
    ids=["csv", "csv with byte order mark", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "parquet"],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    tables = read(tmp_path, bad_share=0.0, interactions=(name, content, COLUMNS))
    assert pl.read_parquet(tables.reviews).rows() == [
        ("007", 'Zoë, the "B"', 4.5, 1529193600, None, None, "train"),
        ("7", "日本", None, None, None, None, "test"),
    ]


@pytest.mark.parametrize("rows", [1, 4], ids=["a row at a time", "all rows at once"])
@pytest.mark.parametrize("many", [pa.list_, pa.large_list])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str
)
def test_texts_of_every_arrow_type_are_read(tmp_path, monkeypatch, kind, many, rows):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 20 if rows == 1 else 1000)
    labels = [["Food", "Tea"], None, [], ["Tea", None]]
    content = {"item": ["ä", "b", "c", "d"], "title": pa.array(["Green tea", None, "", "Green tea"]).cast(kind)}
    inner = pa.string() if pa.types.is_dictionary(kind) else kind
    buffer = io.BytesIO()
    pq.write_table(pa.table({**content, "categories": pa.array(labels, many(inner))}), buffer)
    read_tables = read(
        tmp_path, 0.0, interactions=("i.csv", b"user,item\nu,d\n", {}), items=("m.parquet", buffer.getvalue(), {})
    )
    items = pl.read_parquet(read_tables.items).select("item", "title", "categories").rows()
    assert items == [
        ("ä", "Green tea", ["Food", "Tea"]),
        ("b", None, None),
        ("c", None, None),
        ("d", "Green tea", ["Tea"]),
    ]


def test_numbers_as_ids_become_text(tmp_path):
    frame = pl.DataFrame({"user": [1.0, None], "item": [12, 13], "timestamp": [datetime(2018, 6, 17)] * 2})
    tables = read(tmp_path, interactions=("i.parquet", frame, {}))
    assert pl.read_parquet(tables.reviews).select("user", "item", "timestamp").rows() == [("1", "12", 1529193600)]
    assert tables.rejected == {"i.parquet": {"missing user": 1}}
    assert datetime(2018, 6, 17, tzinfo=UTC).timestamp() == 1529193600


def test_bad_rows_are_set_aside_with_their_lines(tmp_path):
    content = (
        b"user,item,split,timestamp\n"
        b"a,x,train,1\n"
        b",x,train,1\n"
        b'a,"two\nlines",train,1\n'
        b"a,y,dev,1\n"
        b"a,z\n"
        b"\xff,z,train,1\n"
        b"\n"
        b"a,z,,1\n"
        b"a,z,test,later\n"
    )
    tables = read(tmp_path, interactions=("i.csv", content, {}))
    assert pl.read_parquet(tables.reviews).select("user", "item", "split").rows() == [
        ("a", "x", "train"),
        ("a", "two\nlines", "train"),
        ("a", "z", None),
    ]
    assert pl.read_parquet(tables.quarantine).select("line", "reason").rows() == [
        (3, "missing user"),
        (6, "split is not one of split_names"),
        (7, "not 4 fields"),
        (8, "not valid UTF-8"),
        (11, "timestamp is not a time"),
    ]
    assert tables.read == {"i.csv": 8}


def test_profiles_items_and_images(tmp_path):
    vectors = [[1.0, 2.0], [3.0, 4.0], [1.0], [float("nan"), 0.0], None, [5.0, 6.0]]
    images = pl.DataFrame({"item": ["x", "y", "a", "b", "c", "x"], "vector": vectors})
    things = (
        b'{"iid": 1, "name": "One", "categories": ["a", "b"]}\n{"iid": 2, "name": "Two"}\n{"iid": 1, "name": "Uno"}\n'
    )
    tables = read(
        tmp_path,
        interactions=("i.csv", b"user,item\nu,1\n", {}),
        items=("things.jsonl", things, {"item": "iid", "title": "name"}),
        item_profiles=("ip.csv", b"item,profile\n1,good\n2,\n1,again\n", {}),
        user_profiles=("up.csv", b"user,profile\nu,likes it\n", {}),
        images=("v.parquet", images, {}),
    )
    assert pl.read_parquet(tables.items).rows() == [
        ("1", "One", None, ["a", "b"], None, None),
        ("2", "Two", None, None, None, None),
    ]
    assert pl.read_parquet(tables.profiles).rows() == [("item", "1", "good"), ("user", "u", "likes it")]
    found = pl.read_parquet(tables.images)
    assert found["item"].to_list() == ["x", "y"]
    np.testing.assert_array_equal(found["vector"].to_numpy(), [[1, 2], [3, 4]])
    assert tables.rejected == {
        "ip.csv": {"missing profile": 1},
        "v.parquet": {"vector is missing or of another length than the first one": 2, "vector is not finite": 1},
    }
    assert tables.set_aside == {
        "things.jsonl": {"second row of one item": 1},
        "ip.csv": {"second row of one item": 1},
        "v.parquet": {"second row of one item": 1},
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_number_that_cannot_be_used_sets_its_vector_aside(tmp_path, value, place):
    vectors = np.arange(1.0, 10.0).reshape(3, 3).tolist()
    vectors[place][1] = value
    images = pl.DataFrame({"item": ["x", "y", "z"], "vector": vectors})
    content = {"interactions": ("i.csv", b"user,item\nu,1\n", {}), "images": ("v.parquet", images, {})}
    tables = read(tmp_path, **content)
    assert tables.rejected == {"v.parquet": {"vector is not finite": 1}}
    assert pl.read_parquet(tables.quarantine).rows() == [("v.parquet", place + 1, "vector is not finite", "xyz"[place])]
    kept = pl.read_parquet(tables.images)
    assert kept["item"].to_list() == [name for name in "xyz" if name != "xyz"[place]]
    assert np.isfinite(kept["vector"].to_numpy()).all()
    with pytest.raises(SourceError, match=r"v\.parquet: 1 of 3 rows .*vector is not finite \(1\).*quarantine\.parquet"):
        read(tmp_path, bad_share=0.01, **content)


@pytest.mark.parametrize("vector", [["1", "2"], [[1.0], [2.0]], [{"a": 1}], [b"1"], [True], 1.0, "1 2"])
def test_vectors_of_something_else_are_named(tmp_path, vector):
    images = pl.DataFrame({"item": ["x"], "vector": [vector]})
    with pytest.raises(SourceError, match=r"v\.parquet: column vector holds .*, not lists of numbers"):
        read(tmp_path, interactions=("i.csv", b"user,item\nu,1\n", {}), images=("v.parquet", images, {}))


def test_images_of_fixed_size_over_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.tables.IMAGE_ROWS", 2)
    vectors = np.arange(15, dtype=np.float32).reshape(5, 3)
    images = pl.DataFrame(
        {"item": list("abcde"), "vector": vectors}, schema_overrides={"vector": pl.Array(pl.Float32, 3)}
    )
    tables = read(tmp_path, interactions=("i.csv", b"user,item\nu,1\n", {}), images=("v.parquet", images, {}))
    np.testing.assert_array_equal(pl.read_parquet(tables.images)["vector"].to_numpy(), vectors)


def test_categories_in_one_field_are_taken_apart(tmp_path):
    content = b"item,categories,price\n1,Toys | Games|Toys,9.50\n"
    tables = read(tmp_path, interactions=("i.csv", b"user,item\nu,1\n", {}), items=("t.csv", content, {}))
    assert pl.read_parquet(tables.items).row(0) == ("1", None, None, ["Toys", "Games"], None, "9.50")


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("i.csv", b"uid,item\n1,2\n", {}, r"i.csv: no column user; it has uid, item.*columns: \{user: NAME\}"),
        ("i.csv", b"", {}, "i.csv: no column user; it has none"),
        ("i.csv", b"user,item\n", {"rating": "stars"}, r"i.csv: no column stars \(for rating\); it has user, item"),
        ("i.csv", b"user,item\n", {"usr": "user"}, "i.csv: `columns` maps usr, which is none of user, item"),
        ("i.jsonl", b'{"user": 1}\n', {}, "i.jsonl: no column item; it has user"),
        ("i.parquet", pl.DataFrame({"user": ["a"]}), {}, "i.parquet: no column item; it has user"),
        ("i.parquet", b"not parquet", {}, "i.parquet: not a readable Parquet file"),
        ("i.xlsx", b"", {}, "i.xlsx: a table must end in .parquet, .csv"),
    ],
)
def test_a_table_that_does_not_fit_is_named_with_what_it_has(tmp_path, name, content, columns, message):
    with pytest.raises(SourceError, match=message):
        read(tmp_path, interactions=(name, content, columns))


def test_quotation_mark_left_open_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.tables.MAX_FIELD_CHARACTERS", 1000)
    content = b'user,item\na,x\nb,"y\n' + b"c,z\n" * 1000
    with pytest.raises(SourceError, match=r"i.csv, line \d+: .*is a quotation mark left open"):
        read(tmp_path, interactions=("i.csv", content, {}))


def test_unmapped_split_names_stop_the_run(tmp_path):
    rows = b"".join(b"a,%d,fold1\n" % number for number in range(10))
    with pytest.raises(SourceError, match=r"i.csv: 10 of 10 rows.*split is not one of split_names \(10\)"):
        read(tmp_path, bad_share=0.01, interactions=("i.csv", b"user,item,split\n" + rows, {}))
