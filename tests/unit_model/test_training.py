import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from model import training
from model.base import Batch, DataError, RecData, Recommender, SemanticGraphs
from model.config import ModelConfig, TrainingConfig
from model.metrics import Evaluation
from model.registry import MODELS, load
from model.training import EpochRecord, TrainingError, TrainingResult, train

CONFIG = TrainingConfig(
    epochs=6, patience=6, batch_size=64, learning_rate=0.01, top_k=(2, 5), selection_metric="ndcg_at_5",
    checkpoint_every=4, device="cpu",
)  # fmt: skip


class Killed(Exception):
    pass


class Scripted(Recommender):
    """A model whose loss is whatever the test says; the weight is the number of the epoch."""

    Config = ModelConfig
    needs = frozenset({"interactions"})
    script: Callable[[int], float] = staticmethod(lambda epoch: float(epoch))

    def __init__(self, config: ModelConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def before_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def embed(self) -> tuple[Tensor, Tensor]:
        return torch.full((self.user_count, 1), float(self.epoch)), torch.ones(self.item_count, 1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"fit": 0 * self.weight.sum() + self.script(int(self.epoch)), "other": 0 * self.weight.sum()}


def scripted(data: RecData, script: Callable[[int], float]) -> Scripted:
    model = Scripted(ModelConfig(), data, torch.Generator())
    model.script = script
    return model


def random_data(users: int, items: int) -> RecData:
    rng = np.random.default_rng(0)

    def some(rows: int, columns: int, per_row: int) -> csr_array:
        chosen = rng.random((rows, columns)).argpartition(per_row, axis=1)[:, :per_row]
        graph = csr_array(
            (np.ones(rows * per_row, dtype=np.float32), (np.arange(rows).repeat(per_row), chosen.ravel())),
            shape=(rows, columns),
        )
        graph.sort_indices()
        return graph

    supports = some(users, users, 5), some(items, items, 5), some(users, items, 5)
    semantic = SemanticGraphs(some(users + items, users + items, 10), *supports)
    splits = [some(users, items, per_row) for per_row in (6, 1, 1)]
    text, user_text, visual = (
        rng.standard_normal((rows, width), dtype=np.float32) for rows, width in ((items, 24), (users, 24), (items, 40))
    )
    return RecData("random", *splits, text=text, user_text=user_text, visual=visual, semantic=semantic)


def run(name: str, data: RecData, **arguments: Any) -> TrainingResult:
    model_class = load(name)
    model = model_class(model_class.Config(embedding_size=8), data, torch.Generator().manual_seed(0))
    return train(model, data, arguments.pop("config", CONFIG), **arguments)


def killed_after(epoch: int) -> Callable[[EpochRecord], None]:
    def on_epoch(record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise Killed

    return on_epoch


def outcome(result: TrainingResult) -> tuple[Any, ...]:
    """All of a result but its wall times."""
    history = [(record.epoch, record.losses, record.validation) for record in result.history]
    embeddings = result.user_embeddings.tobytes(), result.item_embeddings.tobytes()
    per_user = {name: values.tobytes() for name, values in result.test.per_user.items()}
    return history, result.best_epoch, result.stopped_by, result.validation, per_user, embeddings


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("epoch", [1, 4, 5, 6])
def test_a_killed_run_started_again_gives_the_same_result(
    name: str, epoch: int, checkerboard: RecData, tmp_path: Path
) -> None:
    path = tmp_path / "run.safetensors"
    whole = run(name, checkerboard)
    with pytest.raises(Killed):
        run(name, checkerboard, on_epoch=killed_after(epoch), checkpoint=path)
    assert path.exists() == (epoch >= CONFIG.checkpoint_every)
    seen: list[int] = []
    resumed = run(name, checkerboard, on_epoch=lambda record: seen.append(record.epoch), checkpoint=path)
    assert outcome(resumed) == outcome(whole)
    assert seen == list(range(1, len(whole.history) + 1))
    assert list(tmp_path.iterdir()) == [path]  # nothing half-written beside it; the caller removes it
    again = run(name, checkerboard, checkpoint=path)
    assert outcome(again) == outcome(whole)
    assert again.history == resumed.history  # wall times too: a finished run is not trained again


@pytest.mark.parametrize("change", ["fingerprint", "settings", "cut off", "bit"])
def test_a_checkpoint_of_another_run_is_not_used(
    change: str, checkerboard: RecData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        run("bpr", checkerboard, on_epoch=killed_after(4), checkpoint=path, fingerprint="a")
    config = CONFIG.model_copy(update={"learning_rate": 0.02}) if change == "settings" else CONFIG
    whole = path.read_bytes()
    if change == "cut off":
        path.write_bytes(whole[:200])
    if change == "bit":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 64]) + whole[-8:])
    fingerprint = "b" if change == "fingerprint" else "a"
    resumed = run("bpr", checkerboard, config=config, checkpoint=path, fingerprint=fingerprint)
    assert outcome(resumed) == outcome(run("bpr", checkerboard, config=config))
    assert "run.safetensors" in caplog.text
    assert ("cannot be read" if change in ("cut off", "bit") else "other data or settings") in caplog.text


