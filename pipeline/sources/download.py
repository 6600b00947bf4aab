"""Raw files at hand: a local path checked, or a download that resumes and is held to its checksum."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.files import atomic_path, replace
from pipeline.settings import RawFile
from pipeline.sources import Progress, SourceError

ATTEMPTS = 5  # connections that may break in one call; each goes on where the last one stopped
PAUSE_SECONDS = 0.5  # before the second attempt; twice as long before each one after it
PARTIAL, HELD_WHOLE = 206, 416


def fetch(raw_file: RawFile, folder: Path, progress: Progress | None = None) -> Path:
    """Path of a raw file, downloaded to `folder` if it has a URL and is not there yet.

    A file is held to the checksum in the settings, or else to the one recorded beside it (`NAME.sha256`, with its URL)
    when it was first seen. Where a file of another URL has that name, a part of the URL's hash goes before it. A broken
    download stays as `NAME.part` and is resumed.

    Parameters
    ----------
    progress
        Called with bytes done and bytes in all while a file is downloaded.

    Raises
    ------
    SourceError
        The file is missing, cannot be downloaded, or is not the one that the checksum names.
    """
    if raw_file.path is not None:
        return _local(Path(raw_file.path), raw_file.sha256)
    assert raw_file.url is not None
    target = _place(raw_file.url, folder)
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = _download(raw_file.url, target, progress)
        found = file_sha256(part)
        if raw_file.sha256 is not None and found != raw_file.sha256.lower():
            part.unlink()
            raise SourceError(
                f"{raw_file.url}: its SHA-256 is {found}, the settings name {raw_file.sha256}; the file was removed. "
                "Correct sha256 if the publisher has changed the file"
            )
        _record(target, found, raw_file.url)  # first, so that a file never lies there as if put by hand
        replace(part, target)
        return target
    _hold(target, raw_file)
    return target


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _local(path: Path, sha256: str | None) -> Path:
    if not path.exists():
        hint = "; an environment variable in it is not set" if "${" in str(path) else ""
        raise SourceError(f"{path}: no such file or folder{hint}. Put it there, or correct `path` in the settings")
    if sha256 is not None:
        if path.is_dir():
            raise SourceError(f"{path}: a folder has no checksum; remove sha256 from the settings")
        found = file_sha256(path)
        if found != sha256.lower():
            raise SourceError(f"{path}: its SHA-256 is {found}, the settings name {sha256}; get the file again")
    return path


def _hold(target: Path, raw_file: RawFile) -> None:
    """Hold a file that is already there to its checksum; a file put there by hand gets one recorded."""
    note, (recorded, url) = _note(target), _recorded(target)
    expected = raw_file.sha256 or recorded
    found = file_sha256(target)
    if expected is not None and found != expected.lower():
        whose = "the settings name" if raw_file.sha256 else f"{note.name} records"
        raise SourceError(
            f"{target}: its SHA-256 is {found}, {whose} {expected}. Delete the file to download it again from "
            f"{raw_file.url}; if the change is meant, correct sha256 in the settings or delete {note.name}"
        )
    if recorded is None or url is None:
        assert raw_file.url is not None
        _record(target, found, raw_file.url)


def _record(target: Path, sha256: str, url: str) -> None:
    with atomic_path(_note(target)) as temporary:
        # As `sha256sum -c` reads it, which passes over a line with a number sign.
        temporary.write_text(f"{sha256}  {target.name}\n# {_address(url)}\n", encoding="utf-8")


def _recorded(target: Path) -> tuple[str | None, str | None]:
    """The checksum and the URL in the note beside a file; notes of former versions have no URL."""
    note = _note(target)
    lines = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    return (lines[0].split()[0] if lines else None), (lines[1].removeprefix("# ") if len(lines) > 1 else None)


def _place(url: str, folder: Path) -> Path:
    """Where a URL's file belongs: under its name, if no other URL's file is known to have that.

    A file without a URL in its note, put there by hand or by a former version, goes to the first URL that asks for it,
    as it did when it was downloaded.
    """
    target = folder / _file_name(url)
    if _recorded(target)[1] in (None, _address(url)):
        return target
    return target.with_name(f"{hashlib.sha256(_address(url).encode()).hexdigest()[:8]}-{target.name}")


def _address(url: str) -> str:
    """`url` as it is recorded: without a user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _note(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def _file_name(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceError(f"{url}: only http and https addresses can be downloaded; use `path` for a local file")
    name = unquote(parts.path).rsplit("/", 1)[-1]
    if not name or name.startswith("."):
        raise SourceError(f"{url}: the address does not end in a file name; download it by hand and use `path`")
    return name


def _download(url: str, target: Path, progress: Progress | None) -> Path:
    """Download to `NAME.part`, going on where an earlier attempt stopped; returns the complete part file."""
    import httpx

    part = target.with_name(target.name + ".part")
    with httpx.Client(follow_redirects=True, timeout=httpx.Timeout(60, connect=30)) as client:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                if _resume(client, url, part, progress):
                    _tag(part).unlink(missing_ok=True)
                    return part
                problem = "the connection ended early"
            except httpx.HTTPStatusError as error:
                problem = f"the server answered {error.response.status_code}"
                if error.response.status_code < 500:
                    break
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
    kept = f"{part.stat().st_size} bytes are kept in {part.name}; the next run goes on there. " if part.exists() else ""
    raise SourceError(
        f"{url}: cannot be downloaded ({problem}). {kept}Without a network, fetch it by hand and put it at {target}"
    )


def _resume(client: Any, url: str, part: Path, progress: Progress | None) -> bool:
    """One request for what `part` lacks; whether the file is complete then."""
    begun, address = _begun(part)
    if address not in ("", _address(url)):
        part.unlink(missing_ok=True)  # the beginning of another URL's file of this name
        begun = ""
    held = part.stat().st_size if part.exists() else 0
    # Bytes as published: a transfer encoding would change both length and checksum.
    headers = {"Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
        if begun:
            headers["If-Range"] = begun
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == HELD_WHOLE and held:
            # Nothing follows what is held: complete if the length fits, or else a part of some other file.
            if response.headers.get("Content-Range", "") == f"bytes */{held}":
                return True
            part.unlink()
            return False
        response.raise_for_status()
        appends = response.status_code == PARTIAL
        done = held if appends else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length is not None else None
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        known = validator if validator and not validator.startswith("W/") else ""
        _tag(part).write_text(f"{known}\n{_address(url)}", encoding="utf-8")
        with _appending(part, done) as file:
            # Without a chunk size: what came before a break must not be lost in a buffer.
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total or done)
    return total is None or done == total


@contextmanager
def _appending(part: Path, held: int) -> Iterator[Any]:
    with part.open("ab") as file:
        file.truncate(held)
        yield file


def _begun(part: Path) -> tuple[str, str]:
    """The version and the URL that a partial file was begun with; "" where there is none."""
    version, _, url = _tag(part).read_text(encoding="utf-8").partition("\n") if _tag(part).exists() else ("", "", "")
    return version, url


def _tag(part: Path) -> Path:
    """Where a partial file's URL and the server's name for its version are kept, so that no two files are joined."""
    return part.with_name(part.name + ".tag")
