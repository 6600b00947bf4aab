"""Settings of every test: made datasets by name, a home folder of their own, no telemetry, no hub."""

import os
from pathlib import Path

import pytest

# Before anything imports `assets`: Dagster's partitions are the datasets known at import.
os.environ["SCALE_DATASETS"] = str(Path(__file__).parent / "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("SCALE_HOME", None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the shared research data; tests that need it are skipped without it."""
    folder = os.environ.get("SCALE_SHARED")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("set SCALE_SHARED to the folder that holds data/ to run this on real data")
    return Path(folder)
