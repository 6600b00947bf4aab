"""A refresh after any edits leaves what a rebuild from nothing makes, whoever else is at it and whatever is killed.

The project is copied, so that its code can be edited too, and every refresh is a process of its own.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parents[2]

# Refreshes a dataset in each home folder that it is given, and says what ran and how everything then stands.
REFRESH = """
import json, os, sys
import dagster as dg
from assets import home
from assets.progress import Progress
from assets.refresh import Refresh

for folder in sys.argv[2:]:
    os.environ["SCALE_HOME"] = folder
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    home.dagster_home()
    with dg.DagsterInstance.get() as instance:
        refresh = Refresh(instance, sys.argv[1], {}, ["scale", "lightgcn"], Progress())
        report = refresh.run()
        states = refresh.states()
    print(json.dumps({
        "ran": {ran.node.name: ran.why for ran in report.ran},
        "versions": {node.name: state.record.version for node, state in states.items()},
        "stale": [node.name for node, state in states.items() if state.status != "fresh"],
    }))
"""


@dataclass
class Outcome:
    ran: dict[str, str]
    versions: dict[str, str]
    stale: list[str]


class Workshop:
    """A copy of the project beside a shop, both to be edited."""

    def __init__(self, shop: Any, folder: Path) -> None:
        self.shop, self.folder = shop, folder
        for name in ("pipeline", "model", "assets"):  # compiled kernels come along: they go by the source's time
            shutil.copytree(PROJECT / name, folder / name)
        shutil.copy(PROJECT / "dagster.yaml", folder / "dagster.yaml")
        (folder / "datasets").mkdir()
        self.settings = folder / "datasets" / "shop.yaml"
        for name in ("shop.yaml", "tiny.yaml"):
            shutil.copy(PROJECT / "tests" / "datasets" / name, folder / "datasets" / name)

    def start(self, *homes: Path, dataset: str = "shop") -> "subprocess.Popen[str]":
        environment = os.environ | self.shop.environment
        environment |= {"PYTHONPATH": str(self.folder), "SCALE_DATASETS": str(self.folder / "datasets")}
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", REFRESH, dataset, *map(str, homes)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def refresh(self, *homes: Path, dataset: str = "shop") -> list[Outcome]:
        return finish(self.start(*homes, dataset=dataset))

    def edit_code(self, name: str, change: Callable[[str], str]) -> None:
        path = self.folder / name
        before = path.read_text()
        after = change(before)
        assert after != before, name
        path.write_text(after)

    def set(self, group: str, **values: Any) -> None:
        content = yaml.safe_load(self.settings.read_text())
        content.setdefault(group, {}).update(values)
        self.settings.write_text(yaml.safe_dump(content))


def finish(process: "subprocess.Popen[str]") -> list[Outcome]:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    return [Outcome(**json.loads(line)) for line in output.splitlines() if line.startswith("{")]


@pytest.fixture
def workshop(shop, tmp_path: Path) -> Workshop:
    return Workshop(shop, tmp_path / "project")


# ------------------------------------------------------------------------------------------ edits of code

SUBSPACE = {"user_subspace_graph", "item_subspace_graph", "user_item_subspace_graph"}


def test_edits_of_code(workshop: Workshop):
    home = workshop.shop.home
    # The shop was built by the same code elsewhere; bpr is not looked after here.
    assert workshop.refresh(home)[0].ran == {}

    workshop.edit_code(
        "pipeline/graphs/omp.py", lambda text: text.replace('"""', '"""Another docstring. ', 1) + "# end\n"
    )
    workshop.edit_code("assets/graphs.py", lambda text: "# a comment\n\n" + text)
    workshop.edit_code("model/scale.py", lambda text: text + "\n# the end\n")
    assert workshop.refresh(home)[0].ran == {}

    workshop.edit_code("pipeline/graphs/omp.py", lambda text: text + "\nUNUSED = 1\n")
    outcome = workshop.refresh(home)[0]
    assert outcome.ran.keys() == SUBSPACE
    assert set(outcome.ran.values()) == {"edited code: pipeline.graphs.omp"}

    workshop.edit_code("model/baselines/lightgcn.py", lambda text: text + "\nUNUSED = 1\n")
    outcome = workshop.refresh(home)[0]
    assert outcome.ran.keys() == {"trained_model (lightgcn)", "user_metrics (lightgcn)"}
    assert set(outcome.ran.values()) == {"edited code: model.baselines.lightgcn"}


# ---------------------------------------------------------------------------------- any edits, in any order


def describe_an_item(workshop: Workshop, rng: random.Random) -> None:
    record = rng.choice(workshop.shop.records("meta.json"))
    described = record | {"description": [f"Number {rng.random()} of its kind, with a lantern and a map."]}
    workshop.shop.edit("meta.json", lambda text: text.replace(json.dumps(record), json.dumps(described), 1))


def review_an_item(workshop: Workshop, rng: random.Random) -> None:
    users, items = ([record[key] for record in workshop.shop.records("reviews.json")] for key in ("reviewerID", "asin"))
    review = {"reviewerID": rng.choice(users), "asin": rng.choice(items), "overall": 4.0, "reviewText": "A lantern!"}
    review["unixReviewTime"] = 1_500_000_000 + rng.randrange(10**6)
    workshop.shop.edit("reviews.json", lambda text: text + json.dumps(review) + "\n")


def withdraw_a_review(workshop: Workshop, rng: random.Random) -> None:
    gone = json.dumps(rng.choice(workshop.shop.records("reviews.json")))
    workshop.shop.edit("reviews.json", lambda text: text.replace(gone + "\n", "", 1))


def break_a_line(workshop: Workshop, rng: random.Random) -> None:
    workshop.shop.edit("reviews.json", lambda text: text + '{"reviewerID": ' + str(rng.random()) + "\n")


def reword(name: str) -> Callable[[Workshop, random.Random], None]:
    def edit(workshop: Workshop, rng: random.Random) -> None:
        workshop.shop.edit(name, lambda text: text.replace("# Task", f"# Task {rng.random()}", 1))

    return edit


def comment_on_a_prompt(workshop: Workshop, rng: random.Random) -> None:
    workshop.shop.edit("user.md.j2", lambda text: f"{{# {rng.random()} #}}\n{text}")


def choose(group: str, name: str, *values: Any) -> Callable[[Workshop, random.Random], None]:
    return lambda workshop, rng: workshop.set(group, **{name: rng.choice(values)})


def renumber(path: str, constant: str, low: float, high: float) -> Callable[[Workshop, random.Random], None]:
    """Give a module's constant another value, of the same type."""

    def edit(workshop: Workshop, rng: random.Random) -> None:
        def change(text: str) -> str:
            found = re.search(rf"(?m)^{constant} = (\d+(\.\d+)?)", text)
            assert found, constant
            value = found[1]
            while value == found[1]:
                value = f"{rng.uniform(low, high):.2f}" if found[2] else str(rng.randint(int(low), int(high)))
            return text.replace(found[0], f"{constant} = {value}", 1)

        workshop.edit_code(path, change)

    return edit


