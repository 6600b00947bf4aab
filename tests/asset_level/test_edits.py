"""After an edit exactly what it changes is recomputed: real Dagster runs, counting what executed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from assets import home
from assets.automation import refresh_job, refresh_sensor
from assets.nodes import Node
from assets.observation import edits_sensor, observe_settings
from assets.settings import dataset
from assets.store import stored_path
from assets.versions import Record, Records, latest
from pipeline import parquet
from pipeline.row_cache import DAMAGED, IN_USE
from tests.conftest import MODELS
from tests.damage import cut_off, flip_a_bit
from tests.stages import OF_A_MODEL, OF_USERS, USER_PROFILES

RAW = {"raw_reviews", "raw_items", "raw_profiles", "raw_images", "quarantine"}
TABLES = {"users", "items", "item_metadata", "interactions"}
ITEM_PROFILES = {"item_profiles", "item_profile_failures"}
SUBSPACE = {"user_subspace_graph", "item_subspace_graph", "user_item_subspace_graph"}
OF_ITEMS = {"item_text_embeddings", "item_subspace_graph", "item_text_similarity_graph"}


def trained(model: str) -> set[str]:
    return {f"{asset} ({model})" for asset in OF_A_MODEL}


@pytest.fixture
def edited(shop, open_pipeline):
    """The finished shop's pipeline."""
    with open_pipeline(shop.home) as pipeline:
        yield pipeline


def stored(name: str) -> pl.DataFrame:
    return pl.read_parquet(stored_path(dg.AssetKey(name), "shop"))


def test_nothing_edited_nothing_runs(shop, edited):
    report = edited.refresh("shop").run()
    assert not report.ran
    assert not report.cut_off
    assert len(report.untouched) == len(edited.refresh("shop").nodes)
    assert shop.language_model.asked() == (0, 0)


def test_wording_of_the_user_prompt(shop, edited):
    shop.edit("user.md.j2", lambda text: text.replace("Rely on the history", "Please rely on the history"))
    report = edited.refresh("shop").run()
    assert {ran.node.name for ran in report.ran} == USER_PROFILES | OF_USERS | trained("scale")
    assert shop.language_model.asked() == (0, stored("users").height)
    assert "user prompt edited: 'Rely on the history" in report.ran[0].why
    assert edited.run("shop") == set()


@pytest.mark.parametrize("name", ["item.md.j2", "user.md.j2"])
def test_a_comment_in_a_prompt(shop, edited, name: str):
    shop.edit(name, lambda text: text.replace("Edit it freely", "Change it as you like") + "{# the end #}\n")
    assert edited.run("shop") == set()
    assert shop.language_model.asked() == (0, 0)


def test_a_prompt_that_renders_to_the_same_text(shop, edited):
    shop.edit("user.md.j2", lambda text: text.replace("{{ entry.title }}", '{{ entry["title"] }}'))
    report = edited.refresh("shop").run()
    assert {ran.node.name for ran in report.ran} == USER_PROFILES
    assert shop.language_model.asked() == (0, 0)
    assert not report.ran[0].changed
    assert report.rows("rows_computed") == 0
    assert report.rows("rows_reused") == stored("users").height
    cut = {node.name: [above.name for above in stopped_at] for node, stopped_at in report.cut_off.items()}
    assert cut == {name: ["user_profiles"] for name in OF_USERS | trained("scale")}
    assert report.seconds_saved > 0


def test_sparsity_of_one_dataset(shop, edited):
    edited.run("tiny", models=["lightgcn"])
    assert edited.run("shop", subspace__sparsity=3) == SUBSPACE | {"semantic_graph"} | trained("scale")
    assert edited.run("tiny", models=["lightgcn"]) == set()
    assert shop.language_model.asked() == (0, 0)


def test_a_models_settings_and_trainings(shop, edited):
    assert edited.run("shop", models__scale={"relation_weight": 0.01}) == trained("scale")
    changed = {"models__scale": {"relation_weight": 0.01}, "training__learning_rate": 0.01}
    assert edited.run("shop", **changed) == trained("scale") | trained("lightgcn") | trained("bpr")


