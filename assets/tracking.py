"""MLflow: one experiment a dataset, one run a training."""

import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from filelock import FileLock

from assets import home, parcels, plots, workers
from assets.parcels import Measured
from model.registry import MODELS
from pipeline import parquet
from pipeline.files import atomic_path

if TYPE_CHECKING:
    from model.training import EpochRecord, TrainingResult

logger = logging.getLogger(__name__)

TEST = "test_"  # before a metric's name: of the test split
FLUSH_SECONDS = 5.0
RETRY_SECONDS = 60.0  # after MLflow has not answered: each try holds up the training for `FLUSH_TIMEOUT` seconds
FLUSH_TIMEOUT = 10
PARAMETER_LENGTH = 6000  # MLflow's own limit
ENVIRONMENT = {  # of MLflow's client, unless it is set already
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # by default a call to a server that is gone takes four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class TrackingError(RuntimeError):
    """MLflow cannot be reached; the message says where it was looked for, and what to do."""


def connect(experiment: str) -> str:
    """Point MLflow at its store, make the experiment if it is new, give its id."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its news of database tables is none of the user's
    uri = home.tracking_uri()
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if database:
        database.parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    artifacts = home.home() / "mlflow" / "artifacts" / experiment
    # MLflow makes a new store's tables on first use, and does not expect another process to do the same, nor that
    # one is killed meanwhile.
    with FileLock(f"{database}.lock") if database else nullcontext():
        if database and not database.exists():
            _make_database(database, artifacts.parent)
        try:
            known = mlflow.get_experiment_by_name(experiment)
        except MlflowException as error:
            raise TrackingError(
                f"MLflow at {home.shown(uri)} does not answer ({home.shown(str(error))}); start it, or unset "
                f"MLFLOW_TRACKING_URI to keep runs in {home.home() / 'mlflow'}"
            ) from error
        if known is None:
            made = mlflow.create_experiment(experiment, artifact_location=artifacts.as_uri() if database else None)
    parcels.deliver_waiting()
    return str(known.experiment_id if known else made)


def _make_database(path: Path, artifacts: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with atomic_path(path) as temporary:
        SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.as_uri()).engine.dispose()


def finished_runs(dataset: str, limit: int) -> list[dict[str, Any]]:
    """Finished MLflow runs of a dataset, newest first."""
    import mlflow

    experiment = connect(dataset)
    runs = mlflow.MlflowClient().search_runs(
        [experiment], filter_string="attributes.status = 'FINISHED'", max_results=limit
    )
    rows = []
    for found in runs:
        metrics = {name.removeprefix(TEST): value for name, value in found.data.metrics.items()}
        seed = found.data.params.get("training.seed", "")
        model = found.data.tags.get("model")
        title = MODELS[model].title if model in MODELS else found.info.run_name
        epoch = int(metrics.get("best_epoch", 0))
        rows.append({**metrics, "run": f"{title} {found.info.run_id[:8]}", "seed": seed, "best_epoch": epoch})
    return rows


def git_commit() -> str:
    """The project's commit, `-dirty` where tracked files differ from it; `unknown` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=home.PROJECT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"


@dataclass(frozen=True)
class Ids:
    """Raw ids of users and items in row order, and the (user, item) training pairs."""

    users: pl.DataFrame
    items: pl.DataFrame
    seen: pl.DataFrame


def run_to_resume(file: Path, fingerprint: str) -> str | None:
    """Id of the MLflow run that a killed training of this fingerprint left; None where there is none to go on with.

    A damaged file is said: the next run writes it anew.
    """
    if not file.exists():
        return None
    try:
        state = json.loads(file.read_bytes())
        return str(state["run_id"]) if state["fingerprint"] == fingerprint else None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        logger.warning("%s cannot be read (%s); the training is logged as a new run", file, error)
        return None


class TrainingRun:
    """One MLflow run: started, or taken up again where a killed training left it.

    Parameters
    ----------
    experiment, name
        Dataset and model.
    settings
        Nested settings; logged as dotted parameters.
    tags
        Versions of every upstream asset, git commit, what a reader needs to place the run.
    resume_file
        Holds the run's id while the training is unfinished.
    fingerprint
        What the training depends on; a run is taken up only under the same one.
    """

    def __init__(
        self,
        experiment: str,
        name: str,
        settings: Mapping[str, Any],
        tags: Mapping[str, str],
        resume_file: Path,
        fingerprint: str,
    ) -> None:
        import mlflow

        self._mlflow = mlflow
        self._resume_file = resume_file
        self._model = tags["model"]
        self._pending: list[Measured] = []
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        self.experiment_id = connect(experiment)
        self.run_id = self._unfinished(fingerprint) or ""
        self._logged = self._last_epoch() if self.run_id else 0
        if not self.run_id:
            run = mlflow.MlflowClient().create_run(self.experiment_id, run_name=name, tags=dict(tags))
            self.run_id = run.info.run_id
            _log_parameters(self.run_id, flatten(settings))
            resume_file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(resume_file) as temporary:
                temporary.write_text(json.dumps({"run_id": self.run_id, "fingerprint": fingerprint}))

    def _unfinished(self, fingerprint: str) -> str | None:
        run_id = run_to_resume(self._resume_file, fingerprint)
        if run_id is None:
            return None
        try:
            self._mlflow.get_run(run_id)
        except self._mlflow.MlflowException:
            return None
        return run_id

    def _last_epoch(self) -> int:
        history = self._mlflow.MlflowClient().get_metric_history(self.run_id, "epoch_seconds")
        return max((metric.step for metric in history), default=0)

    def epoch(self, record: "EpochRecord") -> None:
        """Log one epoch's losses, validation metrics and seconds; an epoch that stands there already is passed by."""
        if record.epoch <= self._logged:
            return
        values = {f"loss_{term}": value for term, value in record.losses.items()}
        values |= {"epoch_seconds": record.seconds, "evaluation_seconds": record.evaluation_seconds}
        values |= {f"valid_{name}": value for name, value in (record.validation or {}).items()}
        self._pending += _measured(values, record.epoch)
        if time.monotonic() > self._next_flush:
            self._flush()

    def _flush(self) -> None:
        """Send what has come together. Where MLflow does not answer, it waits: no training stops for that."""
        try:
            with _asked_once():
                parcels.log_metrics(self.run_id, self._pending)
        except (self._mlflow.MlflowException, OSError) as error:
            logger.warning(
                "MLflow does not take this run's metrics (%s); the training goes on, they are kept",
                home.shown(str(error)),
            )
            self._next_flush = time.monotonic() + RETRY_SECONDS
        else:
            self._pending.clear()
            self._next_flush = time.monotonic() + FLUSH_SECONDS

    def finish(self, result: "TrainingResult", weights: Mapping[str, np.ndarray], ids: "Ids") -> None:
        """Log test metrics, cost, curves and the model, and close the run."""
        final = {f"{TEST}{name}": value for name, value in result.test.means.items()}
        final |= {f"best_valid_{name}": value for name, value in result.validation.items()}
        final |= {
            "best_epoch": result.best_epoch,
            "training_seconds": sum(record.seconds for record in result.history),
            "process_peak_memory_gb": workers.process_peak_memory(),
        }
        with parcels.parcel(self.run_id, "FINISHED", [*self._pending, *_measured(final)]) as packing:
            _draw_curves(result, packing / parcels.ARTIFACTS / "curves")
            _save_model(
                result, weights, ids, parcels.add_model(packing, self._model, ids.users["raw_id"].head(2).to_list())
            )
        self._resume_file.unlink(missing_ok=True)

    def fail(self) -> None:
        """Mark the run as failed; it can still be taken up again."""
        with parcels.parcel(self.run_id, "FAILED", self._pending):
            pass


@contextmanager
def _asked_once() -> Iterator[None]:
    """Have MLflow's client try each request once, for `FLUSH_TIMEOUT` seconds: a server may hang."""
    bounds = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(FLUSH_TIMEOUT)}
    before = {name: os.environ[name] for name in bounds}  # `connect` has seen to them
    os.environ.update(bounds)
    try:
        yield
    finally:
        os.environ.update(before)


