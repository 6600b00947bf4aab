"""Every reader on damaged files: a result, or an error that names the file; never anything else, and never a hang."""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from scipy.sparse import csr_matrix

from pipeline.settings import DatasetSettings, validate
from pipeline.sources import SourceError, read_source

EXAMPLES = 150  # files tried for each reader and format

REVIEWS = [
    {"reviewerID": "0A", "asin": "é,1", "overall": 5.0, "unixReviewTime": 1529193600, "reviewText": "a cup"},
    {"reviewerID": "1", "asin": "2", "overall": 1, "reviewTime": "06 17, 2018", "summary": None},
]
ITEMS = [{"asin": "2", "title": "Cup", "categories": [["Home", "Kitchen"]], "price": "$3.50"}]
YELP = [{"user_id": "u", "business_id": "b", "stars": 4.0, "date": "2018-06-17 10:00:00", "text": "good"}]
PLACES = [{"business_id": "b", "name": "Bar", "categories": "Bars, Pubs", "attributes": {"WiFi": "u'free'"}}]
PAIRS = [{"user": "007", "item": "é", "rating": 4.5, "timestamp": 1529193600, "split": "train"}] * 3
MATRICES = {name: csr_matrix(np.eye(3, dtype=np.float32)) for name in ("trn_mat.pkl", "val_mat.pkl", "tst_mat.pkl")}
PROFILES = {"usr_prf.pkl": {0: {"profile": "tea"}}, "itm_prf.pkl": {1: "a book"}}


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_parquet(buffer)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in (MATRICES | PROFILES).items():
            file.writestr(name, pickle.dumps(content))
    return buffer.getvalue()


IMAGES = b"".join(name.ljust(10).encode() + np.ones(4096, "<f4").tobytes() for name in ("2", "3"))
PICKLES = {name: pickle.dumps(content) for name, content in (MATRICES | PROFILES).items()}

# Reader -> its source, the file that is damaged, and the files beside it.
CASES: dict[str, tuple[dict[str, Any], str, dict[str, bytes]]] = {
    "amazon": ({"reviews": "r.json", "metadata": "m.json"}, "r.json", {"m.json": json_lines(ITEMS)}),
    "amazon gzip": ({"reviews": "r.json.gz", "metadata": "m.json"}, "r.json.gz", {"m.json": json_lines(ITEMS)}),
    "amazon metadata": ({"reviews": "r.json", "metadata": "m.json"}, "m.json", {"r.json": json_lines(REVIEWS)}),
    "amazon images": ({"reviews": "r.json", "images": "i.b"}, "i.b", {"r.json": json_lines(REVIEWS)}),
    "yelp": ({"reviews": "r.json", "business": "b.json"}, "r.json", {"b.json": json_lines(PLACES)}),
    "yelp businesses": ({"reviews": "r.json", "business": "b.json"}, "b.json", {"r.json": json_lines(YELP)}),
    "tables csv": ({"interactions": "i.csv"}, "i.csv", {}),
    "tables jsonl": ({"interactions": "i.jsonl"}, "i.jsonl", {}),
    "tables parquet": ({"interactions": "i.parquet"}, "i.parquet", {}),
    "tables images": ({"interactions": "i.jsonl", "images": "v.parquet"}, "v.parquet", {"i.jsonl": json_lines(PAIRS)}),
    "rlmrec matrix": ({"folder": "."}, "trn_mat.pkl", PICKLES),
    "rlmrec profiles": ({"folder": "."}, "usr_prf.pkl", PICKLES),
    "rlmrec archive": ({"folder": "a.zip"}, "a.zip", {}),
}
WHOLE: dict[str, bytes] = {
    "amazon": json_lines(REVIEWS),
    "amazon gzip": gzip.compress(json_lines(REVIEWS)),
    "amazon metadata": json_lines(ITEMS),
    "amazon images": IMAGES,
    "yelp": json_lines(YELP),
    "yelp businesses": json_lines(PLACES),
    "tables csv": b'user,item,rating,timestamp,split\n007,caf\xc3\xa9,4.5,1529193600,train\n7,"a, b",,,test\n',
    "tables jsonl": json_lines(PAIRS),
    "tables parquet": parquet(PAIRS),
    "tables images": parquet([{"item": "é", "vector": [0.5, 1.0]}, {"item": "f", "vector": [0.5, 2.0]}]),
    "rlmrec matrix": PICKLES["trn_mat.pkl"],
    "rlmrec profiles": PICKLES["usr_prf.pkl"],
    "rlmrec archive": archive(),
}


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with a few bytes overwritten, cut out, put in or repeated; now and then any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        piece = draw(st.one_of(st.binary(max_size=8), st.just(bytes(content[start:end]) * 3), st.just(b"")))
        content[start:end] = piece
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 4)) == 0 else content)


def source(case: str, folder: Path) -> DatasetSettings:
    """Settings that read a case's files in a folder."""
    described = {name: {"path": str(folder / file)} for name, file in CASES[case][0].items()}
    content = {"title": "t", "source": {"kind": case.split()[0], **described}, "raw": {"max_bad_share": 1}}
    return validate(DatasetSettings, content, "test")


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(tmp_path: Path, case: str, data: st.DataObject):
    _, name, beside = CASES[case]
    for other, content in beside.items():
        (tmp_path / other).write_bytes(content)
    (tmp_path / name).write_bytes(data.draw(damaged(WHOLE[case])))
    problem = ""
    try:
        tables = read_source(source(case, tmp_path), tmp_path / "out", tmp_path)
    except SourceError as error:
        problem = str(error)
    if problem:
        assert name in problem
    else:
        assert pl.read_parquet(tables.reviews).height == tables.rows["reviews"]


@pytest.mark.parametrize("case", CASES)
def test_the_files_are_good_before_they_are_damaged(tmp_path: Path, case: str):
    for name, content in (CASES[case][2] | {CASES[case][1]: WHOLE[case]}).items():
        (tmp_path / name).write_bytes(content)
    tables = read_source(source(case, tmp_path), tmp_path / "out", tmp_path)
    assert tables.rows["reviews"] > 0
    assert not tables.rejected
