"""The graph of stages as it is kept between commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from assets import kept_graph
from assets.definitions import defs
from assets.kept_graph import asset_graph
from assets.nodes import closed, graph_of, parents
from assets.staleness import wanted

SHORT = """
import contextlib, sys
from assets import cli
sys.argv = ["scale", *sys.argv[1:]]
with contextlib.suppress(SystemExit):
    cli.main()
print(",".join(name for name in ("assets.stages", "polars", "numpy", "pyarrow") if name in sys.modules))
"""


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in a process that has not loaded the stages, with an empty home folder; gives the file that is kept."""
    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    monkeypatch.setattr(kept_graph, "_are_loaded", lambda: False)
    return tmp_path / "cache" / "code" / "graph.json"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the stages are loaded."""
    taken: list[int] = []
    monkeypatch.setattr(kept_graph, "_loaded", lambda loaded=kept_graph._loaded: taken.append(1) or loaded())
    return taken


def test_what_is_kept_is_what_dagster_says(apart: Path, looks: list[int]):
    dagsters = graph_of(defs.resolve_asset_graph())
    assert asset_graph() == asset_graph() == dagsters
    assert len(looks) == 1
    assert list(asset_graph()) == list(dagsters)  # in dependency order, too
    assert all(asset.code for asset in asset_graph().values() if asset.made)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}'])
def test_damage_and_a_home_that_cannot_be_written_cost_the_time_again(apart: Path, looks: list[int], damage: str):
    first = asset_graph()
    apart.write_text(damage)
    assert asset_graph() == first
    assert json.loads(apart.read_text())["state"]
    apart.unlink()
    for each in apart.parent.iterdir():
        each.unlink()
    apart.parent.rmdir()
    apart.parent.write_text("")
    assert asset_graph() == first
    assert len(looks) == 3


def test_an_edit_of_any_file_that_may_count_makes_it_anew(
    apart: Path, looks: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("assets/a.py", "model/b.py", "pipeline/sub/c.yaml", "pipeline/d.j2"):
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text("1")
    monkeypatch.setattr(kept_graph, "PROJECT", tmp_path / "project")
    asset_graph()
    for count, name in enumerate(("assets/a.py", "model/b.py", "pipeline/sub/c.yaml", "pipeline/d.j2"), start=2):
        (tmp_path / "project" / name).write_text("2")
        asset_graph()
        assert len(looks) == count
    (tmp_path / "project" / "assets" / "notes.txt").write_text("no code")
    asset_graph()
    assert len(looks) == 5


def test_a_file_saved_while_stages_are_loaded_keeps_nothing(apart: Path, monkeypatch: pytest.MonkeyPatch):
    states = iter(["before", "after"])
    monkeypatch.setattr(kept_graph, "_state", lambda: next(states))
    asset_graph()
    assert not apart.exists()


def test_a_process_that_has_loaded_the_stages_goes_by_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    assert asset_graph() == graph_of(defs.resolve_asset_graph())
    assert not (tmp_path / "cache").exists()


def test_nodes_come_after_what_they_are_made_from():
    graph = graph_of(defs.resolve_asset_graph())
    nodes = wanted(graph, "demo", ["scale", "lightgcn"])
    place = {node: position for position, node in enumerate(nodes)}
    for node in nodes:
        assert all(place[above] < place[node] for above in parents(graph, node) if above in place)
    assert closed(graph, nodes) == nodes


def test_a_look_imports_no_stage(shop):
    """Nor what these compute with: it is most of what a short command would take."""
    for _ in range(2):  # the first may have to load the stages
        done = subprocess.run([sys.executable, "-c", SHORT, "status", "-d", "shop"], capture_output=True, text=True)
        assert "fresh" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == ""
    done = subprocess.run([sys.executable, "-c", SHORT, "refresh", "-d", "shop"], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done.stderr
