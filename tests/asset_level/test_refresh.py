"""Real Dagster runs that count what executed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets.definitions import defs
from assets.failures import StageError
from assets.store import stored_path
from assets.versions import latest, recorded_version

SUBSPACE = {"user_subspace_graph", "item_subspace_graph", "user_item_subspace_graph"}
SCALE = {"trained_model (scale)", "user_metrics (scale)", "recommendations (scale)"}
LIGHTGCN = {"trained_model (lightgcn)", "user_metrics (lightgcn)", "recommendations (lightgcn)"}


def copy(built: Path, tmp_path: Path) -> Path:
    """A finished pipeline to change; Dagster's and MLflow's databases move with it."""
    return Path(shutil.copytree(built, tmp_path / "home"))


def test_the_first_run_makes_everything_and_the_second_nothing(built: Path, finished):
    assert len(finished.refresh().nodes) == 24 + 3 * 3
    for node in finished.refresh().nodes:
        assert stored_path(node.key, node.partition).exists(), node.name
        assert recorded_version(finished.instance, node.key, node.partition), node.name
    assert finished.run() == set()


def test_sparsity_reruns_subspace_graphs_and_what_reads_them(built: Path, tmp_path: Path, open_pipeline: Callable):
    with open_pipeline(copy(built, tmp_path)) as pipeline:
        assert pipeline.run(subspace__sparsity=4) == SUBSPACE | {"semantic_graph"} | SCALE
        assert pipeline.run(subspace__sparsity=4) == set()


def test_an_index_reruns_the_graphs_and_tells_its_recall(built: Path, tmp_path: Path, open_pipeline: Callable):
    with open_pipeline(copy(built, tmp_path)) as pipeline:
        ran = pipeline.run(models=["scale"], index__above=100, index__recall=0.5)
        assert {"user_subspace_graph", "item_subspace_graph"} <= ran
        key = dg.AssetKey("user_subspace_graph")
        record = latest(pipeline.instance, key, "tiny")
        assert record is not None
        assert record.shown["index_recall"] >= 0.5
        assert "index_recall" not in latest(pipeline.instance, dg.AssetKey("item_subspace_graph"), "tiny").shown
        check = dg.AssetCheckKey(key, "neighbours_found")
        found = pipeline.instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
        assert found.status.value == "SUCCEEDED"


def test_model_settings_rerun_that_model(built: Path, tmp_path: Path, open_pipeline: Callable):
    with open_pipeline(copy(built, tmp_path)) as pipeline:
        assert pipeline.run(models__lightgcn={"layers": 1}) == LIGHTGCN
        assert pipeline.run(models__lightgcn={"layers": 1}, resources__threads=1) == set()


def test_a_result_that_did_not_change_stops_the_wave(built: Path, tmp_path: Path, open_pipeline: Callable):
    with open_pipeline(copy(built, tmp_path)) as pipeline:
        # The tolerated share of bad rows is a setting of the raw stage; no row changes with it.
        ran = pipeline.run(raw__max_bad_share=0.02)
        assert ran == {"raw_reviews", "raw_items", "raw_profiles", "raw_images", "quarantine"}


def test_a_deleted_file_is_made_again(built: Path, tmp_path: Path, open_pipeline: Callable):
    with open_pipeline(copy(built, tmp_path)) as pipeline:
        stored_path(dg.AssetKey("item_profiles"), "tiny").unlink()
        assert pipeline.run() == {"item_profiles", "item_profile_failures"}


def test_a_failed_stage_keeps_what_was_made(pipeline):
    with pytest.raises(StageError, match=r"interactions.*core"):
        pipeline.run(interactions__core=500)
    assert stored_path(dg.AssetKey("raw_reviews"), "tiny").exists()
    ran = pipeline.run(models=["lightgcn"])
    assert "raw_reviews" not in ran
    assert ran >= LIGHTGCN


def test_a_run_from_the_ui_leaves_its_settings_on_record(pipeline):
    """The UI launches jobs without a refresh; what they made is fresh after it, and stale after an edit."""
    for job, partition in (("data", "tiny"), ("train_on_interactions", "tiny|lightgcn")):
        assert defs.resolve_job_def(job).execute_in_process(instance=pipeline.instance, partition_key=partition).success
    assert pipeline.run(models=["lightgcn"]) == set()
    assert pipeline.run(models=["lightgcn"], models__lightgcn={"layers": 1}) == LIGHTGCN
    assert "interactions" in pipeline.run(models=["lightgcn"], interactions__core=3)


def test_two_runs_with_one_seed_give_the_same_content(finished, tmp_path: Path, open_pipeline: Callable):
    first = finished.versions()
    with open_pipeline(tmp_path) as again:
        again.run()
        assert again.versions() == first
    for path in sorted((finished.folder / "store").rglob("*.parquet")):
        twin = tmp_path / path.relative_to(finished.folder)
        assert twin.read_bytes() == path.read_bytes(), path.name


def test_held_out_reviews_reach_no_profile(tmp_path: Path, pipeline, monkeypatch: pytest.MonkeyPatch):
    """Every review carries a word of its own; only those of training pairs may come up in user profiles."""
    rows = [
        (f"u{u}", f"i{(u * 3 + j) % 20}", f"word{u}x{(u * 3 + j) % 20} nice thing") for u in range(12) for j in range(6)
    ]
    reviews = pl.DataFrame(rows, schema=["user", "item", "text"], orient="row")
    reviews.write_csv(tmp_path / "clicks.csv")
    pl.DataFrame({"item": [f"i{i}" for i in range(20)], "title": [f"Thing {i}" for i in range(20)]}).write_csv(
        tmp_path / "things.csv"
    )
    source = {
        "kind": "tables",
        "interactions": {"path": str(tmp_path / "clicks.csv")},
        "items": {"path": str(tmp_path / "things.csv")},
    }
    small = {"source": source, "interactions.core": 1, "training.epochs": 1, "training.patience": 1}
    pipeline.run(models=["scale"], **{key.replace(".", "__"): value for key, value in small.items()})
    read = {
        name: pl.read_parquet(stored_path(dg.AssetKey(name), "tiny")) for name in ("users", "items", "interactions")
    }
    profiles = " ".join(pl.read_parquet(stored_path(dg.AssetKey("user_profiles"), "tiny"))["summary"])
    pairs = read["interactions"].join(read["users"], on="user").join(read["items"], on="item")
    words = {
        split: {f"word{user[1:]}x{item[1:]}" for user, item in part.select("raw_id", "raw_id_right").iter_rows()}
        for (split,), part in pairs.group_by("split")
    }
    assert any(word in profiles for word in words["train"])
    assert not any(word in profiles.split() for word in words["valid"] | words["test"])
