"""Small files that unpack to gigabytes: what cannot be used is set aside or named, and memory stays bounded."""

import gzip
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import coo_matrix, csr_matrix

from pipeline.settings import DatasetSettings, validate
from pipeline.sources import RawTables, SourceError, read_source
from pipeline.sources.lines import MAX_LINE_BYTES
from pipeline.sources.pickles import MAX_STEPS

PEAK_BYTES = 350e6  # of a whole process, a good third of it Python, numpy and pyarrow
MEMBER_BYTES = 16 << 20  # of a line; a gzip file may be many gzip files, one after the other

READER = """\
import json, sys
from pathlib import Path
from pipeline.settings import DatasetSettings, validate
from pipeline.sources import SourceError, read_source
folder = Path(sys.argv[1])
content = {"title": "t", "source": json.loads(sys.argv[2]), "raw": {"max_bad_share": 1}}
try:
    tables = read_source(validate(DatasetSettings, content, "test"), folder / "out", folder)
    told = {"rows": tables.rows, "rejected": tables.rejected}
except SourceError as error:
    told = {"error": str(error)}
status = Path("/proc/self/status").read_text()
print(json.dumps(told | {"peak": int(status.split("VmHWM:")[1].split()[0]) * 1024}))
"""


def read(folder: Path, source: dict) -> dict:
    """What a process of its own reads of a source, or the error, and its peak of memory in bytes."""
    command = [sys.executable, "-c", READER, str(folder), json.dumps(source)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def bomb(path: Path, start: bytes, end: bytes, size: int) -> None:
    """A gzip file of `start`, one line of about `size` bytes, and `end`."""
    packed = gzip.compress(b"x" * MEMBER_BYTES)
    with path.open("wb") as file:
        file.write(gzip.compress(start))
        for _ in range(size // MEMBER_BYTES):
            file.write(packed)
        file.write(gzip.compress(b"\n" + end))
    assert path.stat().st_size < size / 900


@pytest.mark.slow
def test_a_line_of_two_gigabytes_is_set_aside_and_the_next_one_read(tmp_path: Path):
    row = b'{"reviewerID": "A1", "asin": "B1"}\n'
    bomb(tmp_path / "r.json.gz", row, row, 2 << 30)
    found = read(tmp_path, {"kind": "amazon", "reviews": {"path": str(tmp_path / "r.json.gz")}})
    assert (found["rows"]["reviews"], found["rows"]["quarantine"]) == (2, 1)
    assert found["rejected"] == {"r.json.gz": {f"line longer than {MAX_LINE_BYTES} bytes": 1}}
    assert pl.read_parquet(tmp_path / "out/quarantine.parquet").row(0)[:2] == ("r.json.gz", 2)
    assert found["peak"] < PEAK_BYTES


@pytest.mark.slow
def test_a_text_that_a_parquet_file_repeats_is_not_repeated_in_memory(tmp_path: Path):
    """Half a gigabyte of texts, and a row of labels that is one by itself, in a few hundred kilobytes."""
    rows, text, label = 500, "x" * (1 << 20), "y" * (1 << 20)
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    reviews = {"user": [f"u{row % 50}" for row in range(rows)], "item": [f"i{row % 20}" for row in range(rows)]}
    pq.write_table(pa.table({**reviews, "text": texts}), tmp_path / "reviews.parquet")
    labels = [["a", "b"], [label] * 1000, None, ["c", None]]
    items = {"item": ["i0", "i1", "i2", "i3"], "title": ["t", "t", None, "t"], "categories": labels}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    assert sum(path.stat().st_size for path in tmp_path.glob("*.parquet")) < 1 << 20
    files = {name: {"path": str(tmp_path / f"{name}.parquet")} for name in ("reviews", "items")}
    source = {"kind": "tables", "interactions": files["reviews"], "items": files["items"]}
    found = read(tmp_path, source)
    assert found["rows"]["reviews"] == rows
    assert found["rejected"] == {"items.parquet": {f"row longer than {MAX_LINE_BYTES} bytes": 1}}
    kept = pl.read_parquet(tmp_path / "out/items.parquet")
    assert kept["item"].to_list() == ["i0", "i2", "i3"]
    assert found["peak"] < PEAK_BYTES


@pytest.mark.slow
def test_long_texts_are_not_gathered_by_rows_alone(tmp_path: Path):
    """200 reviews of 2 MB, in a file of 400 kB: fewer rows than a batch has."""
    row = json.dumps({"reviewerID": "A1", "asin": "B1", "reviewText": "x" * (2 << 20)}).encode() + b"\n"
    packed = gzip.compress(row)
    (tmp_path / "r.json.gz").write_bytes(packed * 200)
    found = read(tmp_path, {"kind": "amazon", "reviews": {"path": str(tmp_path / "r.json.gz")}})
    assert (found["rows"]["reviews"], found["rejected"]) == (200, {})
    assert found["peak"] < PEAK_BYTES


def test_a_long_line_of_a_csv_table_is_named(tmp_path: Path):
    """A CSV reader asks for whole lines: such a one was held in memory twice over."""
    bomb(tmp_path / "i.csv.gz", b"user,item\nu,1\n", b"u,2\n", 256 << 20)
    found = read(tmp_path, {"kind": "tables", "interactions": {"path": str(tmp_path / "i.csv.gz")}})
    assert found["error"].endswith(f"i.csv.gz, line 3: longer than {MAX_LINE_BYTES} characters; mend or remove it")
    assert found["peak"] < PEAK_BYTES


GOOD = {
    "trn_mat.pkl": csr_matrix(np.eye(3, dtype=np.float32)),
    "val_mat.pkl": csr_matrix(np.eye(3, dtype=np.float32)),
    "tst_mat.pkl": csr_matrix(np.eye(3, dtype=np.float32)),
    "usr_prf.pkl": {0: {"profile": "tea"}},
    "itm_prf.pkl": {0: "a book"},
}


def archive(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for other, value in GOOD.items():
            file.writestr(other, content if other == name else pickle.dumps(value))
    return path


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path):
    path = archive(tmp_path / "a.zip", "trn_mat.pkl", bytes(1 << 20))
    # 1 MB declared to be 2 GB: as good as 2 GB for what reads, and made at once.
    size = (1 << 20).to_bytes(4, "little")
    content = path.read_bytes()
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (2 << 30).to_bytes(4, "little")))
    found = read(tmp_path, {"kind": "rlmrec", "folder": {"path": str(path)}})
    assert found["error"].endswith(
        "a.zip:trn_mat.pkl: more than 1024 MB when unpacked, which no such file has; get it again"
    )
    assert found["peak"] < PEAK_BYTES


