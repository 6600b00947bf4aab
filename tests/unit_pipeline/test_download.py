import hashlib
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import RawFile
from pipeline.sources import SourceError
from pipeline.sources.download import fetch, file_sha256
from tests.conftest import answering

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file, with ranges; can break connections, and keeps the headers of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.other = b"another file of that name"
        self.tag = '"one"'
        self.ranges = True
        self.break_after: list[int] = []  # bytes of each answer to come before its connection breaks
        self.seen: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/data%20set.gz?version=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.seen.append(dict(self.headers))
        if self.path.startswith("/lost"):
            self.send_error(404)
            return
        start, body = 0, server.other if self.path.startswith("/other") else server.content
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            start = int(asked[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + server.break_after.pop(0) if server.break_after else len(body)
        self.wfile.write(body[start:end])
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr("pipeline.sources.download.PAUSE_SECONDS", 0.001)
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server()
    with answering(running):
        yield running


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_is_downloaded_once_and_its_checksum_recorded(server, tmp_path):
    progress: list[tuple[int, int]] = []
    path = fetch(RawFile(url=server.url), tmp_path / "down", lambda *call: progress.append(call))
    assert path == tmp_path / "down" / "data set.gz"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["data set.gz", "data set.gz.sha256"]
    assert (path.parent / "data set.gz.sha256").read_text() == f"{DIGEST}  data set.gz\n# {server.url}\n"
    assert progress == sorted(progress)
    assert progress[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(RawFile(url=server.url), tmp_path / "down") == path
    assert len(server.seen) == 1


def test_broken_connections_are_resumed_where_they_stopped(server, tmp_path):
    server.break_after = [300_000, 500_000]
    path = fetch(RawFile(url=server.url), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [seen.get("Range") for seen in server.seen] == [None, "bytes=300000-", "bytes=800000-"]
    assert names(tmp_path) == ["data set.gz", "data set.gz.sha256"]


def test_next_run_resumes_what_the_last_one_left(server, tmp_path):
    server.break_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(SourceError, match=r"100000 bytes are kept in data set.gz.part; the next run goes on there"):
        fetch(RawFile(url=server.url), tmp_path)
    assert not (tmp_path / "data set.gz").exists()
    assert fetch(RawFile(url=server.url), tmp_path).read_bytes() == CONTENT
    assert server.seen[-1]["Range"] == "bytes=100000-"


def test_two_versions_of_a_file_are_never_joined(server, tmp_path):
    server.break_after = [100_000]
    server.break_after += [0] * 4
    with pytest.raises(SourceError):
        fetch(RawFile(url=server.url), tmp_path)
    server.content, server.tag = CONTENT[::-1], '"two"'
    assert fetch(RawFile(url=server.url), tmp_path).read_bytes() == CONTENT[::-1]


def test_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.break_after = False, [300_000]
    assert fetch(RawFile(url=server.url), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("held", [CONTENT, CONTENT + b"more"], ids=["complete", "too long"])
def test_part_with_nothing_left_to_ask_for(server, tmp_path, held):
    (tmp_path / "data set.gz.part").write_bytes(held)
    assert fetch(RawFile(url=server.url), tmp_path).read_bytes() == CONTENT


def test_pinned_checksum_refuses_another_file(server, tmp_path):
    with pytest.raises(SourceError, match=rf"its SHA-256 is {DIGEST}, the settings name {'0' * 64}"):
        fetch(RawFile(url=server.url, sha256="0" * 64), tmp_path)
    assert names(tmp_path) == []
    assert fetch(RawFile(url=server.url, sha256=DIGEST.upper()), tmp_path).read_bytes() == CONTENT


def test_file_that_changed_since_it_was_first_seen_is_refused(server, tmp_path):
    path = fetch(RawFile(url=server.url), tmp_path)
    path.write_bytes(b"tampered")
    with pytest.raises(
        SourceError, match=rf"data set.gz.sha256 records {DIGEST}. Delete the file to download it again"
    ):
        fetch(RawFile(url=server.url), tmp_path)
    with pytest.raises(SourceError, match=rf"the settings name {DIGEST}"):
        fetch(RawFile(url=server.url, sha256=DIGEST), tmp_path)


def test_file_put_there_by_hand_is_taken_and_recorded(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"by hand")
    assert fetch(RawFile(url="http://127.0.0.1:9/data.zip"), tmp_path) == tmp_path / "data.zip"
    assert (tmp_path / "data.zip.sha256").read_text().startswith(file_sha256(tmp_path / "data.zip"))


def test_two_addresses_that_end_alike_are_two_files(server, tmp_path):
    """One name for both gave the first one's bytes for the second, or for an address that had been corrected."""
    first, second = RawFile(url=server.url), RawFile(url=server.url.replace("/files", "/other"))
    assert fetch(first, tmp_path).read_bytes() == CONTENT
    other = fetch(second, tmp_path)
    assert other.read_bytes() == server.other
    assert re.fullmatch(r"[0-9a-f]{8}-data set\.gz", other.name)
    assert (fetch(first, tmp_path).read_bytes(), fetch(second, tmp_path)) == (CONTENT, other)
    assert len(server.seen) == 2


def test_beginning_of_another_address_is_not_gone_on_with(server, tmp_path):
    server.break_after = [10] + [0] * 4
    with pytest.raises(SourceError, match="10 bytes are kept"):
        fetch(RawFile(url=server.url), tmp_path)
    other = fetch(RawFile(url=server.url.replace("/files", "/other")), tmp_path)
    assert other.read_bytes() == server.other
    assert fetch(RawFile(url=server.url), tmp_path).read_bytes() == CONTENT


def test_file_of_a_former_version_goes_to_the_first_that_asks(server, tmp_path):
    """Its note has no address; the order of the questions is that in which it was downloaded."""
    (tmp_path / "data set.gz").write_bytes(CONTENT)
    note = tmp_path / "data set.gz.sha256"
    note.write_text(f"{DIGEST}  data set.gz\n")
    assert fetch(RawFile(url=server.url), tmp_path) == tmp_path / "data set.gz"
    assert note.read_text() == f"{DIGEST}  data set.gz\n# {server.url}\n"
    assert server.seen == []
    other = fetch(RawFile(url=server.url.replace("/files", "/other")), tmp_path)
    assert other.read_bytes() == server.other


def test_password_of_an_address_is_not_written_down(server, tmp_path):
    path = fetch(RawFile(url=server.url.replace("//", "//me:secret@")), tmp_path)
    assert "secret" not in path.with_name("data set.gz.sha256").read_text()
    assert fetch(RawFile(url=server.url), tmp_path) == path


def test_server_that_is_gone_says_what_to_fetch_and_where_to_put_it(server, tmp_path):
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(SourceError) as error:
        fetch(RawFile(url=url), tmp_path)
    assert url in str(error.value)
    assert f"fetch it by hand and put it at {tmp_path / 'data set.gz'}" in str(error.value)


def test_file_the_server_does_not_have_is_asked_for_once(server, tmp_path):
    with pytest.raises(SourceError, match="the server answered 404"):
        fetch(RawFile(url=server.url.replace("/files", "/lost")), tmp_path)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/file", "http:///file", "https://host/", "http://h/.."]
)
def test_address_that_names_no_web_file_is_refused(tmp_path, url):
    with pytest.raises(SourceError, match="use `path`"):
        fetch(RawFile(url=url), tmp_path)


def test_local_file_is_held_to_a_pinned_checksum(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert fetch(RawFile(path=str(path)), tmp_path / "unused") == path
    assert fetch(RawFile(path=str(path), sha256=DIGEST), tmp_path / "unused") == path
    with pytest.raises(SourceError, match="get the file again"):
        fetch(RawFile(path=str(path), sha256="0" * 64), tmp_path)
    with pytest.raises(SourceError, match="a folder has no checksum"):
        fetch(RawFile(path=str(tmp_path), sha256=DIGEST), tmp_path)
    with pytest.raises(SourceError, match="absent: no such file"):
        fetch(RawFile(path=str(tmp_path / "absent")), tmp_path)
