"""What a run leaves for MLflow at its end: packed into a folder, and delivered at once or, where MLflow does not
answer, by a later command.

A training must not be lost to a server that went away in the middle of it.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from assets import home
from pipeline.files import atomic_folder

logger = logging.getLogger(__name__)

CONTENT = "content.json"
ARTIFACTS = "artifacts"
MODEL = "model"
MODEL_CONTENT = "model.json"
METRICS_AT_A_TIME = 1000  # MLflow's own limit


class Measured(NamedTuple):
    """One value of a metric: its name, the value, milliseconds since 1970, and the epoch, or 0 for a whole run."""

    name: str
    value: float
    time: int
    step: int


class _Content(NamedTuple):
    """What a parcel says: the store that it is for, without a password, its run, and the model's name and users."""

    store: str
    run_id: str
    status: str
    metrics: list[Measured]
    model: tuple[str, list[str]] | None


def folder() -> Path:
    """Where parcels wait."""
    return home.home() / "mlflow" / "undelivered"


@contextmanager
def parcel(run_id: str, status: str, metrics: Sequence[Measured]) -> Iterator[Path]:
    """Pack what ends a run, and deliver it.

    Yields a folder: what is put under its `artifacts` goes along, and what `add_model` puts there.
    """
    packed = folder() / run_id
    with atomic_folder(packed) as packing:
        (packing / ARTIFACTS).mkdir()
        yield packing
        content = {"store": home.shown(home.tracking_uri()), "run_id": run_id, "status": status, "metrics": metrics}
        (packing / CONTENT).write_text(json.dumps(content))
    if not _delivered(packed):
        logger.warning(
            "MLflow at %s does not answer: what run %s has to say waits in %s, and goes with the next command that "
            "reaches it",
            home.shown(home.tracking_uri()),
            run_id,
            packed,
        )


def add_model(packing: Path, name: str, users: list[str]) -> Path:
    """Have a model logged with the run, with raw ids of users as an example; gives the folder for its files."""
    place = packing / MODEL
    place.mkdir()
    (packing / MODEL_CONTENT).write_text(json.dumps({"name": name, "users": users}))
    return place


def deliver_waiting() -> None:
    """Deliver what could not be delivered before; MLflow has just answered."""
    for packed in sorted(folder().glob("[!.]*")) if folder().exists() else ():
        if _delivered(packed):
            logger.warning("run %s: what had waited for MLflow has been delivered", packed.name)


def _delivered(packed: Path) -> bool:
    """Deliver one parcel; False where MLflow does not take it, it is another's or damaged, or another process is at it.

    A damaged one is set aside, so that it stands in no later command's way.
    """
    from mlflow.exceptions import MlflowException

    lock = packed.with_name(f".{packed.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                content = _read(packed)
            except (ValueError, LookupError, TypeError) as error:
                _set_aside(packed, error)
                return False
            if content.store != home.shown(home.tracking_uri()):
                return False
            _deliver(packed, content)
            shutil.rmtree(packed)
    except (MlflowException, OSError, Timeout):
        return False
    lock.unlink(missing_ok=True)
    return True


def _read(packed: Path) -> _Content:
    """What a parcel says; ValueError, LookupError or TypeError where it is damaged."""
    said = json.loads((packed / CONTENT).read_bytes())
    model = packed / MODEL_CONTENT
    given = json.loads(model.read_bytes()) if model.exists() else None
    return _Content(
        store=home.shown(said["store"]),
        run_id=said["run_id"],
        status=said["status"],
        metrics=[Measured(*each) for each in said["metrics"]],
        model=given and (given["name"], given["users"]),
    )


def _set_aside(packed: Path, error: Exception) -> None:
    place = home.home() / "mlflow" / "damaged" / packed.name
    place.parent.mkdir(exist_ok=True)
    packed.rename(place)
    logger.warning(
        "run %s: what waits for MLflow cannot be read (%s) and is set aside in %s; what the run made is stored all "
        "the same. Delete that folder, or mend it and move it back into %s",
        packed.name,
        error,
        place,
        folder(),
    )


def _deliver(packed: Path, content: _Content) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    log_metrics(content.run_id, content.metrics)
    if any((packed / ARTIFACTS).iterdir()):
        client.log_artifacts(content.run_id, str(packed / ARTIFACTS))
    if content.model is not None:
        with mlflow.start_run(run_id=content.run_id):
            _log_model(packed / MODEL, *content.model)
    client.set_terminated(content.run_id, status=content.status)


def log_metrics(run_id: str, metrics: Sequence[Measured]) -> None:
    """Log metrics of a run now; the same ones logged again change nothing."""
    import mlflow
    from mlflow.entities import Metric

    for start in range(0, len(metrics), METRICS_AT_A_TIME):
        some = [Metric(*each) for each in metrics[start : start + METRICS_AT_A_TIME]]
        mlflow.MlflowClient().log_batch(run_id, metrics=some)


def _log_model(place: Path, name: str, users: list[str]) -> None:
    import mlflow.pyfunc
    import pandas as pd

    mlflow.pyfunc.log_model(
        name=name,
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={file.name: str(file) for file in sorted(place.iterdir())},
        signature=_signature(),
        input_example=(pd.DataFrame({"user": users}), {"k": 5}),
        pip_requirements=["mlflow", "numpy", "pandas", "pyarrow", "safetensors"],
    )


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
