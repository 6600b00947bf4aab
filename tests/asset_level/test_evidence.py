"""The report and what stands behind it: what is trained, what is reused, and what is left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_allclose

from assets import studies, tracking
from assets.comparisons import NOTE_2, TABLE_1, TABLE_2, paper_table
from assets.home import store
from assets.metrics import ranking_metrics
from assets.model_groups import group_of
from assets.progress import Progress
from assets.reporting import sections
from assets.settings import dataset
from assets.studies import FUSIONS, cohesion, with_category
from assets.training import inputs_of
from assets.trials import read_record, run, seeds_of, trial_record, write_record
from assets.variants import stored
from assets.versions import latest
from model.significance import Comparison, paired
from pipeline import parquet
from pipeline.files import StoredFileError
from tests import killing
from tests.conftest import Pipeline
from tests.damage import cut_off

FEW = {
    "evidence.seeds": 2,
    "models.freedom.training.epochs": 2,
    "evidence.sensitivity": [
        {"models.scale.negatives": [1, 2]},
        {"subspace.user_sparsity": [2, 5]},
        {"models.scale.interaction_layers": [1, 2], "models.scale.semantic_layers": [1]},
    ],
}
MODELS = ["scale", "lightgcn", "freedom"]
SPLIT = ["scale", "lightgcn"]  # the models of the study of splits
GROUPS = {"report": "evidence", "sweep": "sweep"}  # command -> its settings


def refresh(pipeline, **changes: Any):
    from assets.progress import Progress
    from assets.refresh import Refresh

    overrides = {**FEW, **{key.replace("__", "."): value for key, value in changes.items()}}
    return Refresh(pipeline.instance, "tiny", overrides, MODELS, Progress(), targets="evidence")


def table(name: str) -> pl.DataFrame:
    return parquet.read_table(store() / name / "tiny.parquet")


def trials(home: Path | None = None) -> dict[str, dict[str, Any]]:
    """Records of all trials of a home folder, by default the one in use, by the trials' own folders."""
    folder = (home or store().parent) / "trials" / "tiny"
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/trial.json")}


def files() -> dict[str, tuple[int, int]]:
    """Size and time of every file of the dataset's own results."""
    return {
        path.relative_to(store()).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in store().rglob("*.parquet")
    }


def compared(label: str, other: str) -> Comparison:
    """Recall@20 of one kind of trial against that of another, on each user's mean over the seeds."""
    means = []
    for wanted in (label, other):
        found = [name for name, record in trials().items() if record["label"] == wanted]
        users = [parquet.read_table(store().parent / "trials" / "tiny" / name / "users.parquet") for name in found]
        assert len(users) == 2
        means.append(np.mean([each["recall_at_20"].to_numpy() for each in users], axis=0))
    return paired(*means)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """Home folder with a report on `tiny`; copy it before changing it."""
    folder = tmp_path_factory.mktemp("reported") / "home"
    shutil.copytree(built, folder)
    with Pipeline(folder) as pipeline:
        own = files()
        refresh(pipeline).run()
        kept = files()
        assert {name: kept[name] for name in own} == own  # variants were made elsewhere
        assert len(kept) > len(own)
    return folder


@pytest.fixture
def report(reported: Path, open_pipeline):
    """The pipeline with its report; for reading."""
    with open_pipeline(reported) as pipeline:
        yield pipeline


@pytest.mark.slow
def test_a_replicate_is_the_training_with_its_seed(report):
    for group, model in (("interactions", "lightgcn"), ("semantic_graph", "scale")):
        own = parquet.read_table(store() / group / "user_metrics" / "tiny" / f"{model}.parquet")
        replicate = parquet.read_table(store() / group / "replicates" / "tiny" / f"{model}.parquet")
        assert replicate["seed"].unique().sort().to_list() == [0, 1]
        first = replicate.filter(pl.col("seed") == 0).drop("seed", "top")
        assert first.equals(own.select(first.columns))


