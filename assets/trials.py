"""Trainings for evidence: a model with some settings and a seed, trained once, and its metrics kept.

A trial is named by everything that its result depends on: the data versions of what it reads, its settings, its code.
So one that was done is never done again, whichever table asks for it, and an edit costs the trials that it reaches.
"""

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from assets import home, tracking, workers
from assets.model_groups import group_of
from assets.settings import Dataset, dataset, training_config
from assets.storage import read
from assets.training import build, evaluation_of, inputs_of, logged_settings, rec_data
from assets.variants import Stored
from assets.versions import model_content, modules_version
from pipeline import fingerprint, parquet
from pipeline.files import REMEDY, StoredFileError, atomic_path
from pipeline.settings import ComputeSettings

if TYPE_CHECKING:
    from model.base import RecData
    from model.metrics import Evaluation

logger = logging.getLogger(__name__)
TOP = 20  # items of a user's list that are kept
CHECKSUM = "checksum"  # of the rest of a record


@dataclass(frozen=True)
class Trial:
    """One training.

    Parameters
    ----------
    label
        What it is in words: a model's title, or a variant's name.
    overrides
        Settings on top of the dataset's, by dotted key; the seed among them.
    inputs
        What the model reads, by asset.
    """

    dataset: str
    model: str
    label: str
    overrides: Mapping[str, Any]
    inputs: Mapping[str, Stored]

    @cached_property
    def settings(self) -> Dataset:
        return dataset(self.dataset, self.overrides)

    @property
    def seed(self) -> int:
        return training_config(self.model, self.settings).seed

    @cached_property
    def identity(self) -> str:
        versions = {name: result.version for name, result in self.inputs.items()}
        return fingerprint.settings_version(
            [versions, model_content(self.model, self.settings), modules_version("model.training")]
        )

    @property
    def folder(self) -> Path:
        return _folder(self.dataset, self.identity)


@dataclass(frozen=True)
class Outcome:
    """What a trial left.

    Attributes
    ----------
    record
        `seed`, `validation` and `test` (metric -> mean), `best_epoch`, `epochs`, `seconds` of training, `run_id`, and
        `peak_memory_gb` of the process (10^9 bytes).
    """

    trial: Trial
    record: Mapping[str, Any]

    @property
    def users(self) -> pl.DataFrame:
        """user i32, metrics f64, `top` list[i32]: the best items, best first, of each user with a test item."""
        return parquet.read_table(self.trial.folder / "users.parquet")

    @property
    def items(self) -> np.ndarray:
        """Final item embeddings, (N, d) float32."""
        return trial_items(self.trial.dataset, self.trial.identity)

    @property
    def evaluation(self) -> "Evaluation":
        return evaluation_of(self.users)


def trial_items(name: str, identity: str) -> np.ndarray:
    """Final item embeddings of a trial that was done, (N, d) float32."""
    return parquet.read_array(_folder(name, identity) / "items.parquet")


def trial_record(name: str, identity: str) -> dict[str, Any]:
    """`Outcome.record` of a trial that was done; StoredFileError where its file is damaged."""
    return read_record(_record(name, identity))


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Put on record what a trial found, with a checksum of it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**record, CHECKSUM: _checksum(record)}, indent=1))


