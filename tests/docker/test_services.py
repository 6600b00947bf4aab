"""The services of docker/compose.yaml as processes of this machine.

Each is started by its own command with its own environment and waited for by its own health check. Where this process
has the right, it stands behind the walls that Docker would build (tests/docker/walls.py). Where it has not, other
services answer on the loopback interface, at free ports, and folders lie under a temporary one. The S3 server is no
package, so moto's stands in for it.
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
import yaml

from tests.docker.walls import Walls, environment_of, may_be_built, user
from tests.ports import free_port

PROJECT = Path(__file__).parents[2]
DOCKER = PROJECT / "docker"
DATASETS = PROJECT / "tests" / "datasets"
PATIENCE = 150  # seconds, of everything that is waited for
PORTS = {"postgres": 5432, "mlflow": 5000, "code": 4000, "webserver": 3000, "objects": 9000, "ray-head": 6379}
OTHER = "other-ray-worker"
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
    """The services, under one folder: content of the volumes in `lib`, secrets, logs."""

    def __init__(self, services: dict[str, dict[str, Any]], folder: Path) -> None:
        self.services, self.folder = services, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.postgres = folder / "lib" / "postgres"
        # The server refuses to work for root.
        self.demoted = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        for name in ("secrets", "docker", "logs"):
            (folder / name).mkdir()
        for service in services.values():
            for volume in (mount for mount in service.get("volumes", []) if mount["type"] == "volume"):
                place = folder / "lib" / volume["source"]
                place.mkdir(parents=True, exist_ok=True)
                if os.getuid() == 0:
                    os.chown(place, *user(service["user"]))
        self.walls: Walls | None = None
        if may_be_built():
            if shutil.which("ip") is None:
                pytest.skip("there is no ip; install it with: apt-get install iproute2")
            self.walls = Walls(services, folder, folder / "lib", folder / "secrets")
        self.port = PORTS if self.walls else {name: free_port() for name in PORTS}
        for name in ("postgres_password", "dagster_password", "mlflow_password", "ray_token"):
            (folder / "secrets" / name).write_text(secrets.token_urlsafe() + "@:/%'\n")  # as odd as one may be
        for name in () if self.walls else ("dagster.yaml", "workspace.yaml"):
            text = (DOCKER / name).read_text()
            for host, port in PORTS.items():
                text = re.sub(rf"(host(?:name)?): {host}\b", r"\1: 127.0.0.1", text)
                text = text.replace(f"port: {port}", f"port: {self.port[host]}")
            place = "lib/dagster" if name == "dagster.yaml" else "docker"
            (folder / place / name).write_text(self.here(text))

    def here(self, text: str) -> str:
        """An argument or a variable of a container as it has to be on this machine."""
        if self.walls:
            return text
        for place, folder in {
            "/run/secrets": self.folder / "secrets",
            "/var/lib": self.folder / "lib",
            "/app/docker": self.folder / "docker",
        }.items():
            text = text.replace(place, str(folder))
        for host, port in PORTS.items():
            text = re.sub(rf"(^|//|@|--address=){host}:{port}\b", rf"\g<1>127.0.0.1:{self.port[host]}", text)
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.port[host]}")
            text = text.replace(f"-port={port}", f"-port={self.port[host]}")
        return (
            str(self.folder / "datasets") if text == "/datasets" else text.replace("--host=0.0.0.0", "--host=127.0.0.1")
        )

    def address(self, name: str) -> str:
        """The host at which a service answers this process."""
        return self.walls.address(name) if self.walls else "127.0.0.1"

    def environment(self, name: str) -> dict[str, str]:
        service = self.services[name]
        if self.walls:
            image = {} if name == "postgres" else environment_of(service["build"]["target"])
            programs = [Path(sys.executable).parent, "/app/docker", binaries(), "/usr/sbin:/usr/bin:/sbin:/bin"]
            own = {"PATH": os.pathsep.join(map(str, programs)), "PYTHONPATH": "/app"}
            return {**image, **own, **service["environment"]}
        path = [str(Path(sys.executable).parent), str(DOCKER), os.environ["PATH"]]
        given = {key: self.here(value) for key, value in service["environment"].items()}
        if name == "postgres":
            path.insert(0, str(binaries()))
            given |= {"PGPORT": str(self.port[name]), "PGHOST": str(self.postgres)}
            given["PGDATA"] = str(self.postgres / "pgdata")
        python = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return {"PATH": os.pathsep.join(path), "HOME": str(self.folder), "PYTHONPATH": python} | given

    def start(self, name: str, command: list[str] | None = None) -> None:
        """Start a service, by its own command if no other is given."""
        words = [self.here(word) for word in command or self.services[name]["command"]]
        if name != "postgres":
            words.insert(0, self.script("with-password"))  # the image's entry point
        elif not self.walls:
            words += ["-k", str(self.postgres), "-h", "127.0.0.1"]
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            process = self.processes[name] = subprocess.Popen(
                self.walls.starting(name, words) if self.walls else words,
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self.outside(name),
            )
        if self.walls:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            until(lambda: process.poll() is not None or bool(children.read_text()), lambda: self.log(name))

    def outside(self, name: str) -> dict[str, Any]:
        """Folder and user of a service's processes where no walls are."""
        if self.walls:
            return {}
        return {"cwd": self.postgres, **self.demoted} if name == "postgres" else {"cwd": PROJECT}

    def script(self, name: str) -> str:
        """Path of one of docker/, of which the images have the same names on their search path."""
        return name if self.walls else str(DOCKER / name)

    def execute(self, name: str, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command beside a service, with its environment and more variables: `docker compose exec`."""
        started = self.processes[name].pid
        return subprocess.run(
            self.walls.entering(name, started, command) if self.walls else command,
            env=self.environment(name) | more,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **self.outside(name),
        )

    def healthy(self, name: str) -> bool:
        kind, *test = self.services[name]["healthcheck"]["test"]
        command = [self.here(word) for word in test]
        if kind == "CMD-SHELL":
            command = ["sh", "-c", *command]
        if command[0] == "with-password":
            command[0] = self.script(command[0])
        if self.processes[name].poll() is not None:
            return False  # there is nothing beside which the check could run
        return self.execute(name, *command).returncode == 0

    def wait_for(self, name: str) -> None:
        def answers() -> bool:
            process = self.processes[name]
            assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log(name)}"
            return self.healthy(name)

        until(answers, lambda: f"{name} is not healthy:\n{self.log(name)}")

    def restart_ended(self) -> None:
        """Start what has ended by itself, as Docker does with `restart: unless-stopped`, and wait for all."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None and name != OTHER:
                assert self.services[name]["restart"] == "unless-stopped"
                self.start(name)
        for name in set(self.processes) - {OTHER}:
            self.wait_for(name)

    def log(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text()[-4000:]

    def make_databases(self) -> None:
        """What the postgres image does on an empty volume."""
        setup = """
            mkdir -p "$PGDATA"
            initdb -D "$PGDATA" --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
            echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
            echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
        """
        self.start("postgres", ["sh", "-euc", setup])
        assert self.processes["postgres"].wait() == 0, self.log("postgres")
        self.start("postgres")
        until(lambda: self.execute("postgres", "pg_isready", "-q").returncode == 0, lambda: self.log("postgres"))
        assert not self.healthy("postgres")  # no database of MLflow's yet
        (script,) = (mount for mount in self.services["postgres"]["volumes"] if mount["type"] == "bind")
        made = self.execute("postgres", script["target"] if self.walls else script["source"])
        assert made.returncode == 0, made.stderr

    def make_bucket(self) -> None:
        """An S3 server with the bucket that docker/objects.sh makes."""
        from botocore.exceptions import EndpointConnectionError
        from botocore.session import Session

        key, secret = "scale", secrets.token_urlsafe()
        (self.folder / "secrets" / "store_credentials").write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        )
        host = "0.0.0.0" if self.walls else "127.0.0.1"
        self.start("objects", ["python", "-m", "moto.server", "-H", host, "-p", str(self.port["objects"])])
        self.s3 = Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=f"http://{self.address('objects')}:{self.port['objects']}",
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
        waiting = [name for name in self.services if name not in ("postgres", "objects", "vllm", OTHER)]
        healthy = {"postgres", "objects"}
        while waiting:
            ready = [name for name in waiting if set(self.services[name].get("depends_on", ())) <= healthy]
            assert ready, f"{waiting} wait for each other"
            for name in ready:
                self.start(name)
            for name in ready:
                self.wait_for(name)
            healthy |= set(ready)
            waiting = [name for name in waiting if name not in healthy]

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.processes[name]
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):  # has ended by itself
            os.kill(self.walls.process_one(process.pid) if self.walls else process.pid, how)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()

    def down(self) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name, signal.SIGINT)  # at which PostgreSQL waits for no client
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if self.walls:
            self.walls.remove()

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """GraphQL's answer of the page server."""
        connection = http.client.HTTPConnection(self.address("webserver"), self.port["webserver"], timeout=60)
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

    @contextlib.contextmanager
    def settings(self, **changes: Any) -> Iterator[None]:
        """Have other settings in the file of the dataset `tiny`."""
        file = self.folder / "datasets" / "tiny.yaml"
        before = file.read_text()
        file.write_text(yaml.safe_dump(yaml.safe_load(before) | changes))
        try:
            yield
        finally:
            file.write_text(before)

    def done_on_ray(self) -> Counter[tuple[str, str]]:
        """Tasks of the Ray cluster so far, by function and address of the machine."""
        asked = self.execute("code", "python", "-c", TASKS)
        assert asked.returncode == 0, asked.stderr
        return Counter((name, address) for name, address in json.loads(asked.stdout.splitlines()[-1]))

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
                host=self.address("postgres"),
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
        time.sleep(0.1)


