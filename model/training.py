"""Training with early stopping; the test split is read once, at the end, with the best epoch's weights."""

import ctypes
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numba
import numpy as np
import torch
from torch import Tensor

from model import kernels
from model.base import Batch, DataError, RecData, Recommender
from model.checkpoint import Checkpoint, load_checkpoint, pack, save_checkpoint, unpack
from model.config import TrainingConfig
from model.metrics import Evaluation, evaluate
from model.optimizer import Adam
from model.sampling import SamplingError, TripletSampler

logger = logging.getLogger(__name__)

# Epochs after which a loss that has not changed at all is taken for a broken model.
SETTLING_EPOCHS = 3
# Training interactions below which a step is too short to be shared between threads: waiting for each other would
# cost more than the work, and on a busy machine many times more.
SMALL = 50_000
# Of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Settings that change how long a run takes or how far it goes, but no epoch's result.
WITHOUT_EFFECT = {"epochs", "threads", "checkpoint_every"}


class TrainingError(RuntimeError):
    """A run that cannot give a result; the message says where it broke and what to try."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Parameters
    ----------
    epoch
        Counted from 1.
    losses
        Mean over steps of every loss term, and of their sum as `total`.
    validation
        Metric name -> mean over users; None in an epoch without evaluation.
    seconds, evaluation_seconds
        Wall time of the training steps, and of the evaluation.
    """

    epoch: int
    losses: dict[str, float]
    validation: dict[str, float] | None
    seconds: float
    evaluation_seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """The best epoch of a run; the model that was trained holds its weights.

    Parameters
    ----------
    history
        Every epoch, in order.
    best_epoch
        The epoch with the best validation metric, the earliest of equals.
    stopped_by
        `patience`, or `epochs` when the limit came first.
    validation
        Validation metrics of the best epoch.
    test
        Test metrics of the best epoch, per user.
    user_embeddings, item_embeddings
        Shapes (M, d) and (N, d), float32.
    """

    history: list[EpochRecord]
    best_epoch: int
    stopped_by: Literal["patience", "epochs"]
    validation: dict[str, float]
    test: Evaluation
    user_embeddings: np.ndarray
    item_embeddings: np.ndarray


def train(
    model: Recommender,
    data: RecData,
    config: TrainingConfig,
    *,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    checkpoint: Path | None = None,
    fingerprint: str = "",
) -> TrainingResult:
    """Train until validation stops improving (ALGORITHM 8), then measure the test split once.

    Parameters
    ----------
    model
        Freshly built on `data`; it is moved to the device and left there with the best weights.
    on_epoch
        Called for every epoch in order, those restored from a checkpoint included.
    checkpoint
        File to write to while training and to go on from. A run that is stopped and started again gives the very
        result of one that was not. It stays after the last epoch, for the caller to remove once the result is safe.
    fingerprint
        Names the data and code behind the run; settings are added to it here. A checkpoint with another one is
        not used.

    Raises
    ------
    DataError
        When a split is empty, or a user has every item.
    TrainingError
        When a loss is not finite, or has not moved after the first epochs.
    """
    with _finished_run(model, data, config, on_epoch, checkpoint, fingerprint) as run:
        return run.result()


def best_validation(
    model: Recommender, data: RecData, config: TrainingConfig, on_epoch: Callable[[EpochRecord], None]
) -> float:
    """Train as `train` does, and give the selection metric of the best epoch: settings are chosen by it, not by test.

    An exception from `on_epoch` ends the training. Errors are those of `train`.
    """
    with _finished_run(model, data, config, on_epoch, None, "") as run:
        return run.best_validation


