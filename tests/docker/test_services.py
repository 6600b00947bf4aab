"""The services of docker/compose.yaml as processes of this machine.

Each is started by its own command with its own environment and waited for by its own health check. What differs from
containers: other services answer on the loopback interface, at free ports, and folders lie under a temporary one. The
S3 server is no package, so moto's stands in for it.
"""

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

PROJECT = Path(__file__).parents[2]
DOCKER = PROJECT / "docker"
DATASETS = PROJECT / "tests" / "datasets"
PATIENCE = 150  # seconds, of everything that is waited for
PORTS = {"postgres": 5432, "mlflow": 5000, "code": 4000, "webserver": 3000, "objects": 9000, "ray-head": 6379}
PORTS |= {"agent of ray-head": 52365, "agent of ray-worker": 52366}
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
STATUS = """
query ($run: ID!) {
  runOrError(runId: $run) { __typename ... on Run { status tags { key value } } }
}
"""


def binaries() -> Path:
    """Folder of PostgreSQL's server programs."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    found = [folder for folder in folders if (folder / "initdb").exists()]
    if not found:
        pytest.skip("there is no PostgreSQL; install it with: apt-get install postgresql")
    return found[0]


class Services:
    """The services, under one folder."""

    def __init__(self, services: dict[str, dict[str, Any]], folder: Path) -> None:
        self.services, self.folder = services, folder
        self.port = {name: free_port() for name in PORTS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.postgres = folder / "postgres"
        # The server refuses to work for root.
        self.demoted = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        for name in ("secrets", "docker", "logs", "lib/scale", "lib/dagster", "lib/mlflow", "postgres"):
            (folder / name).mkdir(parents=True)
        if self.demoted:
            shutil.chown(self.postgres, **self.demoted)
        for name in ("postgres_password", "dagster_password", "mlflow_password", "ray_token"):
            (folder / "secrets" / name).write_text(secrets.token_urlsafe() + "@:/%'\n")  # as odd as one may be
        for name in ("dagster.yaml", "workspace.yaml"):
            text = (DOCKER / name).read_text()
            for host, port in PORTS.items():
                text = re.sub(rf"(host(?:name)?): {host}\b", r"\1: 127.0.0.1", text)
                text = text.replace(f"port: {port}", f"port: {self.port[host]}")
            place = "lib/dagster" if name == "dagster.yaml" else "docker"
            (folder / place / name).write_text(self.here(text))

    def here(self, text: str) -> str:
        """An argument or a variable of a container as it has to be on this machine."""
        for place, folder in {
            "/run/secrets": self.folder / "secrets",
            "/var/lib": self.folder / "lib",
            "/app/docker": self.folder / "docker",
        }.items():
            text = text.replace(place, str(folder))
        for host, port in PORTS.items():
            text = re.sub(rf"(//|@|--address=){host}:{port}\b", rf"\g<1>127.0.0.1:{self.port[host]}", text)
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.port[host]}")
            text = text.replace(f"-port={port}", f"-port={self.port[host]}")
        return str(DATASETS) if text == "/datasets" else text.replace("--host=0.0.0.0", "--host=127.0.0.1")

    def environment(self, name: str) -> dict[str, str]:
        path = [str(Path(sys.executable).parent), str(DOCKER), os.environ["PATH"]]
        given = {key: self.here(value) for key, value in self.services[name]["environment"].items()}
        if name == "postgres":
            path.insert(0, str(binaries()))
            given |= {"PGPORT": str(self.port[name]), "PGHOST": str(self.postgres)}
        python = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return {"PATH": os.pathsep.join(path), "HOME": str(self.folder), "PYTHONPATH": python} | given

    def start(self, name: str) -> None:
        command = [self.here(word) for word in self.services[name]["command"]]
        if name == "postgres":
            command += ["-D", str(self.postgres / "data"), "-k", str(self.postgres), "-h", "127.0.0.1"]
        else:
            command.insert(0, str(DOCKER / "with-password"))  # the image's entry point
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.postgres if name == "postgres" else PROJECT,
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **(self.demoted if name == "postgres" else {}),
            )

    def healthy(self, name: str) -> bool:
        kind, *test = self.services[name]["healthcheck"]["test"]
        command = [self.here(word) for word in test]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *command]
        if command[0] == "with-password":
            command[0] = str(DOCKER / command[0])
        found = subprocess.run(command, cwd=PROJECT, env=self.environment(name), capture_output=True)
        return found.returncode == 0

    def wait_for(self, name: str) -> None:
        def answers() -> bool:
            process = self.processes[name]
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log(name)}"
            return self.healthy(name)

        until(answers, lambda: f"{name} is not healthy:\n{self.log(name)}")

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()[-4000:]

    def make_databases(self) -> None:
        """What the postgres image does on an empty volume."""
        environment = self.environment("postgres")
        password = self.postgres / "password"
        shutil.copy(self.folder / "secrets" / "postgres_password", password)
        if self.demoted:
            shutil.chown(password, **self.demoted)
        command = ["initdb", "-D", str(self.postgres / "data"), "--username=postgres", f"--pwfile={password}"]
        command += environment["POSTGRES_INITDB_ARGS"].split()
        subprocess.run(
            command, check=True, cwd=self.postgres, env=environment, stdout=subprocess.DEVNULL, **self.demoted
        )
        self.start("postgres")
        assert self.processes["postgres"].poll() is None
        until(
            lambda: subprocess.run(["pg_isready", "-q"], env=environment).returncode == 0,
            lambda: self.log("postgres"),
        )
        assert not self.healthy("postgres")  # no database of MLflow's yet
        subprocess.run([DOCKER / "databases.sh"], check=True, env=environment)

    def make_bucket(self) -> None:
        """An S3 server with the bucket that docker/objects.sh makes."""
        from botocore.exceptions import EndpointConnectionError
        from botocore.session import Session

        key, secret = "scale", secrets.token_urlsafe()
        (self.folder / "secrets" / "store_credentials").write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        )
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port["objects"])]
        with (self.folder / "logs" / "objects.log").open("ab") as log:
            self.processes["objects"] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.s3 = Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.here("http://objects:9000"),
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

        def made() -> bool:
            with contextlib.suppress(EndpointConnectionError):
                for name in ("scale", "health"):  # the listing of the second answers the health check
                    self.s3.create_bucket(Bucket=name)
                return True
            return False

        until(made, lambda: self.log("objects"))
        self.wait_for("objects")

    def up(self) -> None:
        """Start each service once those it depends on are healthy."""
        self.make_databases()
        self.make_bucket()
        self.wait_for("postgres")
        waiting = [name for name, service in self.services.items() if not service.get("profiles") and name in self.rest]
        healthy = {"postgres", "objects"}
        while waiting:
            ready = [name for name in waiting if set(self.services[name]["depends_on"]) <= healthy]
            assert ready, f"{waiting} wait for each other"
            for name in ready:
                self.start(name)
            for name in ready:
                self.wait_for(name)
            healthy |= set(ready)
            waiting = [name for name in waiting if name not in healthy]

    @property
    def rest(self) -> set[str]:
        return set(self.services) - {"postgres"}

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.processes[name]
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)

    def down(self) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name, signal.SIGINT)  # at which PostgreSQL waits for no client
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """GraphQL's answer of the page server."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port["webserver"], timeout=60)
        body = json.dumps({"query": query, "variables": variables})
        connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        assert "errors" not in answer, answer
        found: dict[str, Any] = answer["data"]
        return found

    def launch(self, job: str, partition: dict[str, str]) -> str:
        """Launch a job as a page does; the run's id."""
        tags = {"dagster/partition": "|".join(partition.values())}
        if len(partition) > 1:
            tags |= {f"dagster/partition/{dimension}": key for dimension, key in partition.items()}
        selector = {"repositoryLocationName": "scale", "repositoryName": "__repository__", "jobName": job}
        metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        params = {"selector": selector, "runConfigData": {}, "executionMetadata": metadata}
        launched = self.ask(LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def ended(self, run: str) -> str:
        """How a run ended, once it has."""

        def status() -> str:
            return str(self.ask(STATUS, run=run)["runOrError"]["status"])

        until(
            lambda: status() in ("SUCCESS", "FAILURE", "CANCELED"),
            lambda: f"{run} is {status()}:\n{self.log('daemon')}\n{self.log('code')}",
        )
        return status()

    def run(self, job: str, partition: dict[str, str]) -> str:
        """Launch a job, wait until it has succeeded, and give the run's id."""
        run = self.launch(job, partition)
        assert self.ended(run) == "SUCCESS", self.log("code")
        return run

    def stored(self) -> dict[str, str]:
        """Checksum of every result, as the bucket's manifests have it."""
        listed = self.s3.list_objects_v2(Bucket="scale").get("Contents", [])
        names = [entry["Key"] for entry in listed if entry["Key"].endswith(".json")]
        read = {name: self.s3.get_object(Bucket="scale", Key=name)["Body"].read() for name in names}
        return {name: json.loads(content)["sha256"] for name, content in read.items()}

    def select(self, role: str, query: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Rows that a role gets from its database."""
        import psycopg2

        password = (self.folder / "secrets" / f"{role}_password").read_text().strip()
        with contextlib.closing(
            psycopg2.connect(
                host="127.0.0.1",
                port=self.port["postgres"],
                user=role,
                password=password,
                dbname=database or role,
            )
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(query)
            return list(cursor.fetchall())


def until(done: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(otherwise())
        time.sleep(0.5)


@pytest.fixture(scope="module")
def running(compose: Callable[..., dict[str, Any]]) -> Iterator[Services]:
    """Every service that needs no GPU, healthy, with the store in a bucket."""
    services = compose(SCALE_STORE="s3://scale")["services"]
    extras = {"dagster_postgres": "postgres", "dagster_webserver": "ui", "s3fs": "s3", "moto": "dev"}
    for module, extra in extras.items():
        if find_spec(module) is None:
            pytest.skip(f"there is no {module}; install it with: pip install -e '.[{extra}]' -c constraints.txt")
    binaries()
    # Not pytest's own folder, which others than root may not enter.
    with tempfile.TemporaryDirectory(prefix="services-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        made = Services(services, Path(folder))
        try:
            made.up()
            yield made
        finally:
            made.down()


def mlflow_status(running: Services, host: str) -> int:
    """How MLflow answers a request that came for `host`."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port["mlflow"], timeout=30)
    connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host})
    return connection.getresponse().status