@pytest.mark.slow
def test_the_tables_are_means_over_seeds_and_hold_what_they_promise(report):
    comparison = table("comparison")
    assert set(comparison["model"]) == set(MODELS)
    own = [record["test"]["recall_at_20"] for record in trials().values() if record["label"] == "LightGCN"]
    row = comparison.filter((pl.col("model") == "lightgcn") & (pl.col("metric") == "recall_at_20"))
    assert row["seeds"].item() == len(own) == 2
    assert_allclose(row.select("mean", "sd").row(0), [np.mean(own), np.std(own, ddof=1)])
    significance = table("significance")
    pairs = set(zip(significance["model"], significance["against"], strict=True))
    assert {(model, other) for model in MODELS for other in ("scale", "lightgcn") if model != other} <= pairs

    ablations = table("ablations").filter(pl.col("metric") == "recall_at_20")
    assert ablations["variant"].to_list() == [
        "SCALE", "w/o LLM", "w/o L_align_s", "w/o L_align_r", "w/o SAG", "w/o FSG", "w/o inter", "w/o intra",
    ]  # fmt: skip
    assert ablations["mean"].n_unique() > 4  # the variants differ
    full = comparison.filter((pl.col("model") == "scale") & (pl.col("metric") == "recall_at_20"))["mean"].item()
    assert ablations["mean"][0] == pytest.approx(full)
    assert_allclose(ablations["difference"][1:].to_numpy(), ablations["mean"][1:].to_numpy() - full, atol=1e-12)

    others = ablations[1:]
    assert ablations.row(0, named=True)["wilcoxon"] is None
    alone = compared("SCALE", "SCALE w/o SAG")
    row = ablations.row(by_predicate=pl.col("variant") == "w/o SAG", named=True)
    assert row["effect_size"] == pytest.approx(alone.effect_size)
    for test, found in (("t_test", alone.t_test), ("wilcoxon", alone.wilcoxon)):  # Holm over seven comparisons
        assert found <= row[test] <= min(1, 7 * found) + 1e-12
        assert others[test].null_count() == 0
    audited = table("leak_audit").filter(metric="recall_at_20", history="all").row(0, named=True)
    leaky = compared("SCALE", "SCALE all")
    assert_allclose(
        [audited["effect_size"], audited["t_test"], audited["wilcoxon"]],
        [leaky.effect_size, leaky.t_test, leaky.wilcoxon],
    )

    fusion = table("fusion_audit").filter(pl.col("metric") == "recall_at_20")
    stored = parquet.read_graph(store() / "semantic_graph" / "tiny.parquet")
    assert sections.AS_PRINTED in FUSIONS
    assert "eq. 6 as printed), a variant" in (report.folder / "reports" / "tiny" / "report.md").read_text()
    edges = fusion.select(pl.sum_horizontal("edges_uu", "edges_ii", pl.col("edges_ui") * 2)).to_series().to_list()
    assert edges[-1] == stored.nnz
    assert edges[0] < edges[1] < edges[2]

    sensitivity = table("sensitivity").filter(pl.col("metric") == "recall_at_20")
    assert sensitivity.select("panel", "value", "value_2").rows() == [
        ("negatives", 1, None), ("negatives", 2, None), ("user_sparsity", 2, None), ("user_sparsity", 5, None),
        ("interaction_layers x semantic_layers", 1, 1), ("interaction_layers x semantic_layers", 2, 1),
    ]  # fmt: skip
    assert table("leak_audit")["history"].unique(maintain_order=True).to_list() == ["train", "all"]
    splits = table("split_study").filter(pl.col("metric") == "recall_at_20")
    assert splits.select("model", "split").rows() == [
        (model, split) for model in SPLIT for split in ("random", "user_time", "global_time")
    ]
    own = splits.filter((pl.col("model") == "lightgcn") & (pl.col("split") == "random"))["mean"].item()
    assert own in [record["test"]["recall_at_20"] for record in trials().values() if record["label"] == "LightGCN"]
    breakdown = table("breakdown")
    users = breakdown.filter((pl.col("axis") == "activity") & (pl.col("metric") == "recall_at_20"))
    assert set(users.group_by("model").agg(pl.col("count").sum())["count"]) == {comparison["users"][0]}
    assert set(table("item_map")["system"]) == {"SCALE", "SCALE w/o L_align_r", "LightGCN", "FREEDOM"}
    modalities = table("modality_study").filter(pl.col("metric") == "recall_at_20")
    assert modalities.select("model", "modalities").rows() == [
        ("freedom", which) for which in ("text", "images", "both")
    ]
    assert modalities["mean"].n_unique() > 1
    own = [record["test"]["recall_at_20"] for record in trials().values() if record["label"] == "FREEDOM"]
    assert modalities["mean"][2] in own  # both are what it reads anyway
    assert (report.folder / "reports" / "tiny" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["comparison", "breakdown", "ablations", "modality_study", "item_map", "significance", "lists"]
)
def test_the_metadata_of_an_asset_shows_what_the_report_shows(name, report):
    record = latest(report.instance, dg.AssetKey(name), "tiny")
    assert record is not None
    pages = {key: Path(value) for key, value in record.shown.items() if key.endswith(", interactive")}
    if name in ("significance", "lists"):
        assert record.shown[name].startswith("**")
        assert "| --- |" in record.shown[name]
        assert not pages
    else:
        assert pages
        for key, page in pages.items():
            assert record.shown[key.removesuffix(", interactive")].startswith("![")
            assert page.parent == report.folder / "reports" / "tiny" / "figures"
            assert "Plotly.newPlot" in page.read_text()