def test_one_items_description(shop, edited):
    pairs = stored("interactions").filter(pl.col("split") == "train")
    item = pairs["item"].mode().min()
    raw_id = stored("items")["raw_id"][item]
    readers = pairs.filter(pl.col("item") == item)["user"].n_unique()

    def describe(text: str) -> str:
        record = next(record for record in shop.records("meta.json") if record["asin"] == raw_id)
        new = record | {"description": ["Glows in the dark, folds flat and sings at noon, and never twice the same."]}
        return text.replace(json.dumps(record), json.dumps(new))

    shop.edit("meta.json", describe)
    report = edited.refresh("shop").run()
    ran = {ran.node.name for ran in report.ran}
    assert ran == RAW | TABLES | ITEM_PROFILES | OF_ITEMS | USER_PROFILES | OF_USERS | trained("scale") | {
        "recommendations (lightgcn)",
        "recommendations (bpr)",
    }
    assert shop.language_model.asked() == (1, readers)
    by_name = {ran.node.name: ran.shown for ran in report.ran}
    assert by_name["item_profiles"]["rows_computed"] == 1
    assert by_name["user_profiles"]["rows_computed"] == readers


def test_a_new_review(shop, edited):
    before = {(split, user): ids for (split, user), ids in histories().items()}
    user, item = stored("users")["raw_id"][3], None
    owned = {record["asin"] for record in shop.records("reviews.json") if record["reviewerID"] == user}
    item = next(raw_id for raw_id in stored("items")["raw_id"] if raw_id not in owned)
    review = {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": 1500000000, "reviewText": "Sings."}
    shop.edit("reviews.json", lambda text: text + json.dumps(review) + "\n")
    report = edited.refresh("shop").run()
    ran = {ran.node.name for ran in report.ran}
    everything = {node.name for node in edited.refresh("shop").nodes}
    # The user's split is drawn anew among one more pair; whether a text of the training part changes is the draw's.
    moved = [key[1] for key, ids in histories().items() if key[0] == "train" and before.get(key) != ids]
    assert set(moved) <= {user}
    assert shop.language_model.asked() == (0, len(moved))
    below_profiles = OF_USERS if moved else set()
    assert ran == everything - ITEM_PROFILES - OF_ITEMS - {
        "item_visual_embeddings",
        "item_visual_similarity_graph",
        *(OF_USERS - below_profiles),
    }
    unchanged = {ran.node.name for ran in report.ran if not ran.changed}
    assert unchanged & TABLES == {"users", "items", "item_metadata"}


def histories() -> dict[tuple[str, str], list[str]]:
    """Raw item ids by split and raw user id."""
    pairs = stored("interactions").join(stored("users"), on="user").join(stored("items"), on="item", suffix="_item")
    grouped = pairs.group_by("split", "raw_id").agg(pl.col("raw_id_item").sort())
    return {(split, user): ids for split, user, ids in grouped.iter_rows()}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("user_profiles", cut_off),
        ("user_profiles", flip_a_bit),
        ("user_text_embeddings", flip_a_bit),
        ("semantic_graph", flip_a_bit),
        ("semantic_graph", Path.unlink),
    ],
)
def test_a_damaged_file_is_noticed_and_made_again(shop, edited, name: str, damage):
    path = stored_path(dg.AssetKey(name), "shop")
    whole = path.read_bytes()
    damage(path)
    states = {node.name: state for node, state in edited.refresh("shop").states().items()}
    assert states[name].status == "missing"
    assert str(path) in states[name].reasons[0]
    assert edited.run("shop") == {name, *(USER_PROFILES if name in USER_PROFILES else ())}
    assert path.read_bytes() == whole
    assert shop.language_model.asked() == (0, 0)