@pytest.mark.slow
def test_mlflow_answers_to_the_names_that_it_is_called_by_and_no_other(running):
    for host in ("mlflow:5000", "localhost:5000", "127.0.0.1:5000"):
        assert mlflow_status(running, host) == 200
    assert mlflow_status(running, "elsewhere.example") == 403


@pytest.mark.slow
def test_no_role_enters_the_database_of_another(running):
    import psycopg2

    for role, database in (("mlflow", "dagster"), ("dagster", "mlflow")):
        assert running.select(role, "SELECT current_user") == [(role,)]
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            running.select(role, "SELECT 1", database)
    assert running.select("dagster", "SELECT rolsuper FROM pg_roles WHERE rolname IN ('dagster', 'mlflow')") == [
        (False,),
        (False,),
    ]


@pytest.mark.slow
def test_a_run_from_the_page_goes_through_the_queue_and_a_restart_of_the_database(running):
    data = running.run("data", {"dataset": "tiny"})
    running.stop("postgres", signal.SIGINT)
    assert running.processes["postgres"].returncode == 0
    assert not running.healthy("postgres")
    running.start("postgres")
    for name in running.processes:
        running.wait_for(name)
    trainings = [
        running.run("train_on_interactions", {"dataset": "tiny", "model": "bpr"}),
        running.run("train_on_semantic_graph", {"dataset": "tiny", "model": "scale"}),
    ]

    statuses = dict(running.select("dagster", "SELECT run_id, status FROM runs"))
    assert statuses == dict.fromkeys([data, *trainings], "SUCCESS")
    for run in statuses:
        query = f"SELECT dagster_event_type FROM event_logs WHERE run_id = '{run}'"
        events = {event for (event,) in running.select("dagster", query)}
        assert {"PIPELINE_ENQUEUED", "PIPELINE_STARTING", "ASSET_MATERIALIZATION", "PIPELINE_SUCCESS"} <= events

    metrics = dict(running.select("mlflow", "SELECT key, value FROM latest_metrics"))
    assert 0 < metrics["test_recall_at_20"] <= 1
    assert any((running.folder / "lib" / "mlflow").rglob("loss.png"))
    assert (running.folder / "lib" / "scale" / "store" / "interactions" / "trained_model" / "tiny").is_dir()
    stored = {entry["Key"] for entry in running.s3.list_objects_v2(Bucket="scale")["Contents"]}
    trained = {"interactions/trained_model/tiny/bpr.json", "semantic_graph/trained_model/tiny/scale.json"}
    assert {"raw_reviews/tiny.json", "semantic_graph/tiny.json"} | trained <= stored
    assert any((running.folder / "lib" / "dagster" / "logs").rglob("*.err"))
    written = {path.name for path in (running.folder / "docker").iterdir()}
    assert written == {"workspace.yaml"}  # nothing more, since that folder of the image is read-only


