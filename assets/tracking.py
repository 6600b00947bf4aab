"""MLflow: one experiment a dataset, one run a training."""

import json
import logging
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets import home, plots
from pipeline import parquet

if TYPE_CHECKING:
    from model.training import EpochRecord, TrainingResult

FLUSH_SECONDS = 5.0
PARAMETER_LENGTH = 6000  # MLflow's own limit


def connect(experiment: str) -> str:
    """Point MLflow at its store, make the experiment if it is new, give its id."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its news of database tables is none of the user's
    uri = home.tracking_uri()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    known = mlflow.get_experiment_by_name(experiment)
    if known is not None:
        return str(known.experiment_id)
    artifacts = home.home() / "mlflow" / "artifacts" / experiment
    location = artifacts.as_uri() if uri.startswith("sqlite:///") else None
    return str(mlflow.create_experiment(experiment, artifact_location=location))


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
        self._pending: list[tuple[str, float, int]] = []
        self._flushed = time.monotonic()
        self.experiment_id = connect(experiment)
        self.run_id = self._unfinished(fingerprint) or ""
        self._logged = self._last_epoch() if self.run_id else 0
        if not self.run_id:
            run = mlflow.MlflowClient().create_run(self.experiment_id, run_name=name, tags=dict(tags))
            self.run_id = run.info.run_id
            _log_parameters(self.run_id, flatten(settings))
            resume_file.parent.mkdir(parents=True, exist_ok=True)
            with parquet.atomic_path(resume_file) as temporary:
                temporary.write_text(json.dumps({"run_id": self.run_id, "fingerprint": fingerprint}))

    def _unfinished(self, fingerprint: str) -> str | None:
        if not self._resume_file.exists():
            return None
        state = json.loads(self._resume_file.read_text())
        if state["fingerprint"] != fingerprint:
            return None
        try:
            self._mlflow.get_run(state["run_id"])
        except self._mlflow.MlflowException:
            return None
        return str(state["run_id"])

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
        self._pending += [(name, value, record.epoch) for name, value in values.items()]
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        _log_metrics(self.run_id, self._pending)
        self._pending.clear()
        self._flushed = time.monotonic()

    def finish(self, result: "TrainingResult", weights: Mapping[str, np.ndarray], ids: "Ids") -> None:
        """Log test metrics, cost, curves and the model, and close the run."""
        self._flush()
        final = {f"test_{name}": value for name, value in result.test.means.items()}
        final |= {f"best_valid_{name}": value for name, value in result.validation.items()}
        final |= {
            "best_epoch": result.best_epoch,
            "training_seconds": sum(record.seconds for record in result.history),
            "process_peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        with self._mlflow.start_run(run_id=self.run_id):
            self._mlflow.log_metrics(final)
            self._log_curves(result)
            self._log_model(result, weights, ids)
        self._resume_file.unlink(missing_ok=True)

    def fail(self) -> None:
        """Mark the run as failed; it can still be taken up again."""
        self._flush()
        self._mlflow.MlflowClient().set_terminated(self.run_id, status="FAILED")

    def _log_curves(self, result: "TrainingResult") -> None:
        history = result.history
        losses = {term: [(record.epoch, record.losses[term]) for record in history] for term in history[0].losses}
        metrics = {
            name: [(record.epoch, record.validation[name]) for record in history if record.validation]
            for name in result.validation
        }
        self._mlflow.log_figure(plots.curves(losses, "Training loss by term", result.best_epoch), "curves/loss.png")
        self._mlflow.log_figure(plots.curves(metrics, "Validation metrics", result.best_epoch), "curves/validation.png")

    def _log_model(self, result: "TrainingResult", weights: Mapping[str, np.ndarray], ids: "Ids") -> None:
        import mlflow.pyfunc
        import pandas as pd
        from safetensors.numpy import save_file

        with tempfile.TemporaryDirectory(dir=home.home()) as folder:
            files = {
                name: str(Path(folder) / name) for name in ("embeddings", "weights", "user_ids", "item_ids", "seen")
            }
            save_file({"users": result.user_embeddings, "items": result.item_embeddings}, files["embeddings"])
            save_file({name: np.ascontiguousarray(array) for name, array in weights.items()}, files["weights"])
            parquet.write_table(ids.users.select("raw_id"), Path(files["user_ids"]))
            parquet.write_table(ids.items.select("raw_id"), Path(files["item_ids"]))
            parquet.write_table(ids.seen, Path(files["seen"]))
            mlflow.pyfunc.log_model(
                name=self._model,
                python_model=str(Path(__file__).with_name("served_model.py")),
                artifacts=files,
                signature=_signature(),
                input_example=(pd.DataFrame({"user": ids.users["raw_id"].head(2).to_list()}), {"k": 5}),
                pip_requirements=["mlflow", "numpy", "pandas", "pyarrow", "safetensors"],
            )


@dataclass
class BriefRun:
    """A run of numbers alone, one of many.

    Attributes
    ----------
    status
        MLflow's, once it has ended without an error of its own.
    """

    run_id: str
    status: str = "FINISHED"
    pending: list[tuple[str, float, int]] = field(default_factory=list)

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Keep metrics of an epoch, or of the whole run; they are written at its end."""
        self.pending += [(name, value, step) for name, value in values.items()]


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
        _log_metrics(run.run_id, run.pending)
        client.set_terminated(run.run_id, status=run.status)


def log_folder(experiment: str, name: str, folder: Path) -> None:
    """Log a folder's files as a run of their own."""
    import mlflow

    with brief_run(connect(experiment), name, {}, {}) as run:
        mlflow.MlflowClient().log_artifacts(run.run_id, str(folder))


def _log_parameters(run_id: str, flat: Mapping[str, Any]) -> None:
    import mlflow

    texts = [(key, str(value)[:PARAMETER_LENGTH]) for key, value in flat.items()]
    for start in range(0, len(texts), 100):  # MLflow takes 100 parameters at a time
        mlflow.log_params(dict(texts[start : start + 100]), run_id=run_id)


def _log_metrics(run_id: str, values: Sequence[tuple[str, float, int]]) -> None:
    import mlflow
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in values]
    for start in range(0, len(metrics), 1000):  # MLflow takes 1,000 metrics at a time
        mlflow.MlflowClient().log_batch(run_id, metrics=metrics[start : start + 1000])


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    answer = [
        ColSpec(DataType.string, "user"),
        ColSpec(DataType.long, "rank"),
        ColSpec(DataType.string, "item"),
        ColSpec(DataType.float, "score"),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "user")]),
        outputs=Schema(answer),
        params=ParamSchema([ParamSpec("k", DataType.long, 20)]),
    )


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
