"""What a user types and reads."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import assets
import model
import pipeline as pipeline_package
from assets import tracking
from assets.cli import app, main

PROJECT = Path(__file__).parents[2]
SUBSPACE = ("user_subspace_graph", "item_subspace_graph", "user_item_subspace_graph")


def scale(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def mistake(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The message of a command that cannot work; it must be one message, not a traceback."""
    monkeypatch.setattr(sys, "argv", ["scale", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code not in (0, None)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return " ".join((shown.out + shown.err).split())


def test_help_teaches():
    listing = scale("--help")
    for command in ("run", "status", "refresh", "cache", "compare", "recommend", "serve", "datasets", "ui"):
        assert command in listing
        assert "--help" in scale(command, "--help")
    assert "training.epochs=50" in scale("run", "--help")


def test_datasets_lists_built_in_and_own_ones():
    listing = scale("datasets")
    for name in ("demo", "baby", "sports", "clothing", "book", "yelp", "tiny"):
        assert name in listing


def test_results_of_a_run(finished):
    listing = scale("compare", "-d", "tiny")
    for title in ("SCALE", "LightGCN", "BPR", "R@20"):
        assert title in listing
    from assets.results import examples

    (user, _) = examples("tiny", "scale")
    shown = scale("recommend", "-d", "tiny", "-u", user, "-k", "3")
    assert user in shown
    assert "because of" in shown


def test_status_says_what_is_stale_why_and_what_a_refresh_would_run(finished):
    shown = scale("status", "-d", "tiny")
    assert "all 33 stages are up to date" in shown
    assert "stale" not in shown
    shown = " ".join(scale("status", "-d", "tiny", "--set", "subspace.sparsity=3").split())
    assert "stale" in shown
    assert all(name in shown.partition("a refresh of tiny runs ")[2].partition(" and, as")[0] for name in SUBSPACE)
    assert "as far as the results above them change, semantic_graph, trained_model (scale)" in shown
    assert "lightgcn" not in shown.partition("a refresh of tiny runs")[2]
    dry = scale("refresh", "--dry-run", "--set", "subspace.sparsity=3")
    assert all(name in dry for name in SUBSPACE)
    assert "all 33 stages are up to date; nothing ran" in scale("refresh", "-d", "tiny")


def test_refresh_reports_what_ran_and_what_was_cut_off(shop, open_pipeline):
    shop.edit("user.md.j2", lambda text: text.replace("{{ entry.title }}", '{{ entry["title"] }}'))
    with open_pipeline(shop.home):
        shown = " ".join(scale("refresh", "-d", "shop").split())
    assert (
        "running user_profile_failures, user_profiles (user prompt edited: '{{ loop.index }}. {{ entry.title" in shown
    )
    assert "unchanged" in shown
    assert "(unchanged above: user_profiles)" in shown
    assert "ran 2 of 33 stages" in shown
    assert "0 rows were computed and 60 reused" in shown
    assert "31 stages did not run" in shown


def test_the_caches_are_shown_and_pruned(shop, open_pipeline):
    with open_pipeline(shop.home):
        shown = scale("cache")
        assert re.search(r"shop +│ profiles +│ +108 +│ +108 ", shown), shown
        assert "user_profiles 0%" in " ".join(shown.split())
        shop.edit("user.md.j2", lambda text: text.replace("Rely on", "Please rely on"))
        scale("refresh", "-d", "shop")
        assert re.search(r"profiles +│ +168 +│ +108 ", scale("cache"))
        assert "0 unused rows older than 30 days deleted" in scale("cache", "--prune")
        assert "60 unused rows older than 0 days deleted" in scale("cache", "--prune", "--older-than", "0")
        assert re.search(r"profiles +│ +108 +│ +108 ", scale("cache", "-d", "shop"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "-d", "tiny"], "nothing of tiny has been made yet; start with: scale run --dataset tiny"),
        (["status", "-d", "dmo"], "there is no dataset 'dmo'"),
        (["refresh"], "nothing has been made yet; start with: scale run --dataset demo"),
        (["refresh", "--set", "subspace.sparsity"], "KEY=VALUE"),
        (["cache"], "no row cache under"),
        (["serve", "-d", "tiny", "--port", "0"], "tiny has no users yet; start with: scale run --dataset tiny"),
        (["serve", "-d", "tiny", "-m", "lightgnc"], "did you mean lightgcn?"),
        (["serve", "-d", "tiny", "--port", "70000"], "less than or equal to 65535"),
        (["run", "-d", "dmo"], "there is no dataset 'dmo'"),
        (["run", "-d", "tiny", "-m", "lightgnc"], "lightgcn"),
        (["run", "-d", "tiny", "--set", "subspace.sparsiti=3"], "did you mean sparsity"),
        (["run", "-d", "tiny", "--set", "models.scale.relation_wieght=0"], "did you mean relation_weight"),
        (["run", "-d", "tiny", "--set", "training.epocs=3"], "did you mean epochs"),
        (["run", "-d", "tiny", "--set", "training.epochs"], "KEY=VALUE"),
        (["compare", "-d", "tiny"], "start one with: scale run --dataset tiny"),
        (["recommend", "-d", "tiny", "-u", "nobody"], "make them with: scale run --dataset tiny"),
        (
            ["run", "-d", "tiny", "--tuned"],
            "scale has not been tuned on tiny; start with: scale sweep -d tiny -m scale",
        ),
        (["run"], "--dataset"),
    ],
)
def test_mistakes_are_explained(pipeline, capsys, monkeypatch, arguments: list[str], message: str):
    assert message in mistake(capsys, monkeypatch, *arguments)