def add_code(path: str) -> Callable[[Workshop, random.Random], None]:
    return lambda workshop, rng: workshop.edit_code(path, lambda text: text + f"\nUNUSED = {rng.random()}\n")


EDITS: dict[str, Callable[[Workshop, random.Random], None]] = {
    "describe an item": describe_an_item,
    "review an item": review_an_item,
    "withdraw a review": withdraw_a_review,
    "break a line": break_a_line,
    "reword the user prompt": reword("user.md.j2"),
    "reword the item prompt": reword("item.md.j2"),
    "comment on a prompt": comment_on_a_prompt,
    "sparsity": choose("subspace", "sparsity", 2, 3, 4, 5),
    "neighbours": choose("similarity", "neighbours", 2, 3, 4, 5),
    "fusion": choose("fusion", "operator", "union", "intersection"),
    "dimensions": choose("embeddings", "dimensions", 8, 16, 24),
    "core": choose("interactions", "core", 1, 4, 5),
    "split": choose("interactions", "seed", 0, 1, 2),
    "history": choose("profiles", "history", "train", "all"),
    "prompt budget": choose("profiles", "prompt_words", 300, 400, 1500),
    "epochs": choose("training", "epochs", 1, 2, 3),
    "code of the split": renumber("pipeline/splits.py", "FEW", 6, 14),
    "code of cleaning": renumber("pipeline/profiles/text.py", "_LONGEST_WORD", 30, 60),
    "code of prompts": renumber("pipeline/profiles/prompts.py", "_LARGEST_SHARE", 2, 6),
    "code of fusion": add_code("pipeline/graphs/fusion.py"),
    "code of matching pursuit": add_code("pipeline/graphs/omp.py"),
    "code of training": add_code("model/training.py"),
    "code of a stage": add_code("assets/graphs.py"),
}
STEPS = 6


