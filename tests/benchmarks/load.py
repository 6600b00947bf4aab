"""How soon commands and pages answer once a store is old: 10,000 materialisations and 1,000 MLflow runs.

    python tests/benchmarks/load.py [--quick] [--rounds 5] [--out docs/benchmarks/load.json]

Three models are trained on the demo; then what that recorded is recorded again and again, so that nothing is stale. The
commands are whole processes; a page is the queries that it sends, to `dagster-webserver` and `mlflow server` at work.
With --quick a smaller dataset, and a tenth of the events and runs.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks import results, workers
from tests.benchmarks.startup import MODELS, SCALE, timed
from tests.benchmarks.workers import Measured
from tests.ports import free_port

EVENTS, RUNS = 10_000, 1_000
GOAL = 2.0  # seconds
STARTING_SECONDS = 180
PAGE_RUNS = 100  # that MLflow's table asks for at once

# What the Dagster UI asks for, in its own order: the graph of assets, and what it shows in each box of it.
GRAPH = """
{ assetNodes { id assetKey { path } groupName isPartitioned dependencyKeys { path } dependedByKeys { path }
  kinds computeKind description hasMaterializePermission jobNames opNames graphName } }
"""
BOXES = """
{ assetNodes(loadMaterializations: true) { id assetKey { path }
  assetMaterializations(limit: 1) { timestamp runId partition }
  partitionStats { numMaterialized numMaterializing numPartitions numFailed }
  assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { status } } } } } }
"""
STALE = """
{ assetNodes { id assetKey { path } staleStatus staleCauses { key { path } reason category } } }
"""
CATALOG = """
{ assetsOrError { ... on AssetConnection { nodes { id key { path } definition { id groupName isPartitioned kinds
  partitionDefinition { description } repository { name } description } } } } }
"""
ONE_ASSET = """
query Page($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
  assetMaterializations(limit: 100) { timestamp runId partition tags { key value }
    metadataEntries { label ... on TextMetadataEntry { text } ... on FloatMetadataEntry { floatValue } } } } } }
"""


def fill(dataset: str, events: int, runs: int) -> None:
    """Record what was made again until there are so many events, and the newest MLflow run so many times."""
    import dagster as dg
    import mlflow

    from assets import home
    from assets.progress import Progress
    from assets.refresh import Refresh
    from assets.tracking import connect

    home.dagster_home()
    with dg.DagsterInstance.get() as instance:
        made = [
            record.asset_materialization
            for key in instance.all_asset_keys()
            for record in instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=key), limit=100).records
        ]
        for number in range(events - len(made)):
            instance.report_runless_asset_event(made[::-1][number % len(made)])
        if ran := Refresh(instance, dataset, {}, None, Progress()).run().ran:
            raise RuntimeError(f"{len(ran)} stages were stale in the filled store, so a refresh would be no no-op")
    experiment = connect(dataset)
    client = mlflow.MlflowClient()
    found = client.search_runs([experiment])
    for number in range(runs - len(found)):
        data = found[number % len(found)].data
        run = client.create_run(experiment, tags=data.tags)
        metrics = [mlflow.entities.Metric(name, value, 0, 0) for name, value in data.metrics.items()]
        parameters = [mlflow.entities.Param(name, value) for name, value in data.params.items()]
        client.log_batch(run.info.run_id, metrics, parameters)
        client.set_terminated(run.info.run_id)


def post(address: str, content: Any) -> dict[str, Any]:
    """The JSON that a server answers with."""
    request = urllib.request.Request(address, json.dumps(content).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=STARTING_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    if found.get("errors"):
        raise RuntimeError(f"{address}: {found['errors'][0]['message']}")
    return found


def start(command: list[str], environment: dict[str, str], ready: Callable[[], object], log: Path) -> subprocess.Popen:
    """A server, once it answers."""
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + STARTING_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            ready()
            return process
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    process.kill()
    raise RuntimeError(f"{' '.join(command)} does not answer: {log.read_text()[-2000:]}")


def pages(dagster: str, mlflow: str, experiment: str) -> dict[str, Callable[[], object]]:
    """What a person opens -> the queries that it sends."""

    def asks(*queries: str, **variables: Any) -> Callable[[], object]:
        return lambda: [post(f"{dagster}/graphql", {"query": query, "variables": variables}) for query in queries]

    search = {"experiment_ids": [experiment], "max_results": PAGE_RUNS, "order_by": ["attributes.start_time DESC"]}
    return {
        "Dagster: the asset graph": asks(GRAPH, BOXES, STALE),
        "Dagster: the catalog": asks(CATALOG, BOXES, STALE),
        "Dagster: one asset": asks(ONE_ASSET, key={"path": ["item_profiles"]}),
        "MLflow: the runs of an experiment": lambda: post(f"{mlflow}/ajax-api/2.0/mlflow/runs/search", search),
    }


def main() -> None:
    arguments = workers.arguments(__doc__).parse_args()
    dataset, share = ("tiny", 10) if arguments.quick else ("demo", 1)
    commands = {name: [*SCALE, name, "--dataset", dataset] for name in ("status", "compare", "refresh")}
    with TemporaryDirectory() as home:
        datasets = Path(__file__).parents[1] / "datasets"
        os.environ |= {"SCALE_HOME": home, "SCALE_DATASETS": str(datasets), "MLFLOW_DISABLE_TELEMETRY": "true"}
        timed([*SCALE, "run", "-d", dataset, *(word for name in MODELS for word in ("-m", name))], dict(os.environ))
        fill(dataset, EVENTS // share, RUNS // share)
        measured = measure(commands, dataset, Path(home), arguments.rounds)
    rows = [results.row(name, "answers in", "s", found, GOAL, "at most") for name, found in measured.seconds.items()]
    content = results.result(
        "An old store",
        f"{EVENTS // share:,} materialisations and {RUNS // share:,} MLflow runs of {dataset}. Commands are whole "
        "processes; pages are the queries that they send.",
        arguments.rounds,
        measured.load,
        rows=rows,
    )
    results.write(content, arguments.out)


def measure(commands: dict[str, list[str]], dataset: str, home: Path, rounds: int) -> Measured:
    """Every command and page, so many times, after once that is not counted."""
    from assets import home as places
    from assets.tracking import connect

    environment = os.environ | {"DAGSTER_HOME": str(places.dagster_home())}
    ports = {name: free_port() for name in ("dagster", "mlflow")}
    dagster, mlflow = (f"http://127.0.0.1:{port}" for port in ports.values())
    web = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(ports["dagster"])]
    web += ["-w", str(places.PROJECT / "workspace.yaml")]
    store = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(ports["mlflow"])]
    store += ["--backend-store-uri", places.tracking_uri(), "--workers", "1"]
    opened = pages(dagster, mlflow, connect(dataset))
    servers = []
    try:
        servers.append(start(web, environment, lambda: post(f"{dagster}/graphql", {"query": GRAPH}), home / "web.log"))
        servers.append(
            start(store, environment, lambda: urllib.request.urlopen(f"{mlflow}/health"), home / "mlflow.log")
        )
        measured = Measured()
        for turn in range(-1, rounds):
            for name, command in commands.items():
                seconds, peak = timed(command, environment)
                if turn >= 0:
                    measured.begin(f"scale {name}", turn, rounds)
                    measured.add(f"scale {name}", seconds, peak)
            for name, open_page in opened.items():
                before = time.perf_counter()
                open_page()
                if turn >= 0:
                    measured.begin(name, turn, rounds)
                    measured.add(name, time.perf_counter() - before, 0)
        return measured
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


if __name__ == "__main__":
    main()