@pytest.mark.parametrize(("threads", "expected"), [(2, 2), (None, 1)])
def test_thread_count_is_set_and_put_back(threads: int | None, expected: int, checkerboard: RecData) -> None:
    during: list[int] = []
    torch.set_num_threads(3)
    config = CONFIG.model_copy(update={"threads": threads, "epochs": 1})
    run("lightgcn", checkerboard, config=config, on_epoch=lambda _: during.append(torch.get_num_threads()))
    assert during == [expected]
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_number_of_threads_changes_no_byte(name: str) -> None:
    data = random_data(users=900, items=700)  # large enough for BLAS and torch to share their work out
    config = CONFIG.model_copy(update={"epochs": 2, "batch_size": 2048})
    model_class = load(name)
    outcomes = []
    for threads in (1, 2):
        model = model_class(model_class.Config(**MODELS[name].preset), data, torch.Generator().manual_seed(0))
        outcomes.append(outcome(train(model, data, config.model_copy(update={"threads": threads}))))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("values", "best", "length", "reason"), [
    ([0.1, 0.3, 0.2, 0.3, 0.1, 0.9], 2, 5, "patience"),  # an equal value is no improvement
    ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 6, 6, "epochs"),
])  # fmt: skip
def test_early_stopping_and_a_single_look_at_the_test_split(
    values: list[float], best: int, length: int, reason: str, checkerboard: RecData, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[str, float]] = []

    def evaluate(scores: Any, train: csr_array, held_out: csr_array, *_: Any) -> Evaluation:
        split = "test" if held_out is checkerboard.test else "valid"
        looks.append((split, scores(torch.tensor([0])).max().item()))  # the scripted score is the epoch
        value = values[len(looks) - 1] if split == "valid" else 0.5
        return Evaluation(np.array([0]), {"ndcg_at_5": np.array([value])})

    monkeypatch.setattr(training, "evaluate", evaluate)
    config = CONFIG.model_copy(update={"patience": 3})
    result = train(scripted(checkerboard, lambda epoch: 1 / epoch), checkerboard, config)
    assert (result.best_epoch, len(result.history), result.stopped_by) == (best, length, reason)
    assert looks == [("valid", epoch) for epoch in range(1, length + 1)] + [("test", best)]


def test_evaluations_may_be_rarer_than_epochs(checkerboard: RecData) -> None:
    result = run("bpr", checkerboard, config=CONFIG.model_copy(update={"evaluate_every": 4}))
    assert [record.epoch for record in result.history if record.validation] == [4, 6]
    assert result.best_epoch in (4, 6)


@pytest.mark.parametrize("device", ["gpu", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_named(device: str, checkerboard: RecData) -> None:
    config = CONFIG.model_copy(update={"device": device})
    with pytest.raises(TrainingError, match=f"^training.device = '{device}' cannot be used: .*; choose auto or cpu$"):
        train(scripted(checkerboard, float), checkerboard, config)


def test_a_loss_that_is_not_finite_is_named(checkerboard: RecData) -> None:
    model = scripted(checkerboard, lambda epoch: math.nan if epoch == 2 else 1.0)
    with pytest.raises(TrainingError, match=r"epoch 2, step 1: the loss term fit is nan; try a lower learning_rate"):
        train(model, checkerboard, CONFIG)


def test_a_loss_that_does_not_move_is_an_error(checkerboard: RecData) -> None:
    with pytest.raises(TrainingError, match=r"stayed at 0\.75 for 3 epochs"):
        train(scripted(checkerboard, lambda epoch: 0.75), checkerboard, CONFIG)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_an_empty_split_is_an_error(split: str, checkerboard: RecData) -> None:
    data = replace(checkerboard, **{split: csr_array(checkerboard.train.shape, dtype=np.float32)})
    with pytest.raises(DataError, match=f"dataset checkerboard: {split} has no interactions"):
        run("bpr", data)


def test_a_user_who_has_every_item_is_an_error(checkerboard: RecData) -> None:
    bought = checkerboard.train.toarray()
    bought[4] = 1
    with pytest.raises(DataError, match="dataset checkerboard: user 4 has all 22 items in train, so no negative"):
        run("bpr", replace(checkerboard, train=csr_array(bought)))