@pytest.mark.parametrize("seed", [0])
def test_any_edits_leave_what_a_rebuild_makes(
    workshop: Workshop, tmp_path: Path, new_home: Callable[[Path], Path], seed: int
):
    rng = random.Random(seed)
    done: list[str] = []
    for step in range(STEPS):
        for name in rng.sample(sorted(EDITS), rng.randint(1, 3)):
            EDITS[name](workshop, rng)
            done.append(f"{step}: {name}")
        refreshed, rebuilt = workshop.refresh(workshop.shop.home, new_home(tmp_path / f"clean{step}"))
        assert refreshed.stale == rebuilt.stale == [], done
        different = {name for name, version in rebuilt.versions.items() if refreshed.versions[name] != version}
        assert not different, f"{sorted(different)} differ from a rebuild after {done}; ran {refreshed.ran}"
        shutil.rmtree(tmp_path / f"clean{step}")


# --------------------------------------------------------------------------------------- at once, and killed


STAGES_OF_WAVES = ("item_profiles", "user_profiles", "item_text_embeddings", "item_subspace_graph", "semantic_graph")


def wait_for(process: "subprocess.Popen[str]", path: Path) -> None:
    """Until a file appears or is written anew, or the process is over."""
    before = path.stat().st_mtime_ns if path.exists() else None
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
        time.sleep(0.002)


def test_two_datasets_at_once(workshop: Workshop, tmp_path: Path, new_home):
    home, clean = workshop.shop.home, new_home(tmp_path / "clean")
    reword("user.md.j2")(workshop, random.Random(1))
    both = [workshop.start(home, dataset="shop"), workshop.start(home, dataset="tiny")]
    together = [finish(process)[0] for process in both]
    for dataset, outcome in zip(("shop", "tiny"), together, strict=True):
        assert outcome.stale == []
        assert outcome.versions == workshop.refresh(clean, dataset=dataset)[0].versions
    assert "item_profiles" not in together[0].ran


def test_an_edit_and_a_second_refresh_while_one_runs(workshop: Workshop, tmp_path: Path, new_home):
    home, clean = workshop.shop.home, new_home(tmp_path / "clean")
    rng = random.Random(2)
    reword("user.md.j2")(workshop, rng)
    first = workshop.start(home)
    wait_for(first, home / "store" / "user_profiles" / "shop.parquet")
    reword("user.md.j2")(workshop, rng)
    second = workshop.start(home)
    outcomes = [finish(process)[0] for process in (first, second)]
    assert outcomes[1].stale == []
    assert outcomes[1].versions == workshop.refresh(clean)[0].versions


def test_killed_in_the_middle_of_every_wave(workshop: Workshop, tmp_path: Path, new_home):
    home, clean = workshop.shop.home, new_home(tmp_path / "clean")
    reword("item.md.j2")(workshop, random.Random(3))
    workshop.set("subspace", sparsity=3)
    for name in ("cache/profiles/shop/in_use/item", *(f"store/{stage}/shop" for stage in STAGES_OF_WAVES)):
        process = workshop.start(home)
        wait_for(process, home / f"{name}.parquet")
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    refreshed, rebuilt = workshop.refresh(home, clean)
    assert refreshed.stale == []
    assert refreshed.versions == rebuilt.versions
    assert not list(home.rglob("*.tmp"))