@contextmanager
def _finished_run(
    model: Recommender,
    data: RecData,
    config: TrainingConfig,
    on_epoch: Callable[[EpochRecord], None] | None,
    checkpoint: Path | None,
    fingerprint: str,
) -> Iterator["_Run"]:
    """All epochs of a run; threads, memory and kernels are the run's until the end."""
    for split in ("valid", "test"):
        if getattr(data, split).nnz == 0:
            raise DataError(f"dataset {data.name}: {split} has no interactions, and training needs them")
    threads = config.threads or (1 if data.train.nnz < SMALL else torch.get_num_threads())
    with _threads(threads), _memory_kept(), kernels.use(config.kernels):
        run = _Run(model, data, config, checkpoint, fingerprint)
        run.restore()
        for record in run.history:
            if on_epoch:
                on_epoch(record)
        while not run.finished:
            record = run.epoch()
            if checkpoint and (record.epoch % config.checkpoint_every == 0 or run.finished):
                run.save()
            if on_epoch:
                on_epoch(record)
        yield run


def resolve_device(device: str) -> torch.device:
    """`auto` -> the GPU where there is one, else the CPU; anything else is taken as torch's own name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # a wrong name, no such device, a torch built without it
        raise TrainingError(f"training.device = {device!r} cannot be used: {error}; choose auto or cpu") from None


class _Run:
    """The state of a run between two epochs."""

    def __init__(
        self, model: Recommender, data: RecData, config: TrainingConfig, path: Path | None, fingerprint: str
    ) -> None:
        self._device = resolve_device(config.device)
        self._model = model.to(self._device)
        self._data = data
        self._config = config
        self._path = path
        settings = config.model_dump_json(exclude=WITHOUT_EFFECT)
        self._fingerprint = f"{fingerprint}|{type(model).__name__}|{model.config.model_dump_json()}|{settings}"
        self._generator = torch.Generator().manual_seed(config.seed)
        try:
            self._sampler = TripletSampler(data.train, config.batch_size)
        except SamplingError as error:
            raise DataError(f"dataset {data.name}: {error}") from error
        self._optimizer = Adam(model.parameters(), fused=config.kernels == "fast")
        # Room for one copy: a new one made beside the last would take it twice.
        self._best_weights = {name: value.clone() for name, value in self._model.weights().items()}
        self.history: list[EpochRecord] = []

    @property
    def _evaluated(self) -> list[EpochRecord]:
        return [record for record in self.history if record.validation is not None]

    @property
    def _best(self) -> EpochRecord:
        return max(self._evaluated, key=lambda record: (record.validation or {})[self._config.selection_metric])

    @property
    def best_validation(self) -> float:
        """Selection metric of the best epoch."""
        return (self._best.validation or {})[self._config.selection_metric]

    @property
    def _out_of_patience(self) -> bool:
        evaluated = self._evaluated
        return bool(evaluated) and len(evaluated) - 1 - evaluated.index(self._best) >= self._config.patience

    @property
    def finished(self) -> bool:
        return len(self.history) >= self._config.epochs or self._out_of_patience

    def epoch(self) -> EpochRecord:
        """One pass over the training interactions and, where it is due, an evaluation."""
        number = len(self.history) + 1
        start = time.perf_counter()
        self._model.train()
        self._model.before_epoch(number)
        learning_rate = self._config.learning_rate * self._config.learning_rate_decay ** (number - 1)
        losses = self._mean_losses(number, *self._steps(learning_rate))
        trained = time.perf_counter()
        due = number % self._config.evaluate_every == 0 or number == self._config.epochs
        validation = self._evaluate("valid").means if due else None
        record = EpochRecord(number, losses, validation, trained - start, time.perf_counter() - trained)
        self.history.append(record)
        self._check_progress()
        if due and self._best is record:
            for name, value in self._model.weights().items():
                self._best_weights[name].copy_(value)
        return record

    def _steps(self, learning_rate: float) -> tuple[list[str], Tensor]:
        """One step for every batch of an epoch: names of the loss terms, and their values (S, terms).

        Values go into one table. Kept one by one they would lie between the large arrays of two steps, and the memory
        of a step could not be taken whole by the next: at Baby's size an epoch of SLMRec grew by 0.7 GB.
        """
        names, values = list[str](), torch.empty(0)
        for number, batch in enumerate(self._sampler.epoch(self._generator)):
            terms = self._step(batch, learning_rate)
            if number == 0:
                names, values = list(terms), torch.empty((self._sampler.batches, len(terms)), device=self._device)
            values[number] = torch.stack(list(terms.values()))
        return names, values

    def _step(self, batch: Batch, learning_rate: float) -> dict[str, Tensor]:
        self._optimizer.zero_grad()
        terms = self._model.loss(batch)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        self._optimizer.step(learning_rate)
        return {name: term.detach() for name, term in {**terms, "total": total}.items()}

    def _mean_losses(self, epoch: int, names: list[str], losses: Tensor) -> dict[str, float]:
        """Means over an epoch's steps (S, terms), read from the device once, so that no step waits for it."""
        values = losses.tolist()
        for number, step in enumerate(values, start=1):
            for name, value in zip(names, step, strict=True):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"epoch {epoch}, step {number}: the loss term {name} is {value}; try a lower learning_rate "
                        f"(now {self._config.learning_rate}) or a higher temperature, and look for NaN in the features"
                    )
        return {
            name: math.fsum(column) / len(values) for name, column in zip(names, zip(*values, strict=True), strict=True)
        }

    def _check_progress(self) -> None:
        if len(self.history) != SETTLING_EPOCHS:
            return
        totals = [record.losses["total"] for record in self.history]
        if max(totals) - min(totals) <= 1e-9 * max(map(abs, totals)):
            raise TrainingError(
                f"the loss stayed at {totals[-1]} for {SETTLING_EPOCHS} epochs: nothing is learned; see whether the "
                f"model's graphs have edges and its learning_rate ({self._config.learning_rate}) is not too small"
            )

    def _evaluate(self, split: Literal["valid", "test"]) -> Evaluation:
        self._model.eval()
        held_out = getattr(self._data, split)
        return evaluate(self._model.scores, self._data.train, held_out, self._config.top_k, self._device)

    def result(self) -> TrainingResult:
        self._model.load_state_dict({**self._model.state_dict(), **self._best_weights})
        test = self._evaluate("test")
        with torch.no_grad():
            users, items = (part.detach().cpu().numpy().copy() for part in self._model.embed())
        best = self._best
        return TrainingResult(
            history=self.history,
            best_epoch=best.epoch,
            stopped_by="patience" if self._out_of_patience else "epochs",
            validation=best.validation or {},
            test=test,
            user_embeddings=users,
            item_embeddings=items,
        )

    def save(self) -> None:
        """Write the checkpoint."""
        assert self._path is not None
        generators = {"batches": self._generator.get_state(), "model": self._model.generator.get_state()}
        tensors = {
            **pack("weights", self._model.state_dict()),
            **pack("best", self._best_weights),
            **pack("optimizer", self._optimizer.state()),
            **pack("generator", generators),
        }
        progress = {"history": [asdict(record) for record in self.history]}
        save_checkpoint(self._path, Checkpoint(tensors, progress), self._fingerprint)

    def restore(self) -> None:
        """Take over the checkpoint's state, where there is one of this very run."""
        found = load_checkpoint(self._path, self._fingerprint) if self._path else None
        if found is None:
            return
        self.history = [EpochRecord(**record) for record in found.progress["history"]]
        self._model.load_state_dict(unpack("weights", found.tensors))
        for name, value in unpack("best", found.tensors).items():
            self._best_weights[name].copy_(value)
        self._optimizer.restore(unpack("optimizer", found.tensors))
        generators = unpack("generator", found.tensors)
        self._generator.set_state(generators["batches"])
        self._model.generator.set_state(generators["model"])
        logger.info("training goes on after epoch %d from %s", len(self.history), self._path)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Hold torch and numba to `count` threads; what was set before comes back."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


@contextmanager
def _memory_kept() -> Iterator[None]:
    """Let glibc keep what is freed: every step takes the same arrays again, and new pages cost a fifth of its time."""
    try:
        glibc = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        yield
        return
    for option, bytes_ in ((M_TRIM_THRESHOLD, 2**30), (M_MMAP_THRESHOLD, 2**25)):  # 2^25: the most that it takes
        glibc(option, bytes_)
    try:
        yield
    finally:
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            glibc(option, 2**17)  # where both begin
        ctypes.CDLL(None).malloc_trim(0)