@pytest.mark.parametrize(
    ("name", "edit"),
    [("user_text_embeddings", {"subspace__user_sparsity": 3}), ("user_profiles", {"embeddings__dimensions": 20})],
)
def test_a_bit_that_flips_on_the_disk_is_noticed_when_it_is_read(shop, edited, name: str, edit: dict[str, int]):
    path = stored_path(dg.AssetKey(name), "shop")
    whole, times = path.read_bytes(), path.stat()
    flip_a_bit(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert edited.refresh("shop").states()[Node(dg.AssetKey(name), "shop")].status == "fresh"
    news: list[str] = []
    ran = {each.node.name for each in edited.refresh("shop", **edit).run(on_wait=news.append).ran}
    assert name in ran
    assert "recommendations (scale)" in ran
    assert [str(path) in text for text in news] == [True]
    assert path.read_bytes() == whole
    assert shop.language_model.asked() == (0, 0)


def test_a_damaged_shard_of_answers_costs_its_rows_and_no_others(shop, edited, caplog):
    answers = home.cache_folder("profiles", "shop")
    of_users = parquet.read_table(answers / IN_USE / "user.parquet")
    for shard in list(answers.glob("*.parquet")):
        rows = parquet.read_table(shard)
        if not rows.join(of_users, on="key", how="semi").is_empty():
            parquet.write_table(rows[:7], shard)
            parquet.write_table(rows[7:], answers / "rest.parquet")
            damaged = shard
    before = stored("user_profiles")
    flip_a_bit(damaged)
    shop.edit("user.md.j2", lambda text: text.replace("{{ entry.title }}", '{{ entry["title"] }}'))
    report = edited.refresh("shop").run()
    assert shop.language_model.asked() == (0, 7)
    assert report.rows("rows_computed") == 7
    assert report.rows("rows_reused") == before.height - 7
    assert f"{damaged} is damaged and set aside in {answers / DAMAGED}" in caplog.text
    assert stored("user_profiles").equals(before)
    assert edited.run("shop") == set()


def test_a_file_written_again_with_the_same_content_is_fresh(shop, edited):
    path = stored_path(dg.AssetKey("user_profiles"), "shop")
    path.write_bytes(path.read_bytes())
    assert edited.run("shop") == set()


def test_two_edits_at_once_run_every_stage_once(shop, edited):
    shop.edit("user.md.j2", lambda text: text.replace("Rely on the history", "Please rely on the history"))
    report = edited.refresh("shop", subspace__sparsity=3).run()
    names = [ran.node.name for ran in report.ran]
    assert len(names) == len(set(names))
    assert set(names) == USER_PROFILES | OF_USERS | SUBSPACE | trained("scale")


def test_an_edit_and_its_undoing(shop, edited):
    before = edited.versions_of("shop")
    prompt = (shop.folder / "user.md.j2").read_text()
    shop.edit("user.md.j2", lambda text: text.replace("Rely", "Please rely"))
    edited.run("shop")
    shop.language_model.asked()
    (shop.folder / "user.md.j2").write_text(prompt)
    assert edited.run("shop") >= USER_PROFILES
    assert shop.language_model.asked() == (0, 0)
    assert edited.versions_of("shop") == before


@pytest.mark.parametrize("history", ["train", "all"])
def test_held_out_reviews_reach_no_prompt_unless_they_are_asked_for(shop, edited, history: str):
    """Every review ends in a word of its own; which of these the language model reads says whose reviews it saw."""

    def sign(text: str) -> str:
        signed = []
        for line in text.splitlines():
            if line.startswith("{") and line.endswith("}"):
                record = json.loads(line)
                word = f"sign{record['reviewerID']}x{record['asin']}"
                line = json.dumps(record | {"reviewText": word, "summary": word})
            signed.append(line)
        return "\n".join(signed) + "\n"

    shop.edit("reviews.json", sign)
    edited.run("shop", profiles__history=history)
    pairs = stored("interactions").join(stored("users"), on="user").join(stored("items"), on="item", suffix="_item")
    words = {
        split: {f"sign{user}x{item}" for user, item in part.select("raw_id", "raw_id_item").iter_rows()}
        for (split,), part in pairs.group_by("split")
    }
    read = set(re.findall(r"sign\w+", " ".join(shop.language_model.prompts)))
    assert words["train"] <= read
    held_out = words["valid"] | words["test"]
    assert held_out <= read if history == "all" else not held_out & read


# ------------------------------------------------------------------------------------------ in the UI


def test_the_refresh_job_does_the_same(shop, edited):
    shop.edit("user.md.j2", lambda text: text.replace("Rely on the history", "Please rely on the history"))
    assert refresh_job.execute_in_process(instance=edited.instance, partition_key="shop").success
    assert shop.language_model.asked() == (0, stored("users").height)
    assert edited.run("shop") == set()
    runs = edited.instance.get_runs(dg.RunsFilter(tags={"dagster/partition": "shop|scale"}))
    assert any("scale/refresh" in run.tags for run in runs)


def test_the_refresh_job_says_what_to_do_where_nothing_has_been_made(pipeline):
    result = refresh_job.execute_in_process(instance=pipeline.instance, partition_key="tiny", raise_on_error=False)
    assert not result.success
    messages = [event.step_failure_data.error.to_string() for event in result.all_events if event.is_step_failure]
    assert "nothing of tiny has been made yet; launch the job `data`" in messages[0]


def test_the_sensor_sees_an_edit_once(shop, edited):
    cursor: str | None = None

    def look() -> list[str]:
        nonlocal cursor
        result = refresh_sensor(dg.build_sensor_context(instance=edited.instance, cursor=cursor))
        cursor = result.cursor
        return [str(request.partition_key) for request in result.run_requests or []]

    assert refresh_sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert look() == []
    assert look() == []
    shop.edit("user.md.j2", lambda text: text.replace("Rely on", "Please rely on"))
    assert look() == ["shop"]
    assert look() == []
    shop.edit("user.md.j2", lambda text: text.replace("{{ entry.title }}", "{{ entry.titel }}"))
    assert look() == []  # half an edit
    shop.edit("user.md.j2", lambda text: text.replace("{{ entry.titel }}", "{{ entry.title }}!"))
    assert look() == ["shop"]
    cursor = None  # switched on for the first time, when something is stale
    assert look() == ["shop"]


def unsynced(pipeline) -> set[str]:
    """Names of the shop's stages that Dagster's pages call so."""
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
    from dagster._core.loader import LoadingContextForTest

    from assets.definitions import defs

    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(pipeline.instance, graph, LoadingContextForTest(pipeline.instance))
    nodes = pipeline.refresh("shop").nodes
    return {node.name for node in nodes if resolver.get_status(node.key, node.partition) == StaleStatus.STALE}


def test_dagster_judges_alike(shop, edited):
    """What its UI shows as stale is what runs first."""
    assert unsynced(edited) == set()
    observe_settings(edited.instance, "shop", dataset("shop", {"subspace.sparsity": 3}), ["scale"])
    assert unsynced(edited) == SUBSPACE
    ours = edited.refresh("shop", subspace__sparsity=3).states()
    assert {node.name for node, state in ours.items() if state.status == "stale"} == SUBSPACE


def test_an_edit_shows_on_dagsters_pages_before_anything_runs(shop, edited):
    from assets.definitions import defs

    def look() -> str:
        return str(edits_sensor(dg.build_sensor_context(instance=edited.instance)).skip_message)

    def recorded() -> list[Record]:
        keys = [key for key in defs.resolve_asset_graph().get_all_asset_keys() if key.path[0] == "settings"]
        partitions = ("shop", *(f"shop|{model}" for model in MODELS))
        found = [latest(edited.instance, key, partition) for key in keys for partition in partitions]
        return [record for record in found if record is not None]

    assert edits_sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert edits_sensor in defs.sensors
    before = recorded()
    assert "starts no run" in look()
    assert recorded() == before
    shop.edit("user.md.j2", lambda text: text.replace("Rely on", "Please rely on"))
    hold = (
        "from assets.lock import dataset_lock; import sys\nwith dataset_lock('shop', print): print(flush=True); input()"
    )
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert "a run is working on shop" in look()  # by settings of its own, it may be
        assert unsynced(edited) == set()
        other.communicate(b"\n")
    assert "starts no run" in look()
    assert unsynced(edited) == USER_PROFILES
    (new,) = [record for record in recorded() if record not in before]
    assert re.match("user prompt edited: 'Rely on the history.* -> 'Please rely on the history", new.shown["changes"])
    assert edited.instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])) == 0
    assert shop.language_model.asked() == (0, 0)

    shop.edit("user.md.j2", lambda text: text.replace("{{ entry.title }}", "{{ entry.titel }}"))
    assert "titel" in look()  # half an edit
    shop.edit("user.md.j2", lambda text: text.replace("{{ entry.titel }}", "{{ entry.title }}"))
    assert edited.run("shop") == {*USER_PROFILES, *OF_USERS, *trained("scale")}
    assert unsynced(edited) == set()


def test_records_read_at_once_are_those_read_one_by_one(shop, edited):
    nodes = edited.refresh("shop").nodes
    keys = [node.key for node in nodes]
    at_once = Records(edited.instance, keys)
    assert all(
        at_once.latest(node.key, node.partition) == latest(edited.instance, node.key, node.partition) for node in nodes
    )
    key = dg.AssetKey("raw_reviews")
    here = at_once.latest(key, "shop")
    assert here is not None
    assert at_once.latest(key, "tiny") is None
    edited.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition="tiny"))
    with_another = Records(edited.instance, keys)
    assert with_another.latest(key, "tiny") is not None
    assert with_another.latest(key, "shop") == here
    assert with_another.partitions(key) == {"shop", "tiny"}
    edited.instance.wipe_assets([key])
    wiped = Records(edited.instance, keys)
    assert wiped.latest(key, "shop") is None
    assert wiped.partitions(key) == set()


def test_settings_are_on_record_in_words(shop, edited):
    record = latest(edited.instance, dg.AssetKey(["settings", "subspace"]), "shop")
    assert record is not None
    content: dict[str, Any] = record.shown["content"]
    assert content == {"subspace": {"dictionary_size": 40, "sparsity": 4}}
