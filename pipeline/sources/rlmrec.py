"""Datasets as published with RLMRec: split matrices and written profiles, in a folder or a zip archive."""

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.settings import RlmrecSource
from pipeline.sources import Progress, SourceError
from pipeline.sources.download import fetch
from pipeline.sources.fields import text
from pipeline.sources.pickles import load_pickle
from pipeline.sources.writer import RawWriter

MATRICES = {"train": "trn_mat.pkl", "valid": "val_mat.pkl", "test": "tst_mat.pkl"}
PROFILES = {"user": "usr_prf.pkl", "item": "itm_prf.pkl"}

Load = Callable[[str], Any]


def read(source: RlmrecSource, writer: RawWriter, downloads: Path, progress: Progress | None = None) -> None:
    """Read a published dataset into `reviews` (with its split) and `profiles`; raw ids are the matrices' indices.

    The archive is read in place, member by member: nothing is unpacked.
    """
    path = fetch(source.folder, downloads, progress)
    if path.is_dir():
        folder = path / source.member if source.member else path
        _read(lambda name: _load_file(folder / name), writer, progress)
        return
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged archive fails in many ways
        raise SourceError(f"{path}: neither a folder nor a zip archive ({error})") from error
    with archive:
        _read(lambda name: _load_member(archive, path, source.member, name), writer, progress)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise SourceError(f"{path}: no such file; the folder must hold {', '.join(_names())}")
    with path.open("rb") as file:
        return load_pickle(file, path.stat().st_size, str(path))


def _load_member(archive: zipfile.ZipFile, path: Path, folder: str | None, name: str) -> Any:
    """Load one file of the dataset whose folder in the archive is `folder`, or is the only one to end in it."""
    found = {
        str(PurePosixPath(entry.filename).parent): entry
        for entry in archive.infolist()
        if PurePosixPath(entry.filename).name == name
    }
    wanted = folder or "."
    chosen = [wanted] if wanted in found else [known for known in found if known.endswith(f"/{wanted}")]
    if len(chosen) != 1:
        raise SourceError(
            f"{path}: {len(chosen)} folders of the archive are {wanted} and hold {name}; set source.member to one of "
            f"its datasets: {', '.join(sorted(found)) or 'there is none'}"
        )
    entry = found[chosen[0]]
    where = f"{path}:{entry.filename}"
    try:
        file = archive.open(entry)
    except Exception as error:  # damaged, encrypted, packed in another way
        raise SourceError(f"{where}: cannot be unpacked ({error}); get the archive again") from error
    with file:
        return load_pickle(file, entry.file_size, where)


def _names() -> list[str]:
    return [*MATRICES.values(), *PROFILES.values()]


def _read(load: Load, writer: RawWriter, progress: Progress | None) -> None:
    done, names = 0, _names()
    for split, name in MATRICES.items():
        _read_matrix(load(name), split, name, writer)
        done = _report(progress, done, len(names))
    for kind, name in PROFILES.items():
        _read_profiles(load(name), kind, name, writer)
        done = _report(progress, done, len(names))


def _report(progress: Progress | None, done: int, total: int) -> int:
    if progress is not None:
        progress(done + 1, total)
    return done + 1


def _read_matrix(matrix: Any, split: str, name: str, writer: RawWriter) -> None:
    if not hasattr(matrix, "tocoo"):
        raise SourceError(f"{name}: expected a scipy sparse matrix, found {type(matrix).__name__}")
    try:
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)  # a pickle can hold pointers past the end, and C code follows them
        pairs = matrix.tocoo()
        held = np.flatnonzero(pairs.data)
        users, items = pairs.row[held], pairs.col[held]
    except Exception as error:  # whatever its parts are that do not fit together
        raise SourceError(f"{name}: a damaged matrix ({type(error).__name__}: {error}); get it again") from error
    writer.count(name, len(users))
    for user, item in zip(users, items, strict=True):
        writer.add("reviews", (str(user), str(item), None, None, None, None, split))


def _read_profiles(profiles: Any, kind: str, name: str, writer: RawWriter) -> None:
    if not isinstance(profiles, dict):
        raise SourceError(f"{name}: expected a dictionary of profiles, found {type(profiles).__name__}")
    for line, (key, value) in enumerate(profiles.items(), start=1):
        writer.count(name)
        # What lists and sets that hold one another, or a number of a megabyte, come to as text has no bound.
        if not isinstance(key, str) and not (isinstance(key, int | float) and abs(key) < 2**63):
            raise SourceError(f"{name}: entry {line} is kept under no id ({type(key).__name__}); get it again")
        found = value.get("profile") if isinstance(value, dict) else value
        # Only text, also in the quarantine: written out, lists that hold one another take up any amount of memory.
        profile = text(found) if isinstance(found, str) else None
        if profile is None:
            writer.reject(name, line, "missing profile", str(key))
        else:
            writer.add("profiles", (kind, str(key), profile))