def test_a_zip_member_that_says_it_is_smaller_than_it_is_is_named(tmp_path: Path):
    path = archive(tmp_path / "a.zip", "trn_mat.pkl", bytes(1 << 20))
    path.write_bytes(path.read_bytes().replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    found = read(tmp_path, {"kind": "rlmrec", "folder": {"path": str(path)}})
    assert "a.zip:trn_mat.pkl: not a readable pickle" in found["error"]


class Repeated:
    """Pickled as an array of ten billion numbers that are all one in memory."""

    def __reduce__(self) -> tuple:
        return np.ndarray, ((10**10,), "i4", b"\1\0\0\0", 0, (0,))


def read_folder(folder: Path, **changed: object) -> RawTables:
    for name, content in GOOD.items():
        (folder / name).write_bytes(pickle.dumps(changed.get(name.removesuffix(".pkl"), content)))
    source = {"kind": "rlmrec", "folder": {"path": str(folder)}}
    content = {"title": "t", "source": source, "raw": {"max_bad_share": 1}}
    return read_source(validate(DatasetSettings, content, "test"), folder / "out", folder)


def read_in(folder: Path, changed: dict[str, bytes]) -> dict:
    """`read` of a folder of RLMRec's with some of its files changed."""
    for name, content in GOOD.items():
        (folder / name).write_bytes(changed.get(name, pickle.dumps(content)))
    return read(folder, {"kind": "rlmrec", "folder": {"path": str(folder)}})


@pytest.mark.parametrize("form", [coo_matrix, csr_matrix])
def test_one_number_that_stands_for_a_long_array_is_refused(tmp_path: Path, form: type):
    matrix = form(np.eye(3, dtype=np.float32))
    matrix.data = matrix.indices = Repeated()
    with pytest.raises(SourceError, match=r"trn_mat\.pkl: the pickle holds an array without bytes of its own"):
        read_folder(tmp_path, trn_mat=matrix)


def test_a_value_kept_under_a_huge_number_is_refused(tmp_path: Path):
    """Python's unpickler in C would make room for two billion values."""
    found = read_in(tmp_path, {"trn_mat.pkl": b"\x80\x04Nr\xff\xff\xff\x7f."})
    assert found["error"].endswith("trn_mat.pkl: expected a scipy sparse matrix, found NoneType")
    assert found["peak"] < PEAK_BYTES


HELD_BY_ITSELF = b"N" + b"2\x86" * 26  # a tuple that holds 2^26 times None
COPIES = 200
FEW_BYTES = {
    "text of a tuple": b"cbuiltins\nstr\n" + HELD_BY_ITSELF + b"\x85R",
    "lists of bytes": b"cbuiltins\nlist\n\x940B" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20) + b"\x940"
    b"(" + b"h\0h\1\x85R" * COPIES + b"l",
    "numbers of text": b"cbuiltins\nint\n\x940X" + (1 << 23).to_bytes(4, "little") + b"f" * (1 << 23) + b"\x940"
    b"(" + b"h\0h\1K\x10\x86R" * COPIES + b"l",
    "a matrix of a tuple": b"cscipy.sparse\ncsr_matrix\n)\x81}(X\4\0\0\0dataNX\7\0\0\0indices"
    + HELD_BY_ITSELF
    + b"X\6\0\0\0indptrNX\6\0\0\0_shapeK\1K\1\x86ub",
    "attributes": b"}(" + b"".join(b"X\x02\0\0\0%02dN" % n for n in range(100)) + b"u\x940"
    b"cscipy.sparse\ncsr_matrix\n\x940(" + b"h\1)\x81h\0b" * (1 << 18) + b"l",
}


