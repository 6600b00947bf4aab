"""Baselines beside MMRec's code: one step from the same weights, and validation metrics of trainings.

MMRec's numbers lie in `tests/golden`, written by `tests/parity/reference.py`. In the one step nothing is drawn, so loss,
gradients and scores are the same but for rounding; what is drawn, and what MMRec trains along and we do not, is left
to the trainings, whose seeds scatter alike.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from model import kernels
from model.base import Batch, Recommender
from model.config import Kernels, TrainingConfig
from model.registry import load
from model.training import EpochRecord, train
from tests.parity import cases, data
from tests.parity.cases import CASES

FOLDER = Path(__file__).resolve().parent
every_case = pytest.mark.parametrize("name", CASES)


def golden(name: str, folder: Path = FOLDER.parent / "golden") -> dict[str, Any]:
    return json.loads((folder / f"mmrec-{name}.json").read_text())


def build(name: str, made: data.RecData, seed: int = 0, **settings: Any) -> Recommender:
    kind = load(name)
    return kind(kind.Config(**settings), made, torch.Generator().manual_seed(seed))


@every_case
@pytest.mark.parametrize("form", ["fast", "reference"])
def test_one_step_is_that_of_mmrec(name: str, form: Kernels) -> None:
    case, stored = CASES[name], golden(name)["step"]
    made = data.step_data(case.twins)
    assert data.fingerprint(made) == stored["data"]["fingerprint"], "made data has changed: run reference.py again"
    model = build(name, made, embedding_size=cases.STEP_SIZE, **{**case.ours, **case.step_ours})
    weights = case.weights(cases.peer_weights(case, stored["weights"]))
    gradients = case.weights({part: np.array(values) for part, values in stored["gradients"].items()})
    own = dict(model.named_parameters())
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for part, weight in own.items():
            assert weight.shape == weights[part].shape
            weight.copy_(torch.from_numpy(weights[part].copy()))
    batch = Batch(*torch.from_numpy(data.triplets(made.train, case.distinct)))
    model.train(not case.quiet)
    with kernels.use(form):
        loss = torch.stack(list(model.loss(batch).values())).sum() * (len(batch.users) if case.summed else 1)
        loss.backward()
        model.eval()
        scores = model.scores(torch.tensor(stored["scored_users"]))
    np.testing.assert_allclose(loss.item(), stored["loss"], rtol=1e-6)
    np.testing.assert_allclose(scores.detach(), stored["scores"], rtol=1e-5, atol=1e-6)
    rounding = 1e-6 * max(np.abs(values).max() for values in gradients.values())
    for part, weight in own.items():
        assert np.abs(gradients[part]).max() > 100 * rounding, part
        np.testing.assert_allclose(weight.grad, gradients[part], rtol=1e-5, atol=rounding, err_msg=part)


@pytest.mark.slow
@every_case
def test_training_reaches_what_mmrec_reaches(name: str) -> None:
    case, stored = CASES[name], golden(name)["training"]
    made = data.training_data()
    assert data.fingerprint(made) == stored["data"]["fingerprint"], "made data has changed: run reference.py again"
    found = {}
    for seed in map(int, stored["seeds"]):
        history: list[EpochRecord] = []
        settings = {"learning_rate": cases.RATE, "batch_size": cases.BATCH, "top_k": (20,), **case.training}
        config = TrainingConfig(epochs=stored["epochs"], patience=stored["epochs"], seed=seed, device="cpu", **settings)
        train(build(name, made, seed, embedding_size=cases.SIZE, **case.ours), made, config, on_epoch=history.append)
        found[seed] = {
            "loss": [record.losses["total"] for record in history],
            **{
                metric: [(record.validation or {})[metric] for record in history]
                for metric in ("recall_at_20", "ndcg_at_20")
            },
        }
    for metric in ("recall_at_20", "ndcg_at_20"):
        ours, theirs = ([max(run[metric]) for run in runs.values()] for runs in (found, stored["seeds"]))
        print(metric, ours, theirs)
        distance = abs(fmean(ours) - fmean(theirs))
        assert distance <= 2 * stdev(ours) + 2 * stdev(theirs), f"{metric}: {ours} here, {theirs} there"


@pytest.mark.slow
@every_case
def test_mmrec_still_says_what_is_stored(name: str, tmp_path: Path) -> None:
    checkout = os.environ.get("SCALE_MMREC")
    if not checkout or not (Path(checkout) / ".git").exists():
        pytest.skip("set SCALE_MMREC to the folder of a clone of https://github.com/enoche/MMRec")
    command = [sys.executable, str(FOLDER / "reference.py"), name, "--out", str(tmp_path), "--step-only"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    again, stored = golden(name, tmp_path)["step"], golden(name)["step"]
    for part in ("data", "settings", "weights", "scored_users"):
        assert again[part] == stored[part]
    np.testing.assert_allclose(again["loss"], stored["loss"], rtol=1e-6)
    np.testing.assert_allclose(again["scores"], stored["scores"], rtol=1e-5, atol=1e-6)