MADE = "SELECT id, asset_key FROM event_logs WHERE run_id = '{}' AND dagster_event_type = 'ASSET_MATERIALIZATION'"


@pytest.mark.slow
def test_a_database_that_breaks_off_under_load_loses_no_result(running):
    """PostgreSQL ends without a word in the middle of a run, while pages are read, and comes again."""
    if not running.stored():
        running.run("data", {"dataset": "tiny"})
    before = running.stored()
    run = running.launch("data", {"dataset": "tiny"})
    until(lambda: len(running.select("dagster", MADE.format(run))) >= 3, lambda: running.log("code"))
    told = set(running.select("dagster", MADE.format(run)))
    reading, answers = threading.Event(), Counter()

    def read() -> None:
        while not reading.is_set():
            try:
                running.ask(STATUS, run=run)
            except (AssertionError, OSError, http.client.HTTPException, ValueError):
                answers["failed"] += 1
            else:
                answers["given"] += 1
            time.sleep(0.05)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        running.stop("postgres", signal.SIGQUIT)
        assert running.processes["postgres"].poll() is not None
        time.sleep(2)
        answers.clear()
        running.start("postgres")
        for name in running.processes:
            running.wait_for(name)
        ended = running.ended(run)
    finally:
        reading.set()
        for reader in readers:
            reader.join()
    assert answers["given"] > answers["failed"]
    assert told <= set(running.select("dagster", MADE.format(run)))  # what was on record still is
    if ended != "SUCCESS":
        running.run("data", {"dataset": "tiny"})
    assert running.stored() == before


