"""How soon commands and pages answer once a store is old: 10,000 materialisations and 1,000 MLflow runs.

    python tests/benchmarks/load.py [--quick] [--rounds 5] [--out docs/benchmarks/load.json]

Three models are trained on the demo; then what that recorded is recorded again and again, so that nothing is stale.
Commands are whole processes. A page is the queries that it sends, to `dagster-webserver` and `mlflow server` at work,
and then itself, opened in a headless Chromium on the same machine until what it is opened for stands on it, also before
the store was filled. With --quick a smaller dataset, and a tenth of the events and runs.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
MISSING = "install chromium and the dev extra"
BLANK = "about:blank"

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


@contextmanager
def servers(home: Path) -> Iterator[dict[str, str]]:
    """Addresses of both UIs on what is recorded in a home folder."""
    from assets import home as places

    environment = os.environ | {"DAGSTER_HOME": str(places.dagster_home())}
    ports = {name: free_port() for name in ("dagster", "mlflow")}
    dagster, mlflow = (f"http://127.0.0.1:{port}" for port in ports.values())
    web = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(ports["dagster"])]
    web += ["-w", str(places.PROJECT / "workspace.yaml")]
    store = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(ports["mlflow"])]
    store += ["--backend-store-uri", places.tracking_uri(), "--workers", "1"]
    started = []
    try:
        started.append(start(web, environment, lambda: post(f"{dagster}/graphql", {"query": GRAPH}), home / "web.log"))
        started.append(
            start(store, environment, lambda: urllib.request.urlopen(f"{mlflow}/health"), home / "mlflow.log")
        )
        yield {"dagster": dagster, "mlflow": mlflow}
    finally:
        for server in started:
            server.terminate()
        for server in started:
            server.wait()


@contextmanager
def browser(dagster: str, mlflow: str, experiment: str, dataset: str) -> Iterator[dict[str, Callable[[], object]]]:
    """What a person opens -> opening it in one browser, which keeps the UIs' code once it has it; empty without one."""
    program = shutil.which("chromium")
    try:
        from playwright.sync_api import Page, sync_playwright
    except ImportError:
        program = None
    if program is None:
        yield {}
        return
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(1000 * STARTING_SECONDS)

        def opens(address: str, awaited: Callable[[Page], Any]) -> Callable[[], object]:
            def see() -> None:
                page.goto(address)
                awaited(page).first.wait_for()

            return see

        yield {
            "Dagster: the asset graph": opens(
                f"{dagster}/asset-groups", lambda page: page.get_by_text("recommendations", exact=True)
            ),
            "Dagster: the catalog": opens(f"{dagster}/assets", lambda page: page.get_by_text("item_profiles")),
            "Dagster: one asset": opens(
                f"{dagster}/assets/item_profiles?view=partitions&partition={dataset}",
                lambda page: page.get_by_text("Materialized", exact=True),
            ),
            "MLflow: the runs of an experiment": opens(
                f"{mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning",
                lambda page: page.get_by_role("checkbox", name="Press Space to toggle row selection"),
            ),
            BLANK: lambda: page.goto(BLANK),
        }


def seen(addresses: Mapping[str, str], dataset: str, rounds: int) -> Measured:
    """Every page in a browser, so many times, after once that is not counted."""
    from assets.tracking import connect

    measured = Measured()
    with browser(**addresses, experiment=connect(dataset), dataset=dataset) as opened:
        leave = opened.pop(BLANK, None)
        for turn in range(-1, rounds):
            for name, open_page in opened.items():
                assert leave is not None
                leave()
                take(measured, f"{name}, in a browser", open_page, turn, rounds)
    return measured


def take(measured: Measured, name: str, open_page: Callable[[], object], turn: int, rounds: int) -> None:
    """Time one turn; those before the first only warm up."""
    if turn < 0:
        open_page()
        return
    measured.begin(name, turn, rounds)
    before = time.perf_counter()
    open_page()
    measured.add(name, time.perf_counter() - before, 0)


def main() -> None:
    arguments = workers.arguments(__doc__).parse_args()
    dataset, share = ("tiny", 10) if arguments.quick else ("demo", 1)
    commands = {name: [*SCALE, name, "--dataset", dataset] for name in ("status", "compare", "refresh")}
    with TemporaryDirectory() as home:
        datasets = Path(__file__).parents[1] / "datasets"
        os.environ |= {"SCALE_HOME": home, "SCALE_DATASETS": str(datasets), "MLFLOW_DISABLE_TELEMETRY": "true"}
        timed([*SCALE, "run", "-d", dataset, *(word for name in MODELS for word in ("-m", name))], dict(os.environ))
        with servers(Path(home)) as addresses:
            new = seen(addresses, dataset, arguments.rounds)
        fill(dataset, EVENTS // share, RUNS // share)
        with servers(Path(home)) as addresses:
            measured = measure(commands, addresses, dataset, arguments.rounds)
            old = seen(addresses, dataset, arguments.rounds)
    rows = [results.row(name, "answers in", "s", found, GOAL, "at most") for name, found in measured.seconds.items()]
    for name, found in old.seconds.items():
        rows.append(results.row(name, "shows in", "s", found, GOAL, "at most"))
        rows.append(results.row(name, "shows in, with three runs on record", "s", new.seconds[name]))
    if not old.seconds:
        rows.append(results.missing_row("pages in a browser", "show in", "s", GOAL, MISSING))
    content = results.result(
        "An old store",
        f"{EVENTS // share:,} materialisations and {RUNS // share:,} MLflow runs of {dataset}. Commands are whole "
        "processes; pages are the queries that they send, and then pages in a browser on the same machine, which has "
        "opened them once before.",
        arguments.rounds,
        new.load + measured.load + old.load,
        rows=rows,
    )
    results.write(content, arguments.out)


def measure(commands: Mapping[str, list[str]], addresses: Mapping[str, str], dataset: str, rounds: int) -> Measured:
    """Every command and page, so many times, after once that is not counted."""
    from assets.tracking import connect

    opened: dict[str, Callable[[], object]] = {
        f"scale {name}": lambda command=command: timed(command, dict(os.environ)) for name, command in commands.items()
    }
    opened |= pages(**addresses, experiment=connect(dataset))
    measured = Measured()
    for turn in range(-1, rounds):
        for name, open_page in opened.items():
            take(measured, name, open_page, turn, rounds)
    return measured


if __name__ == "__main__":
    main()