def read_record(path: Path) -> dict[str, Any]:
    """What a trial left on record; StoredFileError, with the file's name, where it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoredFileError(f"{path}: is no record of a trial ({error}); {REMEDY}") from None
    if not isinstance(found, dict):
        raise StoredFileError(f"{path}: is no record of a trial (a JSON {type(found).__name__}); {REMEDY}")
    if found.pop(CHECKSUM, None) not in (None, _checksum(found)):  # None: written by an earlier release
        raise StoredFileError(f"{path}: is no record of a trial (its checksum is wrong); {REMEDY}")
    return found


def _checksum(record: Mapping[str, Any]) -> str:
    """CRC-32 of a record, hexadecimal."""
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def seeds_of(
    name: str, model: str, label: str, overrides: Mapping[str, Any], inputs: Mapping[str, Stored], seeds: int
) -> list[Trial]:
    """Trials that differ in the seed alone: the one that is set, and those after it."""
    first = training_config(model, dataset(name, overrides)).seed
    key = f"models.{model}.training.seed"
    needed = {asset: inputs[asset] for asset in inputs_of(group_of(model))}
    return [Trial(name, model, label, {**overrides, key: first + extra}, needed) for extra in range(seeds)]


def run(trials: Sequence[Trial], parallel: int, progress: Callable[..., None]) -> list[Outcome]:
    """Do those trials that have not been done, `parallel` at a time; outcomes in the order given.

    Parameters
    ----------
    progress
        Called with (done, total, detail) whenever a trial ends.

    Raises
    ------
    TrainingError, DataError
        A training that cannot give a result; those that were done are kept.
    """
    asked = {trial.identity: trial for trial in trials}
    todo = {identity: trial for identity, trial in asked.items() if not _is_done(trial)}
    done = len(asked) - len(todo)
    total = done + len(todo)
    if todo:
        tracking.connect(_experiment(trials[0].dataset))  # by one process, before several ask for it
    progress(done, total, f"{done} were there already" if done else "")

    def advance(trial: Trial) -> None:
        nonlocal done
        done += 1
        progress(done, total, f"{trial.label}, seed {trial.seed}")

    where = trials[0].settings.compute if todo else ComputeSettings(kind="local")
    threads = workers.threads(parallel, where)
    if parallel == 1 and where.kind == "local":
        for trial in todo.values():
            _train(trial, threads)
            advance(trial)
    elif todo:
        device = training_config(trials[0].model, trials[0].settings).device
        pool = _pool(parallel, where, device, home.home())
        waiting: dict[Future[None], Trial] = {}
        try:
            with workers.given_up_when_stopped(pool):  # they may train before the last is handed over
                for trial in todo.values():
                    waiting[pool.submit(_train, trial, threads)] = trial
                for finished in as_completed(waiting):
                    finished.result()
                    advance(waiting[finished])
        except Exception:  # what is told to stop leaves them to the pool, which ends
            for each in waiting:
                each.cancel()
            raise
    return [Outcome(trial, trial_record(trial.dataset, trial.identity)) for trial in trials]


def _is_done(trial: Trial) -> bool:
    """Whether all that a trial leaves is there and whole; what is damaged is named, and the trial is done again."""
    if not _record(trial.dataset, trial.identity).exists():
        return False
    try:
        trial_record(trial.dataset, trial.identity)
        for name in ("users", "items"):
            parquet.verify(trial.folder / f"{name}.parquet")
    except (StoredFileError, FileNotFoundError) as error:
        logger.warning("%s, seed %d, is trained again: %s", trial.label, trial.seed, error)
        return False
    return True


@cache
def _pool(parallel: int, where: ComputeSettings, device: str, _home: Path) -> Executor:
    """Processes for all trials of this process under one home folder: each takes seconds to start."""
    return workers.pool(parallel, where, device)


def _folder(name: str, identity: str) -> Path:
    return home.home() / "trials" / name / identity


def _record(name: str, identity: str) -> Path:
    """Written last: where it is, the trial is whole."""
    return _folder(name, identity) / "trial.json"


def _experiment(name: str) -> str:
    return f"{name} evidence"


def _train(trial: Trial, threads: int | None) -> None:
    """Train, measure test once, keep metrics, lists and item embeddings; the record comes last."""
    from model.metrics import recommend
    from model.training import train

    settings = trial.settings
    config = workers.share(training_config(trial.model, settings), threads)
    data = _data(trial.dataset, trial.model, tuple((name, each.path) for name, each in trial.inputs.items()))
    model = build(trial.model, data, settings)
    checkpoint = home.home() / "checkpoints" / trial.dataset / f"trial-{trial.identity}.safetensors"
    tags = {"dataset": trial.dataset, "model": trial.model, "variant": trial.label, "trial": trial.identity}
    logged = {**logged_settings(settings, model, trial.model), "training": config.model_dump(mode="json")}
    name = f"{trial.label} seed {config.seed}"
    peak = workers.peak_memory()
    with tracking.brief_run(tracking.connect(_experiment(trial.dataset)), name, logged, tags) as run:

        def on_epoch(record: Any) -> None:
            run.log({f"loss_{term}": value for term, value in record.losses.items()}, record.epoch)
            run.log({f"valid_{metric}": value for metric, value in (record.validation or {}).items()}, record.epoch)

        result = train(model, data, config, on_epoch=on_epoch, checkpoint=checkpoint, fingerprint=trial.identity)
        seconds = sum(record.seconds for record in result.history)
        run.log({f"test_{metric}": value for metric, value in result.test.means.items()})
        memory = peak()
        cost = {"best_epoch": result.best_epoch, "training_seconds": seconds, "process_peak_memory_gb": memory}
        run.log(cost)
    top = recommend(result.user_embeddings, result.item_embeddings, data.train, TOP)[0][result.test.users]
    users = pl.DataFrame(
        {"user": result.test.users.astype(np.int32), **result.test.per_user, "top": top.astype(np.int32)},
        schema_overrides={"top": pl.List(pl.Int32)},
    )
    parquet.write_table(users, trial.folder / "users.parquet")
    parquet.write_array(result.item_embeddings, trial.folder / "items.parquet")
    record = {
        "model": trial.model,
        "label": trial.label,
        "seed": config.seed,
        "validation": result.validation,
        "test": result.test.means,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "stopped_by": result.stopped_by,
        "seconds": seconds,
        "peak_memory_gb": memory,
        "run_id": run.run_id,
    }
    write_record(record, _record(trial.dataset, trial.identity))
    checkpoint.unlink(missing_ok=True)


@lru_cache(maxsize=4)  # seeds of one model, and most variants, read the same
def _data(name: str, model: str, paths: tuple[tuple[str, Path], ...]) -> "RecData":
    kinds = inputs_of(group_of(model))
    return rec_data(name, {asset: read(path, kinds[asset]) for asset, path in paths})
