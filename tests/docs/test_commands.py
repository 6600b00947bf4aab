"""What the pages say to type is typed, as it stands there and in its order; the tutorial has a test of its own."""

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import polars as pl
import pytest

from tests.docs.pages import FENCE, PAGES, PROJECT, README, surroundings
from tests.ports import free_port

FOLLOWED = [PROJECT / "docs" / f"{name}.md" for name in ("evidence", "serving", "operations")]
DATASETS = PROJECT / "tests" / "datasets"
# A command that is too long for this file, or that needs what is not here -> the file, and what in it runs it.
ELSEWHERE = {
    "make install": ("Makefile", "test: $(INSTALLED)"),
    "make test": (".ci/run", "make test"),
    "make docs": ("tests/docs/test_docs.py", '"mkdocs", "build", "--strict"'),
    ".venv/bin/pytest -m 'not slow' tests/unit_model": ("Makefile", "bin/pytest --numprocesses"),
    ".venv/bin/ruff check . && .venv/bin/ruff format .": ("Makefile", "bin/ruff format --check ."),
    ".venv/bin/mypy && .venv/bin/lint-imports": ("Makefile", "bin/lint-imports"),
    "make pictures": ("tests/browser/test_uis.py", "picture(page,"),
    "make secrets": ("tests/docker/test_compose.py", '"secrets"], cwd=tmp_path'),
    "docker compose --file docker/compose.yaml up --build --detach --wait": ("tests/docker/test_services.py", "health"),
    "vllm serve meta-llama/Llama-3.2-3B-Instruct --structured-outputs-config "
    '\'{"backend": "xgrammar", "disable_any_whitespace": true}\'': ("tests/vllm/test_vllm.py", "vllm serve"),
}
# What takes a quarter of an hour is typed with fewer models, epochs or trials, or on a smaller dataset.
SMALLER = {
    "scale report -d demo": "scale report -d tiny -m scale -m lightgcn",
    "-m scale -m lightgcn -m freedom --tuned": "-m lightgcn -m freedom --tuned",
    "evidence.seeds=5": "evidence.seeds=2",
    "training.epochs=50": "training.epochs=2",
    "sweep.trials=50": "sweep.trials=1",
}


def typed(page: Path) -> list[str]:
    """The lines of a page's shell fences, without comments."""
    fences = [content for kind, _, content in FENCE.findall(page.read_text()) if kind == "bash"]
    return [line.partition(" #")[0].strip() for content in fences for line in content.splitlines()]


def tabled() -> list[str]:
    """The commands of the README's table, with all that may be left out."""
    rows = re.findall(r"^\| `(scale [^`]+)` \|", README.read_text(), re.MULTILINE)
    return [" ".join(re.sub(r"[\[\]]|\.\.\.", "", row).split()) for row in rows]


class Reader:
    """Types commands, one after the other, in a home of its own; NAME in them is `dataset`."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self.home, self.dataset = folder, dataset
        self.environment = surroundings() | {"SCALE_HOME": str(folder), "SCALE_DATASETS": str(DATASETS)}
        self.shown: dict[str, str] = {}

    def follow(self, lines: Iterable[str]) -> None:
        """Type each line that is not typed elsewhere; what it shows is kept under it."""
        for line in lines:
            if line not in ELSEWHERE:
                self.shown[line] = self.type(line)

    def type(self, line: str) -> str:
        for written, instead in SMALLER.items():
            line = line.replace(written, instead)
        line = re.sub(r"\bNAME\b", self.dataset, line.replace("MODEL", "lightgcn"))
        line = re.sub(r"\bRAW_(USER_)?ID\b", lambda _: self.someone(), line)
        words = shlex.split(line.removeprefix(".venv/bin/"))
        if words[0] == "export":
            self.environment.update([words[1].split("=", 1)])
            return ""
        if words[:2] in (["scale", "ui"], ["scale", "serve"]):
            return self.visit(words)
        # Neither may make this environment anew: other tests run in it.
        if words[0] == "make":
            words += [f"VENV={sys.prefix}", f"--assume-old={sys.prefix}/.installed"]
        if words[0] == "pip":
            words += ["--dry-run"]
        done = subprocess.run(
            words, cwd=PROJECT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}"
        return done.stdout

    def someone(self) -> str:
        """A user's own id."""
        return str(pl.read_parquet(self.home / "store" / "users" / f"{self.dataset}.parquet")["raw_id"][0])

    def visit(self, words: list[str]) -> str:
        """Start a server, at ports that are free, see its pages' titles, and stop it as Ctrl-C does."""
        options = ["--dagster-port", "--mlflow-port"] if words[1] == "ui" else ["--port"]
        ports = [free_port() for _ in options]
        words = words + [word for pair in zip(options, map(str, ports), strict=True) for word in pair]
        with (self.home / "server.log").open("w+") as log:
            process = subprocess.Popen(words, cwd=PROJECT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                titles = [self.title(process, port) for port in ports]
            finally:
                process.send_signal(signal.SIGINT)
                status = process.wait(60)
            log.seek(0)
            shown = log.read()
        assert status in (0, 130), shown
        assert all(f":{port}" in shown for port in ports)
        return "\n".join(titles)

    def title(self, process: "subprocess.Popen[bytes]", port: int) -> str:
        """Of the page at a port, as soon as it is there."""
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            try:
                page = httpx.get(f"http://127.0.0.1:{port}/", follow_redirects=True)
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            assert page.status_code == 200
            return re.findall(r"<title[^>]*>(.*?)</title>", page.text, re.DOTALL)[0]
        raise AssertionError((self.home / "server.log").read_text())


def test_every_command_is_typed_here_or_named_with_what_runs_it():
    everywhere = {line for page in [README, *PAGES] if page.stem != "tutorial" for line in typed(page)}
    here = {line for page in [README, *FOLLOWED] for line in typed(page)}
    assert everywhere - here <= set(ELSEWHERE) <= everywhere
    for file, said in ELSEWHERE.values():
        assert said in (PROJECT / file).read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readme_on_the_demo(tmp_path: Path):
    reader = Reader(tmp_path, "demo")
    reader.follow(typed(README))
    for model in ("SCALE", "LightGCN", "BPR"):
        assert model in reader.shown["make demo"]
        assert model in reader.shown[".venv/bin/scale compare -d demo"]
    assert reader.shown[".venv/bin/scale ui"].splitlines() == ["Dagster", "MLflow"]
    assert "stale" not in reader.shown["scale status -d NAME"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_other_command_on_a_small_dataset(tmp_path: Path, s3: None):
    import s3fs

    s3fs.S3FileSystem().mkdir("my-bucket")
    reader = Reader(tmp_path, "tiny")
    reader.follow(tabled())
    reader.follow(["scale sweep -d NAME -m freedom --set sweep.trials=1"])  # as evidence.md says before
    reader.follow(line for page in FOLLOWED for line in typed(page) if not re.search(r"-d demo\b", line))
    assert "ran" in reader.shown["scale refresh"]