@pytest.mark.parametrize("content", FEW_BYTES.values(), ids=FEW_BYTES)
def test_a_pickle_cannot_multiply_what_it_holds(tmp_path: Path, content: bytes):
    """A few bytes to a few megabytes that would unpack to one gigabyte or more."""
    found = read_in(tmp_path, {"trn_mat.pkl": b"\x80\x04" + content + b"."})
    assert "trn_mat.pkl: " in found["error"]
    assert found["peak"] < PEAK_BYTES


def test_the_values_of_a_pickle_are_counted(tmp_path: Path):
    """Empty containers are a byte each, of which a zip archive holds a thousand in one."""
    path = archive(tmp_path / "a.zip", "trn_mat.pkl", b"\x80\x04(" + b"}" * MAX_STEPS + b"l.")
    assert path.stat().st_size < 20_000
    found = read(tmp_path, {"kind": "rlmrec", "folder": {"path": str(path)}})
    assert f"a.zip:trn_mat.pkl: the pickle takes more than {MAX_STEPS} steps" in found["error"]


def test_a_shape_of_something_else_is_no_shape(tmp_path: Path):
    """The product of a text and a number, as that of a shape's lengths, is a long text."""
    matrix = pickle.dumps(GOOD["trn_mat.pkl"], protocol=3)
    assert matrix.count(b"K\x03\x85") == 2
    found = read_in(tmp_path, {"trn_mat.pkl": matrix.replace(b"K\x03\x85", b"X\1\0\0\0aJ\0\0\0\x7f\x86")})
    assert "trn_mat.pkl: the pickle holds an array of shape ['a', 2130706432] with 3 values" in found["error"]
    assert found["peak"] < PEAK_BYTES


def test_a_pickle_cannot_choose_what_makes_its_matrix(tmp_path: Path):
    matrix = csr_matrix(np.eye(3, dtype=np.float32))
    matrix.form = "bsr_matrix"
    read_folder(tmp_path, trn_mat=matrix)  # what it says of itself is left out
    changed = b"\x80\x04cscipy.sparse\ncsr_matrix\nN}X\4\0\0\0formX\3\0\0\0eyes\x86b."
    found = read_in(tmp_path, {"trn_mat.pkl": changed})
    assert found["error"].endswith("trn_mat.pkl: the pickle sets attributes of type, which no such file does")


@pytest.mark.parametrize(
    "key",
    [HELD_BY_ITSELF, b"\x8b" + (2000).to_bytes(4, "little") + b"\1" * 2000, b"(\x91"],
    ids=["tuple", "long", "set"],
)
def test_profiles_are_kept_under_ids(tmp_path: Path, key: bytes):
    found = read_in(tmp_path, {"usr_prf.pkl": b"\x80\x04}" + key + b"X\1\0\0\0as."})
    assert "usr_prf.pkl: " in found["error"]


def test_lists_that_hold_one_another_are_no_profile(tmp_path: Path):
    nested: list = ["tea"]
    for _ in range(60):  # 2^60 words when written out
        nested = [nested, nested]
    tables = read_folder(tmp_path, usr_prf={0: {"profile": nested}, 1: nested, 2: "tea"})
    assert tables.rejected == {"usr_prf.pkl": {"missing profile": 2}}
    assert pl.read_parquet(tables.profiles)["id"].to_list() == ["2", "0"]
