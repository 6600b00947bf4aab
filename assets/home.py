"""Where everything generated lives: one folder, `SCALE_HOME`, by default `var/` beside this package."""

import errno
import os
import re
import shutil
from pathlib import Path

import yaml
from filelock import FileLock

from pipeline.files import atomic_path

LEAST_ROOM = 2**20  # bytes
TOKEN_VARIABLE = "SCALE_SERVE_TOKEN"  # of `scale serve`, and a secret
PROJECT = Path(__file__).resolve().parent.parent


def home() -> Path:
    """`SCALE_HOME`, absolute."""
    return Path(os.environ.get("SCALE_HOME") or PROJECT / "var").expanduser().resolve()


def store() -> Path:
    """Parquet files of every asset: `<asset>/<partition>.parquet`; with a store behind a URL, this machine's copies."""
    named = os.environ.get("SCALE_STORE")
    if not named or store_url():
        return home() / "store"
    return Path(named.removeprefix("file://")).expanduser().resolve()


def store_url() -> str | None:
    """`SCALE_STORE` where it is the URL of a bucket, and no folder."""
    named = os.environ.get("SCALE_STORE", "")
    return named if "://" in named and not named.startswith("file://") else None


def raw_folder(dataset: str) -> Path:
    """Downloaded and made raw files of a dataset."""
    return home() / "raw" / dataset


def cache_folder(kind: str, dataset: str) -> Path:
    """Rows of a dataset that were costly to compute, to be reused: `profiles`, `embeddings` or `graphs`."""
    return home() / "cache" / kind / dataset


def variants_folder(dataset: str) -> Path:
    """What stages gave with other settings than the dataset's own."""
    return home() / "variants" / dataset


def checkpoint_path(dataset: str, model: str) -> Path:
    """Checkpoint of an unfinished training."""
    return home() / "checkpoints" / dataset / f"{model}.safetensors"


def report_folder(dataset: str) -> Path:
    """A dataset's report: `report.html`, `report.md`, `figures/`."""
    return home() / "reports" / dataset


def tracking_uri() -> str:
    """MLflow store: `MLFLOW_TRACKING_URI`, by default SQLite under the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def shown(uri: str) -> str:
    """A URI without the passwords in it, to be shown or kept."""
    uri = re.sub(r"(//[^:/@]*:).*@", r"\1***@", uri)
    return re.sub(r"([?&]\w*password=)[^&]*", r"\1***", uri)


def is_full(error: Exception) -> bool:
    """Whether an error came of a disk without room, whoever raised it."""
    told = any(words in str(error) for words in (os.strerror(errno.ENOSPC), "disk is full"))
    return told or (home().exists() and shutil.disk_usage(home()).free < LEAST_ROOM)


def dagster_home() -> Path:
    """Prepare Dagster's own folder under the home folder and point `DAGSTER_HOME` at it.

    Its `dagster.yaml` is the project's, with absolute paths, so that runs started by `scale` and by a bare
    `dagster dev` in the project folder share one history; its databases are made if there are none. A folder named by
    `SCALE_DAGSTER_HOME` is taken as it is.
    """
    if own := os.environ.get("SCALE_DAGSTER_HOME"):
        if not (Path(own) / "dagster.yaml").is_file():
            raise FileNotFoundError(f"SCALE_DAGSTER_HOME names {own}, where there is no dagster.yaml")
        os.environ["DAGSTER_HOME"] = own
        return Path(own)
    folder = home() / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    settings["storage"]["custom"]["config"]["base_dir"] = str(folder)
    settings["local_artifact_storage"]["config"]["base_dir"] = str(folder)
    settings["compute_logs"]["config"]["base_dir"] = str(folder / "logs")
    text = yaml.safe_dump(settings)
    target = folder / "dagster.yaml"
    if not target.exists() or target.read_text() != text:
        with atomic_path(target) as temporary:
            temporary.write_text(text)
    os.environ["DAGSTER_HOME"] = str(folder)
    # Two processes that make Dagster's databases at the same moment leave them marked twice, and nobody can open them.
    with FileLock(folder / ".lock"):
        if not (folder / "schedules" / "schedules.db").exists():  # the last that it makes
            import dagster as dg

            dg.DagsterInstance.get().dispose()
    return folder