def newest_settings() -> tuple[str, str]:
    """L2 and step size of the newest training of BPR-MF on `tiny`."""
    import mlflow

    experiment = tracking.connect("tiny")
    run = mlflow.MlflowClient().search_runs([experiment], "tags.model = 'bpr'", max_results=1)[0]
    return run.data.params["model.l2"], run.data.params["training.learning_rate"]


@pytest.mark.slow
def test_tuned_trains_with_what_the_sweep_found_under_what_is_set(built, tmp_path, open_pipeline):
    with open_pipeline(shutil.copytree(built, tmp_path / "home")):
        space = "sweep.spaces={bpr: {l2: [0.3], training.learning_rate: [0.02]}}"
        swept = " ".join(scale("sweep", "-d", "tiny", "-m", "bpr", "--set", space).split())
        assert "train with it: scale run -d tiny -m bpr --tuned" in swept
        scale("run", "-d", "tiny", "-m", "bpr", "--tuned")
        assert newest_settings() == ("0.3", "0.02")
        scale("run", "-d", "tiny", "-m", "bpr", "--tuned", "--set", "models.bpr.l2=0.1")
        assert newest_settings() == ("0.1", "0.02")


def test_an_unknown_user_is_told_who_there_is(finished, capsys, monkeypatch):
    assert "has no user 'nobody'" in mistake(capsys, monkeypatch, "recommend", "-d", "tiny", "-u", "nobody")


def test_a_taken_port_is_named(pipeline, capsys, monkeypatch):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = mistake(capsys, monkeypatch, "ui", "--dagster-port", str(port))
    assert f"port {port} is taken" in message
    assert f"--dagster-port {port + 1}" in message


def test_the_packages_are_the_projects_own():
    for package in (assets, model, pipeline_package):
        assert Path(package.__file__).parent.parent == PROJECT
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["pipeline", "assets", "model"]


HEAVY = {"torch", "numba", "sklearn", "matplotlib", "plotly", "optuna", "transformers"}


@pytest.mark.parametrize(
    ("arguments", "spared"),
    [
        (["--help"], HEAVY | {"dagster", "polars", "mlflow"}),
        (["status", "-d", "tiny"], HEAVY | {"mlflow", "pandas"}),
        (["compare", "-d", "tiny"], HEAVY | {"dagster"}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_only_looks_imports_nothing_heavy(arguments, spared, finished):
    script = f"import sys; sys.argv = ['scale', *{arguments}]; from assets.cli import app; app(standalone_mode=False); "
    script += f"print(sorted({spared} & set(sys.modules)))"
    shown = subprocess.check_output([sys.executable, "-c", script], text=True, env=os.environ)
    assert shown.strip().endswith("[]")


def test_a_folder_of_datasets_that_is_not_there_is_named(tmp_path):
    command = [sys.executable, "-c", "from assets.cli import main; main()", "datasets"]
    environment = os.environ | {"SCALE_DATASETS": str(tmp_path / "nowhere")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    said = " ".join(ended.stderr.split())
    assert said.startswith("error: SCALE_DATASETS names")
    assert said.endswith("which is not a folder")


def test_results_are_shown_at_the_cut_offs_that_were_measured():
    from assets.terminal import results_table

    row = {"run": "SCALE", "recall_at_20": 0.4, "ndcg_at_5": 0.1, "recall_at_5": 0.2, "valid_recall_at_3": 1.0}
    table = results_table([row], {}, "Test")
    assert [str(column.header) for column in table.columns][3:] == ["R@5", "R@20", "N@5"]


@pytest.mark.parametrize("deaf", [False, True], ids=["foreground", "in a script's background"])
def test_kill_ends_a_command_as_ctrl_c_does(deaf: bool, monkeypatch: pytest.MonkeyPatch):
    """A run of Dagster's gives SIGTERM the handler of SIGINT, which may be to ignore it."""
    from dagster._utils.interrupts import capture_interrupts

    told: list[str] = []

    def command(**_: object) -> None:
        with capture_interrupts():
            pass
        for stop in (signal.SIGINT, signal.SIGTERM):
            try:
                os.kill(os.getpid(), stop)
            except KeyboardInterrupt:
                told.append(stop.name)

    monkeypatch.setattr("assets.cli.app", command)
    before = {stop: signal.getsignal(stop) for stop in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
    try:
        main()
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
    assert told == (["SIGTERM"] if deaf else ["SIGINT", "SIGTERM"])
