"""Runs from the page where more than one may go at a time: those that take the GPU go one by one."""

import shutil
import time
from pathlib import Path

import dagster as dg
import pytest
import yaml

from assets import home

graphql = pytest.importorskip(
    "dagster_graphql.test.utils", reason="there is no page; install it with: pip install -e '.[ui]' -c constraints.txt"
)
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) { ... on LaunchRunSuccess { run { runId } } ... on Error { message } }
}
"""
JOB = {"repositoryLocationName": "scale", "repositoryName": "__repository__", "jobName": "data"}
TAKE_THE_GPU = {"user_similarity_graph", "item_text_similarity_graph"}
TAKES_NONE = "semantic_graph"


@pytest.mark.slow
def test_runs_with_the_gpu_go_one_by_one_and_another_beside_them(built, tmp_path: Path, monkeypatch):
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

    monkeypatch.setenv("SCALE_HOME", str(shutil.copytree(built, tmp_path / "home")))
    written = home.dagster_home() / "dagster.yaml"
    settings = yaml.safe_load(written.read_text())
    settings["concurrency"]["runs"]["max_concurrent_runs"] = 3
    written.write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("SCALE_DAGSTER_HOME", str(written.parent))  # or it would be written anew
    project = WorkspaceFileTarget([str(home.PROJECT / "workspace.yaml")])
    with dg.DagsterInstance.get() as instance, WorkspaceProcessContext(instance, project) as context:

        def launch(stage: str) -> str:
            params = {
                "selector": {**JOB, "assetSelection": [{"path": [stage]}]},
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "tiny"}]},
            }
            answer = graphql.execute_dagster_graphql(context.create_request_context(), LAUNCH, {"params": params})
            return str(answer.data["launchRun"]["run"]["runId"])

        stages = {launch(stage): stage for stage in (*TAKE_THE_GPU, TAKES_NONE)}
        queue, seen = QueuedRunCoordinatorDaemon(interval_seconds=1), []
        while True:
            list(queue.run_iteration(context))  # as the daemon does again and again
            runs = [run for run in instance.get_runs() if run.run_id in stages]
            if all(run.is_finished for run in runs):
                break
            going = [run for run in runs if not run.is_finished and run.status is not dg.DagsterRunStatus.QUEUED]
            seen.append({stages[run.run_id] for run in going})
            time.sleep(0.1)
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert not any(together >= TAKE_THE_GPU for together in seen)
    assert any(TAKES_NONE in together and together & TAKE_THE_GPU for together in seen)
