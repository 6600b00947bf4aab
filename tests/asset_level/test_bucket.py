"""A store behind a URL, on servers of this machine, each by its storage's own library.

S3 is moto's, Google Cloud Storage gcp-storage-emulator's; the latter answers one request after the other.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array
from typer.testing import CliRunner

from assets import bucket, home, storage, store
from assets.bucket import Bucket, StoreError
from assets.cli import app, main
from assets.nodes import Node
from assets.progress import Progress
from assets.refresh import Refresh
from assets.results import examples
from assets.store import local_path, stored_path
from assets.variants import stored, varied
from pipeline.files import StoredFileError
from tests.conftest import S3
from tests.damage import flip_a_bit
from tests.ports import free_port
from tests.stages import OF_A_MODEL, OF_USERS, USER_PROFILES

pytest.importorskip("s3fs", reason="there is no s3fs; install it with: pip install -e '.[s3]' -c constraints.txt")
NAME = "users/tiny"
GROUP = "semantic_graph"  # of the models that read it


@pytest.fixture(scope="module")
def gs() -> Iterator[None]:
    """A server with the bucket `shelf`, and the variables by which every process finds it."""
    server = pytest.importorskip("gcp_storage_emulator.server", reason="install the dev extra: it carries that server")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # Nothing here is to be asked of Google itself: neither credentials nor the kind of a bucket.
        patch.setenv("NO_GCE_CHECK", "true")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        with server.create_server("127.0.0.1", port, in_memory=True, default_bucket="shelf"):
            yield


@pytest.fixture(params=["s3", "gs"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of its own in the bucket of either storage."""
    request.getfixturevalue(request.param)
    return f"{request.param}://shelf/{tmp_path.name}"


# What takes seconds, and hangs on no storage's own ways, runs on one of them.
ON_S3 = pytest.mark.parametrize("url", ["s3"], indirect=True)


@pytest.fixture
def shelf(url: str) -> Bucket:
    return Bucket(url)


def file_of(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def objects(shelf: Bucket) -> list[str]:
    """Everything below the URL but manifests."""
    return sorted(key for key in shelf._list("") if not key.endswith(".json"))


def flip(shelf: Bucket, key: str) -> None:
    content = bytearray(shelf._files.cat_file(shelf._path(key)))
    content[len(content) // 3] ^= 4
    shelf._files.pipe_file(shelf._path(key), bytes(content))


# --------------------------------------------------------------------------------------------------- one result


@pytest.mark.parametrize("kind", [pl.DataFrame, pl.LazyFrame, np.ndarray, csr_array])
def test_what_is_sent_comes_back(tmp_path, monkeypatch, url, kind):
    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    values = {
        pl.DataFrame: pl.DataFrame({"user": [0, 1], "raw_id": ["a", "b"]}),
        np.ndarray: np.arange(6, dtype=np.float32).reshape(3, 2),
        csr_array: csr_array(np.eye(3, dtype=np.float32)),
    }
    value = values[pl.DataFrame if kind is pl.LazyFrame else kind]
    monkeypatch.setenv("SCALE_STORE", f"{url}/{kind.__name__}")
    path = local_path(dg.AssetKey("thing"), "tiny|bpr")
    path.parent.mkdir(parents=True)
    storage.write(value, path)
    store.send(path)
    sent = path.read_bytes(), path.stat().st_mtime_ns
    path.unlink()
    assert stored_path(dg.AssetKey("thing"), "tiny|bpr") == path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == sent
    read = storage.read(path, kind)
    if kind is csr_array:
        assert (read != value).nnz == 0
    elif kind is np.ndarray:
        np.testing.assert_array_equal(read, value)
    else:
        assert read.lazy().collect().equals(value)


def test_a_write_replaces_the_object_and_the_copy_follows(tmp_path, shelf):
    copy = tmp_path / "copy"
    assert not shelf.fetch(NAME, copy)
    for content in (b"old", bytes(6 * 2**20)):  # the latter in more than one request
        sent = file_of(tmp_path, content)
        shelf.send(sent, NAME)
        assert shelf.fetch(NAME, copy)
        assert copy.read_bytes() == content
        assert len(objects(shelf)) == 1
        assert shelf.states() == {NAME: store.file_state(sent)}
    before = copy.stat().st_ino
    assert shelf.fetch(NAME, copy)
    assert copy.stat().st_ino == before  # it was that object already


KILLED = """
import os, signal, sys
from pathlib import Path
from assets.bucket import Bucket

shelf = Bucket(sys.argv[1])
shelf._files.pipe_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
shelf.send(Path(sys.argv[2]), sys.argv[3])
"""


def test_a_kill_between_upload_and_switch_leaves_the_old_result(tmp_path, monkeypatch, shelf):
    copy = tmp_path / "copy"
    shelf.send(file_of(tmp_path, b"old"), NAME)
    command = [sys.executable, "-c", KILLED, shelf.url, str(file_of(tmp_path, b"never named", "other")), NAME]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    left = set(objects(shelf))
    assert len(left) == 2
    assert shelf.fetch(NAME, copy)
    assert copy.read_bytes() == b"old"
    assert shelf.states() == {}  # a listing does not tell which is which
    shelf.send(file_of(tmp_path, b"new"), NAME)
    assert shelf.fetch(NAME, copy)
    assert copy.read_bytes() == b"new"
    assert len(left & set(objects(shelf))) == 1  # it might be about to be named
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 25 * 3600 * 10**9)
    shelf.send(file_of(tmp_path, b"newer"), NAME)
    assert not left & set(objects(shelf))
    assert shelf.fetch(NAME, copy)
    assert copy.read_bytes() == b"newer"


def test_of_writers_at_once_the_last_one_wins_and_readers_always_get_a_whole_result(tmp_path, shelf):
    shelf.send(file_of(tmp_path, bytes(5000)), NAME)
    writers, problems, read = 3, [], set()
    done = threading.Event()

    def write(writer: int) -> None:
        for turn in range(6):
            try:
                shelf.send(file_of(tmp_path, bytes([writer, turn]) * 2500, f"from {writer}"), NAME)
            except Exception as error:
                problems.append(error)

    def look(reader: int) -> None:
        copy = tmp_path / f"for {reader}"
        while not done.is_set():
            try:
                assert shelf.fetch(NAME, copy)
                read.add(copy.read_bytes())
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=write, args=[each]) for each in range(writers)]
    readers = [threading.Thread(target=look, args=[each]) for each in range(2)]
    for thread in threads + readers:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert problems == []
    assert len(read) > 1
    assert all(content == content[:2] * 2500 for content in read)
    manifest = shelf.manifest(NAME)
    assert manifest is not None
    assert manifest.object in objects(shelf)
    final = tmp_path / "final"
    assert shelf.fetch(NAME, final)
    assert final.read_bytes()[1] == 5  # the last of some writer


