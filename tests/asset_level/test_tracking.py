"""What a training leaves in MLflow."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets.store import stored_path
from assets.tracking import connect, flatten, run_to_resume
from assets.versions import recorded_version


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"run_id": "a"}', b"\xff", b"[" * 100_000])
def test_a_damaged_note_of_an_unfinished_run_is_said_and_costs_no_training(tmp_path: Path, caplog, damage: bytes):
    file = tmp_path / "lightgcn.run.json"
    assert run_to_resume(file, "same") is None
    file.write_text('{"run_id": "a", "fingerprint": "same"}')
    assert (run_to_resume(file, "same"), run_to_resume(file, "other")) == ("a", None)
    assert not caplog.text
    file.write_bytes(damage)
    assert run_to_resume(file, "same") is None
    assert f"{file} cannot be read" in caplog.text


@pytest.fixture
def run(finished):
    import mlflow

    experiment = connect("tiny")
    runs = mlflow.MlflowClient().search_runs([experiment], filter_string="tags.model = 'scale'")
    assert len(runs) == 1
    return runs[0]


def test_a_run_says_where_it_comes_from(run, finished):
    assert run.info.status == "FINISHED"
    assert run.data.params["subspace.sparsity"] == "5"
    assert run.data.params["model.semantic_weight"] == "0.01"
    assert run.data.params["training.seed"] == "0"
    assert run.data.tags["profile_history"] == "train"
    assert run.data.tags["git_commit"]
    for asset in ("raw_reviews", "user_profiles", "semantic_graph"):
        recorded = recorded_version(finished.instance, dg.AssetKey(asset), "tiny")
        assert run.data.tags[f"version.{asset}"] == recorded


def test_a_run_has_curves_and_test_metrics(run):
    import mlflow

    client = mlflow.MlflowClient()
    for term in ("loss_bpr", "loss_total", "valid_recall_at_20", "epoch_seconds"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, term)]
        assert steps == [1, 2, 3, 4, 5, 6], term
    assert {f"test_{name}_at_{k}" for name in ("recall", "ndcg") for k in (10, 20)} <= run.data.metrics.keys()
    assert run.data.metrics["process_peak_memory_gb"] > 0
    pictures = {file.path for file in client.list_artifacts(run.info.run_id, "curves")}
    assert pictures == {"curves/loss.png", "curves/validation.png"}


def test_the_logged_model_recommends_what_the_asset_does(run, finished):
    import mlflow
    import pandas as pd

    logged = mlflow.search_logged_models(
        experiment_ids=[run.info.experiment_id],
        filter_string=f"source_run_id = '{run.info.run_id}'",
        output_format="list",
    )
    model = mlflow.pyfunc.load_model(f"models:/{logged[0].model_id}")
    table = pl.read_parquet(stored_path(dg.AssetKey(["semantic_graph", "recommendations"]), "tiny|scale"))
    user = table["user_raw_id"][0]
    answer = model.predict(pd.DataFrame({"user": [user]}), params={"k": 5})
    expected = table.filter(pl.col("user_raw_id") == user).sort("rank").head(5)
    assert answer["item"].tolist() == expected["item_raw_id"].to_list()
    assert answer["score"].tolist() == pytest.approx(expected["score"].to_list(), abs=1e-5)
    with pytest.raises(Exception, match="nobody"):
        model.predict(pd.DataFrame({"user": ["nobody"]}))
    files = {
        file.suffix for file in Path(logged[0].artifact_location.removeprefix("file://")).rglob("*") if file.is_file()
    }
    assert ".pkl" not in files


def test_user_metrics_average_to_the_logged_ones(run, finished):
    metrics = pl.read_parquet(stored_path(dg.AssetKey(["semantic_graph", "user_metrics"]), "tiny|scale"))
    assert metrics["recall_at_20"].mean() == pytest.approx(run.data.metrics["test_recall_at_20"])


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": 2}) == {"a.b": 1, "a.c.d": None, "e": 2}