@pytest.mark.slow
def test_what_trainings_take_is_in_mlflow_and_beside_what_they_give(report):
    import mlflow

    tracking.connect("tiny evidence")
    for record in trials().values():
        measured = mlflow.MlflowClient().get_run(record["run_id"]).data.metrics
        assert measured["process_peak_memory_gb"] == record["peak_memory_gb"] > 0
        assert measured["training_seconds"] == record["seconds"]
    record = latest(report.instance, dg.AssetKey("report"), "tiny")
    assert record is not None
    assert "peak memory (GB)" in record.shown["cost"]
    assert all(f"| {title} |" in record.shown["cost"] for title in ("SCALE", "LightGCN", "FREEDOM"))


@pytest.mark.slow
def test_the_report_is_a_run_with_its_figures_and_its_tags(report):
    import mlflow

    experiment = tracking.connect("tiny evidence")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([experiment], "tags.kind = 'report'")
    assert run.info.run_name == "report"
    assert run.data.tags["dataset"] == "tiny"
    assert run.data.tags["git_commit"]
    logged = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "figures")}
    made = {path.name for path in (report.folder / "reports" / "tiny" / "figures").iterdir()}
    assert logged == made
    assert {"ablations.png", "ablations.html"} <= logged


@pytest.mark.slow
def test_a_variant_that_two_studies_share_is_trained_once(report):
    seeds: dict[str, list[int]] = {}
    for record in trials().values():
        seeds.setdefault(record["label"], []).append(record["seed"])
    assert sorted(seeds["SCALE"]) == [0, 1]  # by replicates, ablations and audits
    assert sorted(seeds["SCALE w/o L_align_r"]) == [0, 1]  # by the ablations; the map of items takes the first


@pytest.mark.slow
def test_a_second_report_trains_nothing_and_an_edit_what_it_reaches(reported, tmp_path, open_pipeline):
    copied = tmp_path / "home"
    shutil.copytree(reported, copied)
    with open_pipeline(copied) as pipeline:
        assert refresh(pipeline).run().ran == []

        page = copied / "reports" / "tiny" / "report.html"
        written = page.read_bytes()
        shutil.rmtree(page.parent)
        assert [(ran.node.name, ran.why) for ran in refresh(pipeline).run().ran] == [
            ("report", f"its page is gone ({page})")
        ]
        assert page.read_bytes() == written

        before = trials()
        ran = {ran.node.name for ran in refresh(pipeline, models__lightgcn={"layers": 1}).run().ran}
        assert {"replicates (lightgcn)", "comparison", "report"} <= ran
        assert not {"replicates (scale)", "ablations", "sensitivity"} & ran
        new = [record for name, record in trials().items() if name not in before]
        assert [(record["model"], record["seed"]) for record in sorted(new, key=lambda record: record["seed"])] == [
            ("lightgcn", 0), ("lightgcn", 1),
        ]  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_what_one_trains(report, tmp_path):
    from assets.model_groups import group_of
    from assets.training import inputs_of
    from assets.trials import run, seeds_of
    from assets.variants import stored

    inputs = stored(report.instance, "tiny", inputs_of(group_of("lightgcn")))
    alone = run(seeds_of("tiny", "lightgcn", "LightGCN", FEW, inputs, 2), 1, lambda *_: None)
    # Patience does not matter in so few epochs, but it makes other trials of these.
    again = seeds_of("tiny", "lightgcn", "LightGCN", {**FEW, "training.patience": 19}, inputs, 2)
    together = run(again, 2, lambda *_: None)
    for one, other in zip(alone, together, strict=True):
        assert one.trial.folder != other.trial.folder
        assert one.users.equals(other.users)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's list of a process's children")