def test_a_reader_with_an_old_manifest_looks_again(tmp_path, monkeypatch, shelf):
    shelf.send(file_of(tmp_path, b"old"), NAME)
    old, look = shelf.manifest(NAME), shelf.manifest
    shelf.send(file_of(tmp_path, b"new"), NAME)
    answers = iter([old])
    monkeypatch.setattr(shelf, "manifest", lambda name: next(answers, None) or look(name))
    copy = tmp_path / "copy"
    assert shelf.fetch(NAME, copy)
    assert copy.read_bytes() == b"new"


OBJECT = f'"{NAME}/1-2-0123456789ab.parquet"'.encode()
MANIFEST = b'{"object": %s, "size": %s, "time": 1, "sha256": "0"}'


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip, "is damaged"),
        (lambda shelf, key: shelf._files.pipe_file(shelf._path(key), b"wh"), "is damaged"),
        (lambda shelf, key: shelf._files.rm_file(shelf._path(key)), "is gone"),
        *(
            (
                lambda shelf, key, content=content: shelf._files.pipe_file(shelf._path(f"{NAME}.json"), content),
                "is no manifest",
            )
            for content in (
                b"{}",
                b"[" * 60_000,
                MANIFEST % (b'"other/1-2-0123456789ab.parquet"', b"1"),
                MANIFEST % (b"5", b"1"),
                MANIFEST % (OBJECT, b'"1"'),
            )
        ),
    ],
)
def test_damage_is_named_and_the_result_counts_as_missing(tmp_path, shelf, damage, told):
    sent = file_of(tmp_path, b"whole result")
    shelf.send(sent, NAME)
    (key,) = objects(shelf)
    damage(shelf, key)
    with pytest.raises(StoredFileError, match=told) as caught:
        shelf.fetch(NAME, tmp_path / "copy")
    assert str(caught.value).startswith(f"{shelf.url}/{NAME}")
    assert not (tmp_path / "copy").exists()
    assert not shelf.fetch(NAME, tmp_path / "copy")
    shelf.send(sent, NAME)
    assert shelf.fetch(NAME, tmp_path / "copy")
    assert told == "is no manifest" or shelf.states() == {NAME: store.file_state(sent)}