@pytest.fixture
def nodes(services: dict[str, dict[str, Any]]) -> Iterator[Services]:
    """A Ray cluster of a head and a worker."""
    if find_spec("ray") is None:
        pytest.skip("there is no Ray; install it with: pip install -e '.[ray]' -c constraints.txt")
    with tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as folder:
        made = Services(services, Path(folder))
        try:
            for name in ("ray-head", "ray-worker"):
                made.start(name)
                made.wait_for(name)
            yield made
        finally:
            made.down()
            for pid in processes_of(made.port["ray-head"]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def processes_of(port: int) -> list[int]:
    """Processes of nodes of the Ray cluster at a port."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if re.search(rf"gcs[-_]address=\S+:{port}\b", place.read_bytes().decode(errors="replace")):
                found.append(int(place.parent.name))
    return found


ON_RAY = """
import sys
import numpy as np
from pipeline import compute
from pipeline.graphs import knn, products
from pipeline.graphs.execution import Execution
from pipeline.settings import ComputeSettings

cluster = compute.cluster(ComputeSettings(kind="ray"))
assert cluster.settings.address == sys.argv[1]
cores = [node["Resources"].get("CPU", 0) for node in cluster._ray.nodes()]
assert len(cores) == 3 and cluster.cores == sum(cores) == max(cores) > 0, cores  # the worker's alone
products.LARGEST_BLOCK = 100
rows = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
there, here = (knn.nearest(rows, None, 5, Execution(cluster=used)) for used in (cluster, None))
assert there.ids.tobytes() == here.ids.tobytes()
print("done", file=sys.stderr)
compute.ROOMS = ("pipeline",)  # what there is to compare, and on the nodes it is more
compute._compare(cluster._ray, sys.argv[1])
"""


@pytest.mark.slow
def test_work_goes_to_a_cluster_by_its_address_with_its_token_and_only_of_the_same_code(nodes):
    address = f"127.0.0.1:{nodes.port['ray-head']}"

    def said(**more: str) -> str:
        given = nodes.environment("ray-head") | {"RAY_ADDRESS": address} | more
        command = [sys.executable, "-c", ON_RAY, address]
        return subprocess.run(command, cwd=PROJECT, env=given, capture_output=True, text=True, timeout=PATIENCE).stderr

    command = [DOCKER / "with-ray", "sh", "-c", "echo joined"]
    joined = subprocess.run(
        command,
        env=nodes.environment("code") | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert joined.stdout.endswith("joined\n"), joined.stderr
    assert subprocess.check_output(command, env=nodes.environment("code")) == b"joined\n"
    refused = said()
    assert refused.startswith("done\n"), refused
    assert "has other code of this project than this process" in refused.splitlines()[-1]
    unknown = said(RAY_AUTH_TOKEN="a" * 64)
    assert f"compute.address = {address}: the cluster there cannot be joined" in unknown, unknown
