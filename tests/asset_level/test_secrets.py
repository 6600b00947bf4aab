"""No password or token is shown: in lists of processes, messages, files that wait, a cluster's dashboard."""

import json
from typing import Any

import pytest

from assets import home, parcels, servers, tracking, workers

URI = "postgresql://me:s3cret@db/mlflow"
SHOWN = "postgresql://me:***@db/mlflow"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (URI, SHOWN),
        ("https://me:s3/c:r@et@host:5000/a", "https://me:***@host:5000/a"),
        ("postgresql://db/mlflow?user=me&password=s3cret&sslpassword=s3&a=b",
         "postgresql://db/mlflow?user=me&password=***&sslpassword=***&a=b"),
        ("http://host:5000", "http://host:5000"),
        ("http://me@host:5000", "http://me@host:5000"),
        ("sqlite:////home/a:b@c/mlflow.db", "sqlite:////home/a:b@c/mlflow.db"),
    ],
)  # fmt: skip
def test_a_uri_is_shown_without_its_password(uri, shown):
    assert home.shown(uri) == shown
    assert home.shown(shown) == shown


def test_the_ui_of_mlflow_is_told_its_store_by_the_environment(monkeypatch, tmp_path):
    from mlflow.cli import server

    (option,) = (each for each in server.params if each.name == "backend_store_uri")
    started: dict[str, dict[str, Any]] = {}

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            started[" ".join(command)] = options["env"]

        def poll(self) -> None:
            raise KeyboardInterrupt

        def terminate(self) -> None:
            pass

        def wait(self, timeout: float) -> None:
            pass

    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    monkeypatch.setattr(servers, "connect", lambda experiment: "0")
    monkeypatch.setattr(servers, "_answers", lambda port: False)
    monkeypatch.setattr(servers.home, "dagster_home", lambda: tmp_path)
    monkeypatch.setattr(servers.signal, "signal", lambda *_: None)
    monkeypatch.setattr(servers.subprocess, "Popen", Process)
    servers.serve(3000, 5000)
    (environment,) = (each for command, each in started.items() if "mlflow server" in command)
    assert environment[option.envvar] == URI
    assert "s3cret" not in " ".join(started)


def test_messages_and_parcels_hold_no_password(pipeline, tmp_path, monkeypatch, caplog):
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.brief_run(tracking.connect("tiny"), "short", {}, {}) as run:
        away = "http://me:s3cret@127.0.0.1:9"  # nobody listens there
        monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
        mlflow.set_tracking_uri(away)
    content = json.loads((parcels.folder() / run.run_id / parcels.CONTENT).read_text())
    assert content["store"] == home.shown(away)
    assert home.shown(away) in caplog.text
    with pytest.raises(tracking.TrackingError) as told:
        tracking.connect("tiny")
    assert home.shown(away) in str(told.value)
    assert "s3cret" not in caplog.text + str(told.value)


def test_a_cluster_is_given_no_token(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALE_HOME", str(tmp_path))
    monkeypatch.setenv("SCALE_SERVE_TOKEN", "s3cret")
    monkeypatch.setenv("SCALE_DATASETS", "/data")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    sent = workers.environment()
    assert "s3cret" not in sent.values()
    expected = {"SCALE_HOME": str(tmp_path), "SCALE_DATASETS": "/data", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert expected.items() <= sent.items()
