"""An MLflow server that is gone in the middle of a training: nothing of the run is lost."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assets import home, parcels, tracking
from assets.progress import Progress
from assets.servers import MLFLOW_VARIABLES
from tests.ports import free_port

STARTING_SECONDS = 120


class Server:
    """`mlflow server` on a port and a store of its own, to be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store, artifacts = f"sqlite:///{self.folder / 'server.db'}", self.folder / "artifacts"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--backend-store-uri", store]
        self.process = subprocess.Popen(
            [*command, "--artifacts-destination", str(artifacts)],
            env=os.environ | MLFLOW_VARIABLES,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=5)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise TimeoutError(self.address)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_server_that_is_gone_in_a_training(server, open_pipeline, tmp_path, monkeypatch, caplog):
    import mlflow

    from assets.refresh import Refresh

    class Stopping(Progress):
        def bar(self, context: object, label: str) -> Callable[..., None]:
            def advance(done: int, total: int, *_: object) -> None:
                if label.startswith("training") and done == 2:
                    server.stop()

            return advance

    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    with open_pipeline(tmp_path / "home") as pipeline:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        ran = Refresh(pipeline.instance, "tiny", {}, ["bpr"], Stopping()).run().ran
        assert "recommendations (bpr)" in {each.node.name for each in ran}
        (waiting,) = parcels.folder().glob("[!.]*")
        assert "goes with the next command" in caplog.text
        with pytest.raises(tracking.TrackingError, match=r"does not answer .*; start it, or unset MLFLOW_TRACKING_URI"):
            tracking.connect("tiny")
        server.start()
        experiment = tracking.connect("tiny")
        assert not waiting.exists()
        client = mlflow.MlflowClient()
        (run,) = client.search_runs([experiment])
        assert run.info.status == "FINISHED"
        assert "test_recall_at_20" in run.data.metrics
        points = client.get_metric_history(run.info.run_id, "loss_total")
        assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
        assert {file.path for file in client.list_artifacts(run.info.run_id, "curves")} == {
            "curves/loss.png",
            "curves/validation.png",
        }
        assert len(mlflow.search_logged_models(experiment_ids=[experiment], output_format="list")) == 1


def test_a_parcel_waits_for_its_own_store(pipeline, tmp_path, monkeypatch):
    import mlflow

    experiment = tracking.connect("tiny")
    with tracking.brief_run(experiment, "short", {}, {}) as run:
        run.log({"loss": 1.0}, 1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    tracking.connect("tiny")
    assert [each.name for each in parcels.folder().glob("[!.]*")] == [run.run_id]


DAMAGED = [
    (parcels.CONTENT, '{"store": "sqli'),
    (parcels.CONTENT, ""),
    (parcels.CONTENT, "[]"),
    (parcels.CONTENT, "{}"),
    (parcels.CONTENT, '{"store": 1, "run_id": "a", "status": "FINISHED", "metrics": []}'),
    (parcels.CONTENT, '{"store": "s", "run_id": "a", "status": "FINISHED", "metrics": [["loss"]]}'),
    (parcels.MODEL_CONTENT, '{"name": "scale", "users'),
]


def test_damaged_parcels_are_set_aside_and_the_next_one_delivered(pipeline, caplog):
    import mlflow

    experiment = tracking.connect("tiny")
    client = mlflow.MlflowClient()
    run = client.create_run(experiment)
    content = {"store": home.tracking_uri(), "run_id": run.info.run_id, "status": "FINISHED", "metrics": []}
    names = [f"0-{number}" for number in range(len(DAMAGED))]  # come before the run's id
    for name in [*names, run.info.run_id]:
        (parcels.folder() / name / parcels.ARTIFACTS).mkdir(parents=True)
        (parcels.folder() / name / parcels.CONTENT).write_text(json.dumps(content))
    for name, (file, text) in zip(names, DAMAGED, strict=True):
        (parcels.folder() / name / file).write_text(text)
    tracking.connect("tiny")
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert list(parcels.folder().glob("[!.]*")) == []
    for name, (file, text) in zip(names, DAMAGED, strict=True):
        place = parcels.folder().with_name("damaged") / name
        assert (place / file).read_text() == text
        assert re.search(f"run {name}: what waits for MLflow cannot be read .* set aside in {place};", caplog.text)


def test_a_server_that_hangs_holds_up_a_training_for_the_time_of_one_request(pipeline, tmp_path, monkeypatch, caplog):
    import mlflow

    from model.training import EpochRecord

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.setattr(tracking, "FLUSH_TIMEOUT", 1)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    training = tracking.TrainingRun("tiny", "bpr", {}, {"model": "bpr"}, tmp_path / "resume.json", "same")
    store = mlflow.get_tracking_uri()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        mlflow.set_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for epoch in (1, 2):
            started = time.monotonic()
            training.epoch(EpochRecord(epoch, {"total": 1.0}, None, 1.0, 0.0))
            assert time.monotonic() - started < 10
            assert "MLflow does not take this run's metrics" in caplog.text
            caplog.clear()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
    mlflow.set_tracking_uri(store)
    training.epoch(EpochRecord(3, {"total": 1.0}, None, 1.0, 0.0))
    points = mlflow.MlflowClient().get_metric_history(training.run_id, "loss_total")
    assert [point.step for point in points] == [1, 2, 3]
