"""A store behind a URL (`s3://`, `gs://`): objects that never change, and for each result a manifest that names one.

`<asset>/<partition>.json` names the object with the result, `<asset>/<partition>/....parquet`. The one PUT of the
manifest switches from an old result to a new one: an upload counts for nothing before it, and what it names is whole.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
from upath import UPath

from pipeline.files import REMEDY, StoredFileError, atomic_path, state

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_ABANDONED_NS = 24 * 3600 * 10**9
_MANIFEST_BYTES = 2**16  # asked for at once: with no bound, libraries ask for its size first, which may change
# Time of the file, time of the upload, start of its checksum. No two uploads share a name: an old object can be deleted
# without a look at who else is writing.
_OBJECT = re.compile(r"(?P<name>.+)/(?P<time>\d+)-(?P<sent>\d+)-[0-9a-f]{12}\.parquet")


class StoreError(RuntimeError):
    """The store did not do what it was asked; the message names it, the object, and what to do."""


@dataclass(frozen=True)
class Manifest:
    """Which object holds a result.

    Attributes
    ----------
    object
        Its name below the store's URL.
    size, time
        Bytes, and nanoseconds since 1970: those of the file that was uploaded, and so of every copy.
    sha256
        Of its bytes.
    """

    object: str
    size: int
    time: int
    sha256: str


class Bucket:
    """A store behind a URL. A result's name is `<asset>/<partition>`.

    Every method raises `StoreError` where the store does not answer, refuses, or has no such bucket.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Listings that are kept would hide what other processes write.
        with self._asking("open", "the store"):
            root = UPath(self.url, use_listings_cache=False)
            self._files, self._root = root.fs, root.path.rstrip("/")
        self._seen = False

    def states(self) -> dict[str, str]:
        """State of every result that one listing tells: it has a manifest, and one object that this can name.

        What was left by a write that is under way, or was killed, is not told from the result here.
        """
        with self._asking("list", "the store"):
            found = self._list("")
        objects: dict[str, list[str]] = {}
        for key, size in found.items():
            if parts := _OBJECT.fullmatch(key):
                objects.setdefault(parts["name"], []).append(state(size, int(parts["time"])))
        return {name: held[0] for name, held in objects.items() if len(held) == 1 and f"{name}.json" in found}

    def holds(self, name: str) -> bool:
        """Whether there is such a result, and its object is there with its whole size."""
        manifest = self._manifest_or_none(name)
        with self._asking("list", name):
            return manifest is not None and self._list(name).get(manifest.object) == manifest.size

    def send(self, path: Path, name: str) -> None:
        """Make a finished file the result of this name. Whoever reads meanwhile gets the old one, whole, or the new."""
        stat, now = path.stat(), time.time_ns()
        checksum = _sha256(path)
        key = f"{name}/{stat.st_mtime_ns}-{now}-{checksum[:12]}.parquet"
        manifest = Manifest(key, stat.st_size, stat.st_mtime_ns, checksum)
        before = None
        with contextlib.suppress(StoredFileError):
            before = self.manifest(name)
        with self._asking("upload", key):
            self._files.put_file(str(path), self._path(key))
            there = self._list(name)
        if there.get(key) != stat.st_size:
            raise StoreError(
                f"SCALE_STORE={self.url}: {key} arrived with {there.get(key, 0)} of {stat.st_size} bytes; run again"
            )
        with self._asking("switch to", key):
            self._files.pipe_file(self._path(f"{name}.json"), json.dumps(asdict(manifest)).encode())
        # Only what this write replaced, and what killed ones left long ago: a newer object may be about to be named.
        for other in there.keys() - {key}:
            parts = _OBJECT.fullmatch(other)
            if parts and ((before and other == before.object) or now - int(parts["sent"]) > _ABANDONED_NS):
                self._delete(other)

    def fetch(self, name: str, path: Path) -> bool:
        """Make `path` a copy of the result of this name, unless it is one; False where there is no such result.

        Raises
        ------
        StoredFileError
            Its object is gone or damaged. Both are deleted then, so that the next look finds the result missing.
        """
        failed: Manifest | None = None
        while manifest := self._manifest_or_none(name):
            if path.exists() and state(path.stat().st_size, path.stat().st_mtime_ns) == state(
                manifest.size, manifest.time
            ):
                return True
            try:
                self._download(manifest, path)
            except StoredFileError:
                if manifest == failed:
                    self._withdraw(name, manifest.object)
                    raise
                failed = manifest  # a writer may have replaced it since: look at the manifest once more
            else:
                return True
        return False

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a result; None where there is none.

        Raises
        ------
        StoredFileError
            It cannot be read as one.
        """
        key = f"{name}.json"
        try:
            with self._asking("read", key):
                content = self._files.cat_file(self._path(key), start=0, end=_MANIFEST_BYTES)
        except FileNotFoundError:
            self._has_container()
            return None
        try:
            manifest = Manifest(**json.loads(content))
            parts = _OBJECT.fullmatch(manifest.object)
        except (ValueError, TypeError, RecursionError):
            parts = None
        # What a damaged one names is deleted: it must not be another result's.
        if not parts or parts["name"] != name or int(parts["time"]) != manifest.time or type(manifest.size) is not int:
            raise StoredFileError(f"{self.url}/{key}: is no manifest of a result; {REMEDY}")
        return manifest

    def _manifest_or_none(self, name: str) -> Manifest | None:
        try:
            return self.manifest(name)
        except StoredFileError:
            self._withdraw(name)
            raise

    def _download(self, manifest: Manifest, path: Path) -> None:
        with atomic_path(path) as temporary:
            try:
                with self._asking("download", manifest.object):
                    self._files.get_file(self._path(manifest.object), str(temporary))
            except FileNotFoundError:
                raise StoredFileError(f"{self.url}/{manifest.object}: is gone; {REMEDY}") from None
            if temporary.stat().st_size != manifest.size or _sha256(temporary) != manifest.sha256:
                raise StoredFileError(
                    f"{self.url}/{manifest.object}: is not what was uploaded, so it is damaged; {REMEDY}"
                )
            os.utime(temporary, ns=(manifest.time, manifest.time))

    def _withdraw(self, name: str, *damaged: str) -> None:
        """Delete a manifest that names nothing whole, and that."""
        for key in (f"{name}.json", *damaged):
            self._delete(key)

    def _delete(self, key: str) -> None:
        """Clear away what no result needs; who may not do it leaves it to one who may."""
        with contextlib.suppress(StoreError, FileNotFoundError), self._asking("delete", key):
            self._files.rm_file(self._path(key))

    def _list(self, name: str) -> dict[str, int]:
        """Size of every object below a name, by its name below the URL."""
        try:
            found = self._files.find(self._path(name).rstrip("/"), detail=True)
        except FileNotFoundError:
            found = {}
        if not found:
            self._has_container()
        return {key[len(self._root) + 1 :]: int(about["size"]) for key, about in found.items()}

    def _has_container(self) -> None:
        """Tell an empty bucket from none."""
        container = self._root.split("/")[0]
        if not self._seen:
            with self._asking("look for", container):
                try:
                    self._seen = self._files.exists(container)
                except PermissionError:  # for objects alone: of a bucket that is not there nothing is forbidden
                    self._seen = True
        if not self._seen:
            raise StoreError(f"SCALE_STORE={self.url}: there is no bucket {container}; make it, or name another")

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextlib.contextmanager
    def _asking(self, what: str, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:  # every library has errors of its own; a run tells the innermost one, so `from None`
            raise StoreError(
                f"SCALE_STORE={self.url}: cannot {what} {key} ({type(error).__name__}: {error}); see that the server "
                "answers and that its credentials are set, then run the command again: what is made is kept"
            ) from None


@cache
def opened(url: str) -> Bucket:
    """The store behind a URL.

    Raises
    ------
    ValueError
        The URL holds a password, or no library knows its scheme.
    RuntimeError
        The library that knows it is not installed.
    """
    parts = urlsplit(url)
    if parts.password:
        raise ValueError(
            f"SCALE_STORE names {parts.scheme}://...@{parts.hostname} with a password in it; leave it out, and set the "
            "credentials as the storage's own library reads them"
        )
    try:
        fsspec.get_filesystem_class(parts.scheme)
    except ImportError as error:
        extra = EXTRAS.get(parts.scheme)
        hint = f"install it with: pip install -e '.[{extra}]' -c constraints.txt" if extra else str(error)
        raise RuntimeError(f"SCALE_STORE={url}: the package for {parts.scheme}:// is missing; {hint}") from error
    except ValueError as error:
        raise ValueError(f"SCALE_STORE={url}: no storage is called {parts.scheme}://; take s3:// or gs://") from error
    return Bucket(url)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
