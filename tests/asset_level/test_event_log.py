"""Dagster's history over connections that stay open: what others write is seen, what others delete is noticed."""

import queue
import shutil
from pathlib import Path

import dagster as dg
import pytest

from assets.event_log import KEPT_OPEN, EventLog

KEY = dg.AssetKey("raw_reviews")


def observe(instance: dg.DagsterInstance, partition: str) -> None:
    instance.report_runless_asset_event(dg.AssetObservation(KEY, partition=partition))


def observed(instance: dg.DagsterInstance) -> list[str | None]:
    """Partitions in the order in which they were observed."""
    records = instance.fetch_observations(KEY, limit=100, ascending=True).records
    return [record.partition_key for record in records]


def open_databases(folder: Path) -> int:
    """How many databases in a folder this process has open."""
    opened = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            opened.add(descriptor.readlink())
        except FileNotFoundError:  # that of the listing itself
            continue
    return len([path for path in opened if path.suffix == ".db" and path.is_relative_to(folder)])


@pytest.fixture
def history(pipeline) -> dg.DagsterInstance:
    return pipeline.instance


def test_what_another_process_writes_is_seen(history: dg.DagsterInstance):
    observe(history, "a")
    with dg.DagsterInstance.get() as other:
        assert observed(other) == ["a"]
        observe(history, "b")
        assert observed(other) == ["a", "b"]
        observe(other, "c")
    assert observed(history) == ["a", "b", "c"]


def test_deleted_history_is_begun_anew(history: dg.DagsterInstance, pipeline):
    observe(history, "a")
    shutil.rmtree(pipeline.folder / "dagster" / "history" / "runs")
    (pipeline.folder / "dagster" / "history" / "runs").mkdir()
    observe(history, "b")
    assert observed(history) == ["b"]
    with dg.DagsterInstance.get() as other:
        assert observed(other) == ["b"]


def test_replaced_history_is_read(history: dg.DagsterInstance, pipeline, tmp_path_factory: pytest.TempPathFactory):
    runs, kept = pipeline.folder / "dagster" / "history" / "runs", tmp_path_factory.mktemp("kept") / "runs"
    observe(history, "a")
    history.event_log_storage.dispose()  # what is in the write-ahead log goes to the database
    shutil.copytree(runs, kept)
    observe(history, "b")
    assert observed(history) == ["a", "b"]
    shutil.rmtree(runs)
    shutil.copytree(kept, runs)
    assert observed(history) == ["a"]


def test_few_databases_stay_open(history: dg.DagsterInstance, pipeline):
    log = history.event_log_storage
    assert isinstance(log, EventLog)
    for number in range(3 * KEPT_OPEN):
        log.get_logs_for_run(f"run-{number}")
        log.get_asset_records([KEY])
    folder = pipeline.folder / "dagster" / "history" / "runs"
    assert len(list(folder.glob("run-*.db"))) == 3 * KEPT_OPEN
    assert open_databases(folder) == KEPT_OPEN
    (folder / "run-0.db").unlink()  # one that is not open
    assert log.get_logs_for_run("run-0") == []
    log.dispose()
    assert open_databases(folder) == 0


def test_a_runs_events_are_told_while_it_runs(history: dg.DagsterInstance):
    """As a page shows them: written by another, and no database is closed meanwhile."""
    run = history.create_run_for_job(dg.GraphDefinition("any").to_job())
    history.report_engine_event("before", run)
    told: queue.Queue[str] = queue.Queue()
    with dg.DagsterInstance.get() as other:
        found = other.get_records_for_run(run.run_id)
        assert [record.event_log_entry.dagster_event.message for record in found.records] == ["before"]
        other.watch_event_logs(run.run_id, found.cursor, lambda event, _: told.put(event.dagster_event.message))
        for message in ("one", "two"):
            history.report_engine_event(message, run)
            assert told.get(timeout=60) == message
