"""The whole pipeline on a Ray cluster of this machine: the results are those that it has here."""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from assets import sweep, trials
from assets.model_groups import group_of
from assets.progress import Progress
from assets.refresh import Refresh
from assets.settings import dataset
from assets.store import stored_path
from assets.training import inputs_of
from assets.variants import stored
from assets.versions import SETTINGS, code_parts, settings_content
from pipeline import compute
from pipeline.compute import cluster
from pipeline.embeddings import spread as spread_encoder
from pipeline.graphs import products
from pipeline.profiles import spread as spread_engine
from pipeline.settings import ComputeSettings

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]' -c constraints.txt")
RAY = {"compute": "ray"}
FEW = {"training.epochs": 2}
GRID = {"lightgcn": {"layers": [1, 2], "l2": [0.0, 0.1]}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def on_ray(fake_vllm: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(fake_vllm))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster(ComputeSettings(kind="ray"))
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def home(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder in which everything of `tiny` has run, for these tests alone."""
    return Path(shutil.copytree(built, tmp_path_factory.mktemp("here") / "home"))


@pytest.fixture
def here(home: Path, open_pipeline: Callable[[Path], Any]) -> Iterator[Any]:
    with open_pipeline(home) as opened:
        yield opened


def killed(marker: Path) -> Callable[..., None]:
    """Kill this process, once."""

    def kill(*_: Any) -> None:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def test_every_result_is_the_one_that_it_is_here_and_a_switch_makes_nothing_stale(here, tmp_path, open_pipeline):
    models = ["scale"]
    expected = here.versions(models)
    assert here.run(models=models, **RAY) == set()
    with open_pipeline(tmp_path / "there") as there:
        assert {"user_subspace_graph", "user_text_embeddings"} <= there.run(models=models, **RAY)
        assert there.versions(models) == expected
        assert there.run(models=models) == set()


@pytest.fixture
def worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, list[Any]]]:
    """Gives what workers took: batches by the actor that they went to, blocks as lengths of the arrays to compare."""
    notes = tmp_path / "notes"
    work = compute._all

    def note(name: str, what: Any) -> None:
        with notes.open("a") as file:
            file.write(json.dumps([name, what]) + "\n")

    def block(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        note("blocks", [function.__name__, *(array if array is None else len(array) for array in arguments[:2])])
        return work(function, *arguments)

    class Worker(compute._Worker):
        def __call__(self, table: Any) -> Any:
            note(self._make.func.__name__, table.to_pydict())
            return super().__call__(table)

    def read() -> dict[str, list[Any]]:
        taken: dict[str, list[Any]] = {"_Engine": [], "_Encoder": [], "blocks": []}
        for name, what in map(json.loads, notes.read_text().splitlines() if notes.exists() else ()):
            taken[name].append(what)
        return taken

    monkeypatch.setattr(compute, "_all", block)
    monkeypatch.setattr(compute, "_Worker", Worker)
    return read


@pytest.mark.skipif("SCALE_TEST_ENCODER" not in os.environ, reason="install the dev extra: it carries the encoder")
def test_profiles_vectors_and_graphs_are_made_by_workers(tmp_path, llama, open_pipeline, worked, monkeypatch):
    settings = {
        "source": {"kind": "demo", "users": 60, "items": 50},
        "profiles.backend": "vllm",
        "profiles.model": {"name": str(llama), "max_tokens": 32, "attempts": 2},
        "embeddings.encoder": "sentence-transformers",
        "embeddings.model": os.environ["SCALE_TEST_ENCODER"],
        "subspace.dictionary_size": 30,
    }

    def made(place: str, **compute: Any) -> dict[str, pl.DataFrame]:
        with open_pipeline(tmp_path / place) as opened:
            changes = {**settings, "compute": compute}
            report = Refresh(opened.instance, "tiny", changes, ["scale"], Progress(), targets="inputs").run()
            return {ran.node.name: pl.read_parquet(stored_path(ran.node.key, "tiny")) for ran in report.ran}

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has: which of two neighbours is nearer may hang on a vector's last bits
    here = made("here", kind="local")
    torch.set_num_threads(threads)
    monkeypatch.setattr(products, "LARGEST_BLOCK", 25)
    monkeypatch.setattr(spread_engine, "PROMPTS", 20)
    monkeypatch.setattr(spread_encoder, "TEXTS", 20)
    there = made("there", kind="ray", actors=1)

    assert there.keys() == here.keys()
    for name, expected in here.items():
        assert_frame_equal(there[name], expected, rel_tol=0, abs_tol=1e-6)

    taken, (items, users) = worked(), (here["items"].height, here["users"].height)
    prompts = [prompt for batch in taken["_Engine"] for prompt in batch["prompt"]]
    assert (sum("<record>" in prompt for prompt in prompts), len(prompts)) == (items, items + users)
    texts = {text for batch in taken["_Encoder"] for text in batch["text"]}
    assert texts == {text for name in ("item_profiles", "user_profiles") for text in here[name]["summary"]}
    few, more = -(-items // 25), -(-users // 25)
    assert Counter(map(tuple, taken["blocks"])) == {
        ("_compare", users, None): more,
        ("_compare", items, None): 2 * few,  # texts and images
        ("_compare", users, items): 2 * more,  # for both kinds of graph
        ("_pursued", users, users): more,
        ("_pursued", items, items): few + more,  # of items and of users
    }


def test_where_work_is_done_is_part_of_no_version():
    from assets.definitions import defs

    near, far = dataset("tiny"), dataset("tiny", {"compute": {"kind": "ray", "address": "head:6379", "actors": 3}})
    assert near != far
    assert all(settings_content(name, near) == settings_content(name, far) for name in SETTINGS)
    graph = defs.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        assert not any(name.startswith("pipeline.compute") for name in code_parts(graph.get(key).code_version))


def seeds(pipeline: Any, parallel: int, **overrides: Any) -> list[pl.DataFrame]:
    """Metrics and lists of two seeds."""
    inputs = stored(pipeline.instance, "tiny", inputs_of(group_of("lightgcn")))
    made = trials.seeds_of("tiny", "lightgcn", "LightGCN", {**FEW, **overrides}, inputs, 2)
    steps: list[int] = []
    outcomes = trials.run(made, parallel, lambda done, *_: steps.append(done))
    assert steps == [0, 1, 2]
    return [outcome.users for outcome in outcomes]


def test_seeds_are_equal_also_when_a_worker_is_lost(here, tmp_path, monkeypatch):
    alone = seeds(here, 1)
    marker = tmp_path / "lost"
    kill = killed(marker)

    def lossy(trial: Any, threads: int | None) -> None:
        from assets import trials, workers

        assert threads == 1
        if trial.seed == 1:
            peak = workers.peak_memory
            workers.peak_memory = lambda: (kill(), peak())[1]
        trials._train(trial, threads)

    monkeypatch.setattr(trials, "_train", lossy)
    # Patience does not matter in so few epochs, but it makes other trials of these.
    spread = seeds(here, os.cpu_count() or 1, **RAY, **{"training.patience": 18})
    assert marker.exists()
    for one, other in zip(alone, spread, strict=True):
        assert one.equals(other)


def test_a_sweep_tries_the_same_also_when_a_worker_is_lost_in_a_trial(here, tmp_path, monkeypatch):
    def tried(parallel: int, **more: Any) -> dict[tuple[Any, ...], float]:
        search = {"sweep.spaces": GRID, "sweep.prune": False, "sweep.trials": 20, "sweep.parallel": parallel}
        found = sweep.sweep(here.instance, "tiny", "lightgcn", {**FEW, **search, **more}, lambda *_: None)
        for journal in sweep.tuned_path("tiny", "lightgcn").parent.glob("lightgcn-*.log"):
            journal.unlink()
        assert len(found.trials) == 4
        return {
            tuple(value for key, value in trial.items() if key.startswith("models.")): trial["value"]
            for trial in found.trials
        }

    alone = tried(1)
    assert len(alone) == 4
    marker = tmp_path / "lost"
    kill = killed(marker)

    def lossy(job: sweep.Job, number: int) -> None:
        from assets import sweep

        if number == 2:
            build = sweep.build
            sweep.build = lambda *arguments: (kill(), build(*arguments))[1]
        sweep._run_trial(job, number)

    monkeypatch.setattr(sweep, "_run_trial", lossy)
    assert tried(2, **RAY) == alone
    assert marker.exists()