def test_an_upload_that_arrives_in_part_is_not_named(tmp_path, monkeypatch, shelf):
    shelf.send(file_of(tmp_path, b"old"), NAME)
    monkeypatch.setattr(shelf._files, "put_file", lambda _, key: shelf._files.pipe_file(key, b"hal"))
    with pytest.raises(StoreError, match=r"arrived with 3 of 8 bytes"):
        shelf.send(file_of(tmp_path, b"half way"), NAME)
    assert shelf.fetch(NAME, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"old"


def test_a_missing_bucket_is_no_empty_one(tmp_path, url):
    nowhere = Bucket(url.replace("shelf", "nowhere"))
    for ask in (
        nowhere.states,
        lambda: nowhere.fetch(NAME, tmp_path / "copy"),
        lambda: nowhere.send(file_of(tmp_path, b"it"), NAME),
    ):
        with pytest.raises(StoreError, match=rf"SCALE_STORE={nowhere.url}: there is no bucket nowhere"):
            ask()


def test_credentials_may_be_for_objects_alone(tmp_path, monkeypatch, shelf):
    def forbidden(*_: str) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(shelf._files, "exists", forbidden)
    monkeypatch.setattr(shelf._files, "rm_file", forbidden)
    assert not shelf.fetch(NAME, tmp_path / "copy")
    for content in (b"old", b"new"):
        shelf.send(file_of(tmp_path, content), NAME)
    assert shelf.fetch(NAME, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"


def test_without_credentials_the_message_names_the_store(s3):
    code = "import sys; from assets.bucket import Bucket; Bucket(sys.argv[1]).states()"
    clean = {key: value for key, value in os.environ.items() if "ACCESS_KEY" not in key}
    clean |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
    told = subprocess.run([sys.executable, "-c", code, "s3://shelf/x"], env=clean, capture_output=True, text=True)
    assert "SCALE_STORE=s3://shelf/x: cannot list the store (NoCredentialsError" in told.stderr


def test_what_a_url_may_be(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    assert home.store() == tmp_path / "store"
    for named in (tmp_path / "elsewhere", f"file://{tmp_path}/elsewhere"):
        monkeypatch.setenv("SCALE_STORE", str(named))
        assert home.store() == tmp_path / "elsewhere"
        assert store.remote_store() is None
    monkeypatch.setenv("SCALE_STORE", "s3://shelf/x")
    assert home.store() == tmp_path / "store"
    with pytest.raises(ValueError, match=r"sftp://\.\.\.@host with a password in it") as caught:
        bucket.opened("sftp://me:hidden@host/x")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match=r"no storage is called nonsense://"):
        bucket.opened("nonsense://x")


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(RuntimeError, match=r"the package for gs:// is missing; .*'\.\[gs\]'"):
        bucket.opened("gs://x")


# ------------------------------------------------------------------------------------------------ the pipeline


OF_THE_USER_PROMPT = USER_PROFILES | OF_USERS | {f"{name} (scale)" for name in OF_A_MODEL}


def scale(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def use(patch: pytest.MonkeyPatch, shop, store: str, machine: Path | None = None) -> None:
    """Work on a shop with a store behind a URL, on another machine with the same Dagster storage if one is named."""
    for name, value in {**shop.environment, "SCALE_STORE": store, "DAGSTER_HOME": "put back at the end"}.items():
        patch.setenv(name, value)
    if machine:
        patch.setenv("SCALE_HOME", str(machine))
        patch.setenv("SCALE_DAGSTER_HOME", str(shop.home / "dagster"))


def look(run: Callable[[Refresh], Any]) -> Any:
    """What a refresh of the shop, with everything made so far, gives."""
    home.dagster_home()
    with dg.DagsterInstance.get() as instance:
        return run(Refresh(instance, "shop", {}, None, Progress()))


def ran(**overrides: Any) -> set[str]:
    """Names of the stages that a refresh runs."""
    home.dagster_home()
    with dg.DagsterInstance.get() as instance:
        changes = {name.replace("__", "."): value for name, value in overrides.items()}
        report = Refresh(instance, "shop", changes, None, Progress()).run(on_wait=NEWS.append)
        return {each.node.name for each in report.ran}


NEWS: list[str] = []


@pytest.fixture(scope="module")
def first(s3: S3, make_shop, tmp_path_factory: pytest.TempPathFactory):
    """A shop that `scale run` has made with the store s3://shelf/first; copy it before changing it."""
    made = make_shop(tmp_path_factory.mktemp("first") / "shop")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, made, "s3://shelf/first")
        scale("run", "-d", "shop", "-m", "scale")
    return made


@pytest.fixture
def moved(first, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of that shop whose home goes with a store of its own, empty as yet."""
    copied = first.copy(tmp_path / "shop")
    use(monkeypatch, copied, url)
    NEWS.clear()
    copied.language_model.prompts.clear()
    return copied


def copies(machine: Path) -> set[str]:
    """Files of results on a machine."""
    return {path.relative_to(machine / "store").as_posix() for path in (machine / "store").rglob("*.parquet")}


def test_another_machine_finds_everything_done_and_an_edit_there_runs_what_it_changes(
    first, tmp_path, monkeypatch, caplog
):
    shelf, machine, shop = Bucket("s3://shelf/first"), tmp_path / "second", first.copy(tmp_path / "shop")
    manifests = {key for key in shelf._list("") if key.endswith(".json")}
    assert {f"{key[:-5]}.parquet" for key in manifests} == copies(shop.home)
    assert len(objects(shelf)) == len(manifests) == len(shelf.states())
    use(monkeypatch, shop, shelf.url)
    assert ran() == set()
    use(monkeypatch, shop, shelf.url, machine)
    with caplog.at_level("INFO", "werkzeug"):
        caplog.clear()
        plan = look(Refresh.plan)
        assert len([record for record in caplog.records if record.name == "werkzeug"]) == 1  # one listing
    assert {state.status for state in plan.states.values()} == {"fresh"}
    assert len(plan.states) == len(manifests)
    assert ran() == set()
    assert copies(machine) == set()  # nothing was downloaded to learn that
    scale("recommend", "-d", "shop", "-u", examples("shop", "scale")[0])
    assert f"{GROUP}/recommendations/shop/scale.parquet" in copies(machine)
    assert "raw_reviews/shop.parquet" not in copies(machine)
    with dg.DagsterInstance.get() as instance:
        read = {
            **stored(instance, "shop", ["user_profiles"]),
            **varied(instance, "shop", {}, {"interactions.core": 6}, ["users"]),
            **varied(instance, "shop", {}, {"subspace.sparsity": 5}, ["item_profiles"]),
        }
    assert all(result.path.exists() for result in read.values())
    assert f"variants/shop/users/{read['users'].path.name}" == read["users"].path.relative_to(machine).as_posix()
    assert {"raw_reviews/shop.parquet", "user_profiles/shop.parquet", "item_profiles/shop.parquet"} <= copies(machine)
    assert "item_text_embeddings/shop.parquet" not in copies(machine)

    shop.edit("user.md.j2", lambda text: text.replace("Rely on the history", "Please rely on the history"))
    assert ran() == OF_THE_USER_PROMPT
    assert len(objects(shelf)) == len(manifests)
    use(monkeypatch, shop, shelf.url)
    assert ran() == set()
    for asset in ("user_profiles", "semantic_graph"):
        path = stored_path(dg.AssetKey(asset), "shop")
        assert path.read_bytes() == (machine / "store" / asset / "shop.parquet").read_bytes()


def test_a_store_that_is_empty_as_yet_gets_what_is_here(moved, url, tmp_path, monkeypatch):
    held = copies(moved.home)
    assert look(Refresh.plan).surely == {}
    assert objects(Bucket(url)) == []  # a look changes nothing
    assert ran() == set()
    assert {f"{name}.parquet" for name in Bucket(url).states()} == held
    use(monkeypatch, moved, url, tmp_path / "second")
    assert ran() == set()


def object_of(shelf: Bucket, asset: str) -> str:
    (key,) = [key for key in objects(shelf) if key.startswith(f"{asset}/shop/")]
    return key


@ON_S3
def test_a_damaged_object_is_made_again_in_the_same_command(moved, url, tmp_path, monkeypatch):
    ran()
    shelf = Bucket(url)
    key = object_of(shelf, "user_profiles")
    flip(shelf, key)
    use(monkeypatch, moved, url, tmp_path / "second")
    assert ran() == set()  # it has the name and the size of a whole one
    shelf._files.rm_file(shelf._path(object_of(shelf, "user_text_embeddings")))  # whose stage reads it
    assert ran() == {"user_profiles", "user_profile_failures", "user_text_embeddings"}
    assert [key in text for text in NEWS] == [True]
    assert object_of(shelf, "user_profiles") != key
    assert ran() == set()


@ON_S3
def test_an_object_that_is_gone_is_sent_again_by_who_has_a_copy_and_made_again_by_who_has_none(
    moved, url, tmp_path, monkeypatch
):
    ran()
    shelf = Bucket(url)
    shelf._files.rm_file(shelf._path(object_of(shelf, "semantic_graph")))
    assert ran() == set()
    key = object_of(shelf, "semantic_graph")
    shelf._files.rm_file(shelf._path(key))
    use(monkeypatch, moved, url, tmp_path / "second")
    (reason,) = look(Refresh.plan).states[Node(dg.AssetKey("semantic_graph"), "shop")].reasons
    assert key in reason
    assert ran() == {"semantic_graph"}
    assert ran() == set()


KILLED_REFRESH = """
import os, signal
from assets import bucket, cli

class Shelf(bucket.Bucket):
    def __init__(self, url):
        super().__init__(url)
        self._files.pipe_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

bucket.Bucket = Shelf
cli.main()
"""


def test_a_run_that_is_killed_before_the_switch_is_made_again(moved, url, tmp_path, monkeypatch):
    ran()
    shelf = Bucket(url)
    shelf._files.rm_file(shelf._path(object_of(shelf, "user_text_embeddings")))
    use(monkeypatch, moved, url, tmp_path / "second")
    command = [sys.executable, "-c", KILLED_REFRESH, "refresh", "-d", "shop"]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = object_of(shelf, "user_text_embeddings")
    assert not shelf.holds("user_text_embeddings/shop")  # the manifest names the old object
    assert ran() == {"user_text_embeddings"}
    manifest = shelf.manifest("user_text_embeddings/shop")
    assert manifest is not None
    assert manifest.object != left
    assert shelf.holds("user_text_embeddings/shop")
    assert ran() == set()


@ON_S3
def test_a_damaged_copy_is_fetched_again(moved, url):
    ran()
    path, below = (local_path(dg.AssetKey(name), "shop") for name in ("user_profiles", "user_text_embeddings"))
    whole, times = path.read_bytes(), path.stat()
    flip_a_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    below.unlink()
    shelf = Bucket(url)
    shelf._files.rm_file(shelf._path(object_of(shelf, "user_text_embeddings")))  # whose stage reads it
    assert ran() == {"user_text_embeddings"}
    assert path.read_bytes() == whole


@ON_S3
def test_results_wait_for_a_server_that_goes_away(moved, s3, monkeypatch):
    ran()
    moved.edit("user.md.j2", lambda text: text.replace("Rely on the history", "Please rely on the history"))
    model, once = moved.language_model, threading.Lock()
    answer = model.answer

    def last_answer(prompt: str) -> dict[str, str]:
        if once.acquire(blocking=False):
            s3.stop()
        return answer(prompt)

    monkeypatch.setattr(model, "answer", last_answer)
    try:
        with pytest.raises(StoreError, match=r"SCALE_STORE=s3://shelf/.*: cannot list the store"):
            ran()
    finally:
        s3.start()
    waiting = moved.home / "store" / ".unsent"
    assert {path.parent.name for path in waiting.rglob("*.parquet")} == {"user_profiles", "user_profile_failures"}
    plan = look(Refresh.plan)
    assert not list(waiting.rglob("*.parquet"))
    assert plan.states[Node(dg.AssetKey("user_profiles"), "shop")].status == "fresh"
    assert [node.name for node in plan.surely] == ["user_text_embeddings"]


def test_a_newer_result_is_not_replaced_by_one_that_waited(tmp_path, monkeypatch, url, shelf):
    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    monkeypatch.setenv("SCALE_STORE", url)
    waiting = tmp_path / "store" / ".unsent" / f"{NAME}.parquet"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"older")
    newer = file_of(tmp_path, b"newer")
    os.utime(newer, ns=(0, waiting.stat().st_mtime_ns + 1))
    shelf.send(newer, NAME)
    assert stored_path(dg.AssetKey("users"), "tiny").read_bytes() == b"newer"
    assert not waiting.exists()


@ON_S3
def test_the_command_says_what_is_wrong_with_the_store(moved, monkeypatch, capsys):
    monkeypatch.setenv("SCALE_STORE", "s3://nowhere/here")
    monkeypatch.setattr(sys, "argv", ["scale", "status", "-d", "shop"])
    with pytest.raises(SystemExit):
        main()
    told = " ".join(capsys.readouterr().err.split())
    assert told == "error: SCALE_STORE=s3://nowhere/here: there is no bucket nowhere; make it, or name another"
