import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.sparse

from pipeline.settings import DatasetSettings, validate
from pipeline.sources import RawTables, SourceError, pickles, read_source

MATRICES = {
    "trn_mat.pkl": scipy.sparse.coo_matrix((np.ones(3), ([0, 0, 1], [0, 2, 1])), shape=(2, 3)),
    "val_mat.pkl": scipy.sparse.csr_matrix(np.array([[0, 0, 0], [1, 0, 0]], dtype=np.float32)),
    "tst_mat.pkl": scipy.sparse.coo_array((np.array([1.0, 0.0]), ([0, 1], [1, 2])), shape=(2, 3)),
}
PROFILES = {
    "usr_prf.pkl": {0: {"profile": "likes tea", "reasoning": "reads"}, np.int64(1): {"profile": "", "reasoning": ""}},
    "itm_prf.pkl": OrderedDict({0: {"profile": "a book"}, 2: "another book"}),
}
INTERACTIONS = [
    ("0", "0", "train"),
    ("0", "2", "train"),
    ("1", "1", "train"),
    ("1", "0", "valid"),
    ("0", "1", "test"),
]


def files(protocol: int = pickle.DEFAULT_PROTOCOL) -> dict[str, bytes]:
    return {name: pickle.dumps(content, protocol) for name, content in (MATRICES | PROFILES).items()}


def write_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def read(folder: Path, path: Path, member: str | None = None) -> RawTables:
    source = {"kind": "rlmrec", "folder": {"path": str(path)}, "member": member}
    content = {"title": "t", "source": source, "raw": {"max_bad_share": 1}}
    return read_source(validate(DatasetSettings, content, "test"), folder / "out", folder)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_folder_of_each_pickle_protocol_with_bytes(tmp_path, protocol):
    tables = read(tmp_path, write_folder(tmp_path / "amazon", files(protocol)))
    assert pl.read_parquet(tables.reviews).select("user", "item", "split").rows() == INTERACTIONS
    assert pl.read_parquet(tables.profiles).rows() == [
        ("user", "0", "likes tea"),
        ("item", "0", "a book"),
        ("item", "2", "another book"),
    ]
    assert tables.rejected == {"usr_prf.pkl": {"missing profile": 1}}


def test_former_module_paths_are_understood(tmp_path):
    old = ((b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"), (b"scipy.sparse._", b"scipy.sparse."))
    contents = files(protocol=3)  # the last in which names of modules are plain lines
    for name, content in contents.items():
        for now, before in old:
            assert now in content or name in PROFILES
            contents[name] = content = content.replace(now, before)
    tables = read(tmp_path, write_folder(tmp_path / "amazon", contents))
    assert pl.read_parquet(tables.reviews).select("user", "item", "split").rows() == INTERACTIONS


@pytest.mark.parametrize("member", ["data/amazon", "amazon"])
def test_zip_is_read_in_place(tmp_path, member):
    others = {f"data/yelp/{name}": b"not read" for name in files()}
    path = write_zip(
        tmp_path / "data.zip", {f"data/amazon/{name}": content for name, content in files().items()} | others
    )
    before = set(tmp_path.iterdir())
    tables = read(tmp_path, path, member)
    assert pl.read_parquet(tables.reviews).select("user", "item", "split").rows() == INTERACTIONS
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}


def test_archive_paths_that_climb_out_lead_nowhere(tmp_path):
    path = write_zip(tmp_path / "data.zip", {f"../../{name}": content for name, content in files().items()})
    inner = tmp_path / "a" / "b"
    read(inner, path, "../..")
    assert {found.name for found in tmp_path.rglob("*") if found.is_file()} == {
        "data.zip",
        *(f"{name}.parquet" for name in ("reviews", "items", "profiles", "images", "quarantine")),
    }


def test_an_archive_of_a_version_to_come_is_named(tmp_path):
    path = write_zip(tmp_path / "data.zip", {"trn_mat.pkl": b""})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # the version needed to unpack the first file
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"data\.zip: neither a folder nor a zip archive \(zip file version 9\.9\)"):
        read(tmp_path, path)


