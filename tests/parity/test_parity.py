"""Baselines beside MMRec's code: one step from the same weights, and validation metrics of trainings.

MMRec's numbers lie in `tests/golden`, written by `tests/parity/reference.py`. In the one step nothing is drawn, so
loss, gradients and scores are the same but for rounding; what is drawn, and what MMRec trains along and we do not, is
left to the trainings.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from model import kernels
from model.base import Batch, Recommender
from model.config import Kernels, TrainingConfig
from model.registry import load
from model.training import EpochRecord, train
from tests.parity import cases, data, golden
from tests.parity.cases import CASES

FOLDER = Path(__file__).resolve().parent
METRICS = ("recall_at_20", "ndcg_at_20")
STALE = "made data or settings have changed: run tests/parity/reference.py again for every model"
every_case = pytest.mark.parametrize("name", CASES)


def check(stored: dict[str, Any], made: data.RecData, settings: dict[str, Any]) -> None:
    """What is stored belongs to today's data and settings."""
    assert stored["data"]["fingerprint"] == data.fingerprint(made), STALE
    assert stored["settings"] == settings, STALE


def build(name: str, made: data.RecData, seed: int = 0, **settings: Any) -> Recommender:
    kind = load(name)
    return kind(kind.Config(**settings), made, torch.Generator().manual_seed(seed))


@every_case
@pytest.mark.parametrize("form", ["fast", "reference"])
def test_one_step_is_that_of_mmrec(name: str, form: Kernels) -> None:
    case, stored = CASES[name], golden.read(f"mmrec-{name}")["step"]
    made = data.step_data(case.twins)
    batch = Batch(*torch.from_numpy(data.triplets(made.train, case.distinct)))
    check(stored, made, cases.peer_settings(case, len(batch.users)))
    model = build(name, made, embedding_size=cases.STEP_SIZE, **{**case.ours, **case.step_ours})
    weights = case.weights(cases.peer_weights(case, stored["weights"]))
    gradients = case.weights(golden.gradients(stored))
    model.train(not case.quiet)
    with kernels.use(form):
        golden.assert_same_step(model, batch, weights, gradients, stored, factor=len(batch.users) if case.summed else 1)


def trained(name: str, made: data.RecData, seed: int) -> dict[str, list[float]]:
    """By epoch, as MMRec's are stored: mean loss of the steps, in its terms, and validation metrics."""
    case = CASES[name]
    config = TrainingConfig(
        epochs=cases.EPOCHS,
        batch_size=data.BATCH,
        learning_rate=cases.RATE,
        top_k=(20,),
        seed=seed,
        device="cpu",
        **case.training,
    )
    history: list[EpochRecord] = []
    model = build(name, made, seed, embedding_size=cases.SIZE, **case.ours)
    train(model, made, config, on_epoch=history.append)
    factor = data.BATCH if case.summed else 1
    losses = [record.losses["total"] - record.losses.get(case.unseen or "", 0.0) for record in history]
    metrics = {metric: [record.validation[metric] for record in history] for metric in METRICS}
    return {"loss": [factor * loss for loss in losses], **metrics}


def agree(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether the means of two samples, each give or take two standard deviations, overlap."""
    return abs(fmean(ours) - fmean(theirs)) <= 2 * (stdev(ours) + stdev(theirs))


@pytest.mark.slow
@every_case
def test_training_reaches_what_mmrec_reaches(name: str) -> None:
    stored, made = golden.read(f"mmrec-{name}")["training"], data.training_data()
    check(stored, made, cases.peer_settings(CASES[name]))
    assert stored["epochs"] == cases.EPOCHS, STALE
    ours, theirs = [trained(name, made, seed) for seed in cases.SEEDS], list(stored["seeds"].values())
    assert len(ours) == len(theirs)
    for metric in METRICS:
        best = [[max(run[metric]) for run in runs] for runs in (ours, theirs)]
        assert agree(*best), f"{metric}: {best[0]} here, {best[1]} there"
    if CASES[name].losses:
        means = [[fmean(run["loss"]) for run in runs] for runs in (ours, theirs)]
        assert agree(*means), f"loss: {means[0]} here, {means[1]} there"


@pytest.mark.slow
@every_case
def test_mmrec_still_says_what_is_stored(name: str, tmp_path: Path) -> None:
    checkout = os.environ.get("SCALE_MMREC")
    if not checkout or not (Path(checkout) / ".git").exists():
        pytest.skip("set SCALE_MMREC to the folder of a clone of https://github.com/enoche/MMRec")
    command = [sys.executable, str(FOLDER / "reference.py"), name, "--out", str(tmp_path), "--step-only"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    again, stored = golden.read(f"mmrec-{name}", tmp_path)["step"], golden.read(f"mmrec-{name}")["step"]
    golden.assert_same_reference(again, stored)
