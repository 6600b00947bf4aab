"""What a user types and reads."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import assets
import model
import pipeline as pipeline_package
from assets.cli import app, main

PROJECT = Path(__file__).parents[2]


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
    for command in ("run", "compare", "recommend", "datasets", "ui"):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-d", "dmo"], "there is no dataset 'dmo'"),
        (["run", "-d", "tiny", "-m", "lightgnc"], "lightgcn"),
        (["run", "-d", "tiny", "--set", "subspace.sparsiti=3"], "did you mean sparsity"),
        (["run", "-d", "tiny", "--set", "models.scale.relation_wieght=0"], "did you mean relation_weight"),
        (["run", "-d", "tiny", "--set", "training.epocs=3"], "did you mean epochs"),
        (["run", "-d", "tiny", "--set", "training.epochs"], "KEY=VALUE"),
        (["compare", "-d", "tiny"], "start one with: scale run --dataset tiny"),
        (["recommend", "-d", "tiny", "-u", "nobody"], "make them with: scale run --dataset tiny"),
        (["run"], "--dataset"),
    ],
)
def test_mistakes_are_explained(pipeline, capsys, monkeypatch, arguments: list[str], message: str):
    assert message in mistake(capsys, monkeypatch, *arguments)


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


def test_help_needs_no_heavy_import():
    script = "import sys; sys.argv = ['scale', '--help']; from assets.cli import app; app(standalone_mode=False); "
    script += "print(sorted({'torch', 'dagster', 'polars', 'mlflow', 'numba'} & set(sys.modules)))"
    shown = subprocess.check_output([sys.executable, "-c", script], text=True, env=os.environ)
    assert shown.strip().endswith("[]")