@pytest.mark.parametrize(("command", "stop"), [("report", signal.SIGINT), ("sweep", signal.SIGTERM)])
def test_a_command_that_is_told_to_stop_ends_what_it_trains_at_once(command, stop, report, tmp_path):
    home = shutil.copytree(store().parent, tmp_path / "home")
    endless = {"training.epochs": 10**7, "training.patience": 10**7, f"{GROUPS[command]}.parallel": 2}
    settings = [word for key, value in endless.items() for word in ("--set", f"{key}={value}")]
    process = subprocess.Popen(
        [sys.executable, "-c", "from assets.cli import main; main()", command, "-d", "tiny", "-m", "bpr", *settings],
        env=os.environ | {"SCALE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and len(trainings := trainers(process.pid)) < 2:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(stop)
    output, _ = process.communicate(timeout=120)
    assert output.endswith("stopped; what was finished is kept, and the same command goes on from there\n")
    while any(is_running(training) for training in trainings):
        time.sleep(0.1)


@pytest.mark.slow
def test_told_to_stop_while_trainings_are_handed_over_ends_those_that_were(report, monkeypatch):
    from assets import trials, workers

    class Stopped(workers._Processes):
        given_up = False

        def submit(self, *_: Any) -> Any:
            raise KeyboardInterrupt

        def give_up(self) -> None:
            self.given_up = True

    pool = Stopped(2)
    monkeypatch.setattr(trials, "_pool", lambda *_: pool)
    inputs = stored(report.instance, "tiny", inputs_of(group_of("lightgcn")))
    seeds = trials.seeds_of("tiny", "lightgcn", "LightGCN", {**FEW, "training.patience": 17}, inputs, 2)
    with pytest.raises(KeyboardInterrupt):
        trials.run(seeds, 2, lambda *_: None)
    assert pool.given_up


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.long)])
def test_a_report_that_is_killed_at_random_moments_is_that_of_a_clean_one(kills, built, reported, tmp_path):
    home, chance = Path(shutil.copytree(reported, tmp_path / "home")), random.Random(0)
    own = {path.relative_to(built) for path in (built / "store").rglob("*.parquet")}

    def tables() -> list[Path]:
        return [path for path in (home / "store").rglob("*.parquet") if path.relative_to(home) not in own]

    def versions(folder: Path) -> dict[str, str | None]:
        with Pipeline(folder) as pipeline:
            states = refresh(pipeline).states()
            assert all(state.status == "fresh" for state in states.values())
            return {node.name: state.record and state.record.version for node, state in states.items()}

    def page(folder: Path) -> str:
        return (folder / "reports/tiny/report.md").read_text().partition("\n## Cost\n")[0]

    settings = [word for key, value in FEW.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    words = ["report", "-d", "tiny", *(word for model in MODELS for word in ("-m", model)), *settings]
    whole = len(tables())
    for _ in range(kills):
        for path in tables():
            path.unlink()
        for trial in chance.sample(sorted(trials(home)), 4):
            shutil.rmtree(home / "trials" / "tiny" / trial)
        made = chance.randrange(whole - 2)
        killing.kill(home, *words, when=lambda made=made: len(tables()) >= made, later=chance.uniform(0, 1))
    killing.finish(home, *words)
    assert len(tables()) == whole
    other = versions(home).items() ^ versions(reported).items()
    assert {name for name, _ in other} <= {"report"}  # it tells what trials took, and some were trained again
    assert page(home) == page(reported)
    assert trials(home).keys() == trials(reported).keys()
    assert not list(home.rglob("*.tmp"))


def test_what_a_trial_left_is_made_again_where_it_is_damaged(built, tmp_path, open_pipeline, caplog):
    with open_pipeline(shutil.copytree(built, tmp_path / "home")) as pipeline:
        inputs = stored(pipeline.instance, "tiny", inputs_of(group_of("lightgcn")))
        seeds = seeds_of("tiny", "lightgcn", "LightGCN", {**FEW, "training.epochs": 1}, inputs, 4)
        users = [outcome.users for outcome in run(seeds, 1, lambda *_: None)]
        damaged = [seeds[0].folder / "trial.json", seeds[1].folder / "users.parquet", seeds[2].folder / "items.parquet"]
        for path in damaged:
            cut_off(path)
        with pytest.raises(StoredFileError, match=r"trial\.json: is no record of a trial"):
            trial_record("tiny", seeds[0].identity)
        steps: list[int] = []
        again = run(seeds, 1, lambda done, *_: steps.append(done))
        assert steps == [1, 2, 3, 4]
        assert all(str(path) in caplog.text for path in damaged)
        assert all(outcome.users.equals(before) for outcome, before in zip(again, users, strict=True))
        damaged[1].unlink()
        damaged[0].write_text("[]")
        run(seeds, 1, lambda done, *_: steps.append(done))
        assert steps == [1, 2, 3, 4, 2, 3, 4]


def test_no_flipped_bit_of_a_trials_record_goes_unnoticed(tmp_path):
    path, record = tmp_path / "trial.json", {"seed": 1, "test": {"recall_at_20": 0.25}, "label": "w/o α"}
    write_record(record, path)
    whole = path.read_bytes()
    assert read_record(path) == record
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with suppress(StoredFileError):
            found = read_record(path)
            found.pop(next((key for key in found if key not in record), ""), None)  # the checksum's own name
            assert found == record


def trainers(process: int) -> list[int]:
    """Processes that a process has started to train in."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def is_running(process: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
def test_a_variant_runs_only_what_its_settings_reach_and_stops_where_nothing_changed(report):
    from assets.variants import stored, varied

    names = ["user_subspace_graph", "item_subspace_graph", "user_text_embeddings", "semantic_graph"]
    own = stored(report.instance, "tiny", names)
    changed = varied(report.instance, "tiny", FEW, {"subspace.user_sparsity": 3}, names)
    assert {name for name in names if changed[name] != own[name]} == {"user_subspace_graph", "semantic_graph"}
    # Asked for again, the default's own value: every stage that ran came out the same.
    assert varied(report.instance, "tiny", FEW, {"subspace.user_sparsity": 5}, names) == own


def test_evidence_is_left_out_of_a_plain_refresh(report):
    from assets.progress import Progress
    from assets.refresh import Refresh

    names = {node.name for node in Refresh(report.instance, "tiny", FEW, None, Progress()).nodes}
    assert "trained_model (scale)" in names
    assert not {"replicates (scale)", "comparison", "ablations", "report"} & names


# ------------------------------------------------------------------------------------------------- the paper's tables


def test_a_table_of_the_paper_shows_what_was_published_and_the_difference_to_ours():
    users = {"seed": [0, 0, 1, 1], "user": [0, 1, 0, 1], "top": [[1]] * 4}
    ours = {"lightgcn": pl.DataFrame({**users, "recall_at_20": [0.1, 0.2, 0.3, 0.2]})}
    found = paper_table(TABLE_1, ours, dataset("baby"), "a note")
    row = found.filter((pl.col("system") == "LightGCN") & (pl.col("metric") == "recall_at_20")).row(0, named=True)
    assert row["published"] == 0.0754
    assert_allclose([row["ours"], row["sd"], row["difference"]], [0.2, np.std([0.15, 0.25], ddof=1), 0.2 - 0.0754])
    assert row["why"].endswith("a note")
    others = found.filter(pl.col("system") != "LightGCN")
    assert others["system"].n_unique() == len(TABLE_1) - 1
    assert others["ours"].null_count() == others.height
    # What is told is what the terminal shows, in its order, whatever cut-offs were measured.
    cuts = {name: [0.1, 0.2, 0.3, 0.2] for name in ("ndcg_at_50", "recall_at_50", "recall_at_20")}
    more = paper_table(TABLE_1, {"lightgcn": pl.DataFrame({**users, **cuts})}, dataset("baby"), "")
    shown = more.filter(pl.col("system") == "LightGCN")["metric"].to_list()
    assert shown == ranking_metrics([*shown, "seconds", "recall_at_20"])
    assert {"recall_at_10", "recall_at_50", "ndcg_at_50"} <= set(shown)
    assert paper_table(TABLE_2, ours, dataset("baby"), "").is_empty()  # which has other datasets
    assert paper_table(TABLE_1, ours, dataset("tiny"), "").is_empty()
    own = paper_table(TABLE_2, {"scale": ours["lightgcn"]}, dataset("book"), NOTE_2)["why"].drop_nulls().item()
    assert "the paper names d = 64 and batches of 2,048" in own
    assert "RLMRec's own runs take 32 and 4,096" in own
    two = paper_table(TABLE_2, {}, dataset("book"), "")["system"].unique().to_list()
    assert {"RLMRec (SGL): RLMRec-Con (SGL)", "RLMRec (SGL): RLMRec-Gen (SGL)", "KAR (LightGCN)"} <= set(two)


def test_the_leak_audit_is_not_possible_where_profiles_are_given(pipeline, monkeypatch):
    """With given profiles both histories are one and the same trial, whose difference of 0 would tell of no leak."""
    monkeypatch.setattr(studies, "_variants", lambda *_: pytest.fail("something is trained"))
    ran = dg.materialize(
        [studies.leak_audit],
        partition_key="xrec-yelp",
        instance=pipeline.instance,
        resources={"progress": Progress(), "io_manager": dg.mem_io_manager},
    )
    found = ran.output_for_node("leak_audit", "leak_audit")
    assert found.is_empty()
    assert {"history", "mean", "difference"} <= set(found.columns)
    (made,) = ran.asset_materializations_for_node("leak_audit")
    assert made.metadata["leak audit"].value.startswith("not possible: profiles come with the dataset")


@pytest.mark.parametrize(("name", "of"), [("amazon14-baby", "baby"), ("amazon14-sports", "sports")])
def test_real_data_of_the_paper_is_held_to_its_table(name: str, of: str):
    assert dataset(name).published == dataset(of).published
    users = {"seed": [0, 0], "user": [0, 1], "top": [[1]] * 2, "recall_at_20": [0.1, 0.2]}
    found = paper_table(TABLE_1, {"lightgcn": pl.DataFrame(users)}, dataset(name), "a note")
    told = found.drop_nulls("difference").row(0, named=True)
    assert told["system"] == "LightGCN"
    assert told["why"].startswith("ours: given split, ")


# ------------------------------------------------------------------------------------------------- the map of items


def test_an_item_goes_by_its_commonest_telling_category():
    categories = [["All", "A"], ["All", "A", "B"], ["All", "B"], ["All", "A"], ["All"], ["All", "C"], ["All"], None]
    items = pl.DataFrame({"item": range(8), "title": [f"t{i}" for i in range(8)], "categories": categories})
    found = with_category(items)
    assert found.select("item", "category").rows() == [(0, "A"), (1, "A"), (2, "B"), (3, "A"), (5, "C")]


def test_cohesion_is_one_for_separate_categories_and_chance_for_random_ones():
    rng = np.random.default_rng(0)
    categories = np.repeat(["a", "b", "c"], 40)
    apart = np.repeat(np.eye(3), 40, axis=0) + 0.01 * rng.standard_normal((120, 3))
    found = cohesion(apart, categories)
    assert found["purity"] == 1
    assert found["silhouette"] > 0.9
    random = cohesion(rng.standard_normal((120, 3)), categories)
    assert random["purity"] == pytest.approx(1 / 3, abs=0.08)
    assert abs(random["silhouette"]) < 0.1