def test_unknown_member_names_the_known_ones(tmp_path):
    path = write_zip(tmp_path / "data.zip", {"data/amazon/trn_mat.pkl": b"", "data/yelp/trn_mat.pkl": b""})
    with pytest.raises(SourceError, match=r"source.member to one of its datasets: data/amazon, data/yelp"):
        read(tmp_path, path, "steam")


def test_missing_file_names_what_the_folder_must_hold(tmp_path):
    contents = files()
    del contents["itm_prf.pkl"]
    with pytest.raises(SourceError, match=r"itm_prf.pkl: no such file; the folder must hold trn_mat.pkl"):
        read(tmp_path, write_folder(tmp_path / "amazon", contents))


class RunsACommand:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that would run code, each through another door."""
    return {
        "posix.system": pickle.dumps(RunsACommand(marker)),
        "builtins.eval": b"cbuiltins\neval\n(S'open(%r, \"w\")'\ntR." % str(marker).encode(),
        "builtins.getattr": b"cbuiltins\ngetattr\n.",
        "numpy.load": b"cnumpy\nload\n.",
        "numpy.ndarray.tofile": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        "scipy.sparse.load_npz": b"cscipy.sparse\nload_npz\n.",
    }


@pytest.mark.parametrize("name", hostile(Path()))
def test_pickle_that_asks_for_anything_else_is_refused(tmp_path, name):
    marker = tmp_path / "marker"
    contents = files() | {"usr_prf.pkl": hostile(marker)[name]}
    with pytest.raises(SourceError, match=r"usr_prf\.pkl: the pickle asks for "):
        read(tmp_path, write_folder(tmp_path / "amazon", contents))
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(MATRICES["trn_mat.pkl"])[:-40], pickle.dumps([1])])
def test_damaged_matrix_is_named(tmp_path, content):
    with pytest.raises(SourceError, match=r"val_mat\.pkl"):
        read(tmp_path, write_folder(tmp_path / "amazon", files() | {"val_mat.pkl": content}))


@pytest.mark.parametrize("pointers", [[0, 10**8, 2 * 10**8, 3 * 10**8], [0, 10**8, 2 * 10**8, 0], [0, 2, 1, 3]])
@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csc_matrix])
def test_pointers_past_the_end_of_a_matrix_are_followed_nowhere(tmp_path, kind, pointers):
    matrix = kind(np.eye(3, dtype=np.float32))
    matrix.indptr = np.array(pointers, np.int32)
    folder = write_folder(tmp_path / "amazon", files() | {"trn_mat.pkl": pickle.dumps(matrix)})
    with pytest.raises(SourceError, match=r"trn_mat\.pkl: .*index pointer"):
        read(tmp_path, folder)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b"f4", b"O8", "holds an array of 'O8', and only numbers are read"),
        (b"f4", b"f8", r"array of shape \(\d+,\) with \d+ values|buffer size"),
    ],
)
def test_arrays_are_made_of_parts_that_fit_together(tmp_path, before, after, message):
    content = pickle.dumps(MATRICES["trn_mat.pkl"].astype(np.float32))
    assert before in content
    folder = write_folder(tmp_path / "amazon", files() | {"trn_mat.pkl": content.replace(before, after)})
    with pytest.raises(SourceError, match=rf"trn_mat\.pkl: .*({message})"):
        read(tmp_path, folder)


def test_a_few_bytes_that_ask_for_much_memory_are_refused(tmp_path, monkeypatch):
    hostile = b"\x80\x03cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R."
    folder = write_folder(tmp_path / "amazon", files() | {"trn_mat.pkl": hostile})
    with pytest.raises(SourceError, match=r"trn_mat\.pkl: the pickle asks for bytearray of int"):
        read(tmp_path, folder)
    monkeypatch.setattr(pickles, "MAX_BYTES", 1000)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (files() | {"trn_mat.pkl": bytes(10**6)}).items():
            packed.writestr(name, content)
    with pytest.raises(SourceError, match=r"trn_mat\.pkl: more than 0 MB when unpacked"):
        read(tmp_path, archive)