@pytest.fixture(scope="module")
def running(compose: Callable[..., dict[str, Any]]) -> Iterator[Services]:
    """Every service that needs no GPU, healthy, with the store in a bucket and two workers of the Ray cluster."""
    extras = {"dagster_postgres": "postgres", "dagster_webserver": "ui", "ray": "ray", "s3fs": "s3", "moto": "dev"}
    for module, extra in extras.items():
        if find_spec(module) is None:
            pytest.skip(f"there is no {module}; install it with: pip install -e '.[{extra}]' -c constraints.txt")
    binaries()
    # Not pytest's own folder, which others than root may not enter.
    with tempfile.TemporaryDirectory(prefix="services-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        datasets = shutil.copytree(DATASETS, folder / "datasets")
        services = compose(SCALE_STORE="s3://scale", SCALE_RAY="ray-head:6379", SCALE_DATASETS=str(datasets))[
            "services"
        ]
        # A second worker, as `--scale ray-worker=2` has it.
        made = Services(services | {OTHER: services["ray-worker"]}, folder)
        try:
            made.up()
            yield made
        finally:
            made.down()


def mlflow_status(running: Services, host: str) -> int:
    """How MLflow answers a request that came for `host`."""
    connection = http.client.HTTPConnection(running.address("mlflow"), running.port["mlflow"], timeout=30)
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


TERMINATE = """
mutation ($run: String!) { terminateRun(runId: $run, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename } }
"""
TASKS = """
import json, logging, ray
ray.init(log_to_driver=False, logging_level=logging.ERROR)
print(json.dumps([[event["name"], event["pid"]] for event in ray.timeline() if event["cat"].startswith("task::")]))
"""
LONG = {"epochs": 60, "patience": 60, "batch_size": 64, "checkpoint_every": 1}  # seconds, so that it has a middle
PROBE = """
for place; do
    ( : > "$place/probe" ) 2>/dev/null && rm "$place/probe" && echo "$place is written"
    printf '#!/bin/sh\n' > "$place/probe" 2>/dev/null && chmod +x "$place/probe" && "$place/probe" 2>/dev/null \
        && echo "$place is run from"
    rm -f "$place/probe"
done
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status
"""


@pytest.mark.slow
def test_each_service_works_behind_its_walls(running):
    """What the other tests need of a service, it does as nobody, without rights, on a file system that is read-only."""
    if running.walls is None:
        pytest.skip("it takes the right to make namespaces")
    for name in running.processes:
        uid, gid = user(running.services[name]["user"])
        mounts = running.walls.mounts(name)
        places = [place for place, (source, _) in mounts.items() if source == "tmpfs" or Path(source).is_dir()]
        places = [place for place in places if not place.startswith(("/proc", "/dev/"))]
        found = running.execute(name, "sh", "-c", PROBE, "sh", "/", "/app", *places).stdout.splitlines()
        rights = dict(line.split(":\t", 1) for line in found if ":\t" in line)
        assert {rights["Uid"], rights["Gid"]} == {"\t".join([str(number)] * 4) for number in (uid, gid)}, name
        assert uid != 0 != gid, name
        assert rights["NoNewPrivs"] == "1", name
        assert {value for key, value in rights.items() if key.startswith("Cap")} == {"0" * 16}, name
        for process in set(running.walls.processes(name)) - {running.processes[name].pid}:
            status = Path(f"/proc/{process}/status").read_text()
            assert f"Uid:\t{rights['Uid']}\n" in status, name
            assert "NoNewPrivs:\t1\n" in status, name
        writable = {
            mount["target"] for mount in running.services[name].get("volumes", []) if not mount.get("read_only")
        }
        loose = {mount.partition(":")[0] for mount in running.services[name]["tmpfs"]}
        assert {line.removesuffix(" is written") for line in found if line.endswith("written")} == writable | loose, (
            name
        )
        assert {line.removesuffix(" is run from") for line in found if line.endswith("from")} == writable, name


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
    if running.walls is None:
        written = {path.name for path in (running.folder / "docker").iterdir()}
        assert written == {"workspace.yaml"}  # nothing more, since that folder of the image is read-only


MADE = "SELECT id, asset_key FROM event_logs WHERE run_id = '{}' AND dagster_event_type = 'ASSET_MATERIALIZATION'"


@pytest.mark.slow
def test_a_database_that_breaks_off_during_a_training_loses_no_metric(running):
    """MLflow and Dagster cannot write then, until the run has ended: launched again, it has all of itself in MLflow.

    The training goes on to its end, or Dagster, which cannot note its progress, ends it; then the next goes on with it.
    """
    if not running.stored():
        running.run("data", {"dataset": "tiny"})
    training = ("train_on_interactions", {"dataset": "tiny", "model": "bpr"})
    epochs = 200
    query = "SELECT run_uuid FROM metrics WHERE key = 'epoch_seconds'"
    before = set(running.select("mlflow", query))
    with running.settings(training=LONG | {"epochs": epochs, "patience": epochs}):
        run = running.launch(*training)
        until(lambda: set(running.select("mlflow", query)) > before, lambda: running.log("code"))
        ((broken,),) = set(running.select("mlflow", query)) - before
        running.stop("postgres", signal.SIGQUIT)
        waiting = running.folder / "lib" / "scale" / "mlflow" / "undelivered" / broken
        until(waiting.exists, lambda: running.log("code"))
        running.start("postgres")
        running.restart_ended()
        running.ask(TERMINATE, run=run)  # where Dagster could not note its end
        running.run(*training)
    assert not waiting.exists()
    logged: dict[str, list[int]] = {}
    query = f"SELECT key, step FROM metrics WHERE run_uuid = '{broken}' AND step > 0 ORDER BY step"
    for key, step in running.select("mlflow", query):
        logged.setdefault(key, []).append(step)
    assert {"loss_total", "epoch_seconds", "valid_recall_at_20"} <= set(logged)
    for name, steps in logged.items():
        assert steps == list(range(1, epochs + 1)), name
    assert running.select("mlflow", f"SELECT status FROM runs WHERE run_uuid = '{broken}'") == [("FINISHED",)]


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
def test_work_goes_to_a_cluster_by_its_address_with_its_token_and_only_of_the_same_code(running):
    address = running.environment("code")["RAY_ADDRESS"]

    def said(**more: str) -> str:
        return running.execute("code", "python", "-c", ON_RAY, address, **more).stderr

    assert running.execute("code", running.script("with-ray"), "echo", "alone", RAY_ADDRESS="").stdout == "alone\n"
    refused = said()
    assert refused.startswith("done\n"), refused
    assert "has other code of this project than this process" in refused.splitlines()[-1]
    unknown = said(RAY_AUTH_TOKEN="a" * 64)
    assert f"compute.address = {address}: the cluster there cannot be joined" in unknown, unknown


@pytest.mark.slow
def test_a_run_from_the_page_has_its_graphs_made_by_the_cluster_as_they_are_made_without(running):
    if not running.stored():
        running.run("data", {"dataset": "tiny"})
    before = running.stored()
    shutil.rmtree(running.folder / "lib" / "scale" / "cache" / "graphs")  # or there is nothing to do
    earlier = running.done_on_ray()
    with running.settings(compute="ray"):
        running.run("data", {"dataset": "tiny"})
    assert running.stored() == before
    done = running.done_on_ray() - earlier
    machines = {address for name, address in done if name == "pipeline.compute._all"}
    assert machines == {running.address("ray-worker")} if running.walls else len(machines) == 1


@pytest.mark.long
def test_a_machine_that_is_lost_in_the_middle_of_its_training_changes_no_result(running):
    """Two workers train a seed each, at addresses and with files of their own; one of them loses its power."""
    if running.walls is None:
        pytest.skip("it takes the right to make namespaces")
    if not running.stored():
        running.run("data", {"dataset": "tiny"})
    seeds = {"dataset": "tiny", "model": "bpr"}
    home = running.folder / "lib" / "scale"

    def made() -> dict[str, str]:
        return {name: content for name, content in running.stored().items() if "replicate" in name}

    def unfinished() -> list[Path]:
        return list((home / "checkpoints" / "tiny").rglob("*.safetensors"))

    with running.settings(training=LONG, evidence={"seeds": 2, "parallel": 2}):
        running.run("replicate_interactions", seeds)
    alone = made()
    assert len(alone) == 2
    shutil.rmtree(home / "trials")
    assert not unfinished()
    running.start(OTHER)
    running.wait_for(OTHER)
    earlier = running.done_on_ray()
    with running.settings(training=LONG, evidence={"seeds": 2, "parallel": 2}, compute="ray"):
        run = running.launch("replicate_interactions", seeds)
        until(lambda: len(unfinished()) == 2, lambda: running.log("code"))
        running.stop(OTHER, signal.SIGKILL)
        assert len(unfinished()) == 2  # neither was done by then
        assert running.ended(run) == "SUCCESS", running.log("code")
    assert made() == alone
    machines = {address for name, address in running.done_on_ray() - earlier if name == "pipeline.compute._call"}
    assert running.address("ray-worker") in machines