def _draw_curves(result: "TrainingResult", folder: Path) -> None:
    history = result.history
    losses = {term: [(record.epoch, record.losses[term]) for record in history] for term in history[0].losses}
    metrics = {
        name: [(record.epoch, record.validation[name]) for record in history if record.validation]
        for name in result.validation
    }
    folder.mkdir()
    for name, title, series in (
        ("loss", "Training loss by term", losses),
        ("validation", "Validation metrics", metrics),
    ):
        (folder / f"{name}.png").write_bytes(plots.png(plots.curves(series, title, result.best_epoch)))


def _save_model(result: "TrainingResult", weights: Mapping[str, np.ndarray], ids: "Ids", folder: Path) -> None:
    """The files that `served_model` reads."""
    from safetensors.numpy import save_file

    save_file({"users": result.user_embeddings, "items": result.item_embeddings}, folder / "embeddings")
    save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, folder / "weights")
    parquet.write_table(ids.users.select("raw_id"), folder / "user_ids")
    parquet.write_table(ids.items.select("raw_id"), folder / "item_ids")
    parquet.write_table(ids.seen, folder / "seen")


@dataclass
class BriefRun:
    """A run of numbers alone, one of many.

    Attributes
    ----------
    status
        MLflow's, once it has ended without an error of its own.
    files
        A folder to log.
    """

    run_id: str
    status: str = "FINISHED"
    files: Path | None = None
    pending: list[Measured] = field(default_factory=list)

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Keep metrics of an epoch, or of the whole run; they are written at its end."""
        self.pending += _measured(values, step)


@contextmanager
def brief_run(
    experiment_id: str, name: str, settings: Mapping[str, Any], tags: Mapping[str, str]
) -> Iterator[BriefRun]:
    """Start a run, log its (nested) settings, and at the end, however it comes, its metrics and its status."""
    import mlflow

    client = mlflow.MlflowClient()
    run = BriefRun(client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id)
    _log_parameters(run.run_id, flatten(settings))
    try:
        yield run
    except BaseException:
        run.status = "FAILED" if run.status == "FINISHED" else run.status
        raise
    finally:
        with parcels.parcel(run.run_id, run.status, run.pending) as packing:
            if run.files is not None:
                shutil.copytree(run.files, packing / parcels.ARTIFACTS, dirs_exist_ok=True)


def log_folder(experiment: str, name: str, folder: Path, tags: Mapping[str, str]) -> None:
    """Log a folder's files as a run of their own."""
    with brief_run(connect(experiment), name, {}, tags) as run:
        run.files = folder


def _log_parameters(run_id: str, flat: Mapping[str, Any]) -> None:
    import mlflow

    texts = [(key, str(value)[:PARAMETER_LENGTH]) for key, value in flat.items()]
    for start in range(0, len(texts), 100):  # MLflow takes 100 parameters at a time
        mlflow.log_params(dict(texts[start : start + 100]), run_id=run_id)


def _measured(values: Mapping[str, float], step: int = 0) -> list[Measured]:
    """Values of an epoch, or of a whole run, as of now."""
    now = int(time.time() * 1000)
    return [Measured(name, value, now, step) for name, value in values.items()]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
