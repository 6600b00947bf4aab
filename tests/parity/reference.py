"""What MMRec's own code computes, as numbers in a file that the tests hold ours against.

    SCALE_MMREC=CHECKOUT python tests/parity/reference.py MODEL [--out tests/golden] [--step-only]

MODEL is a name of ours, such as `freedom`; the file is `mmrec-MODEL.json`. It holds, with the commit, versions, data
and settings behind them:

- `step`: from fixed weights, the loss of one batch, its gradients, and the scores of some users.
- `training`: by seed, mean loss of every epoch's steps and validation Recall@20 and NDCG@20 after it.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from tests.benchmarks import mmrec
from tests.parity import cases, data, golden
from tests.parity.cases import CASES, Case

SCORED = 10  # users whose scores are kept: as many, evenly spaced


def step(case: Case, folder: Path) -> dict[str, Any]:
    """One batch's loss and gradients, and scores, from fixed weights."""
    made = data.step_data(case.twins)
    mmrec.write_dataset(folder, made)
    triplets = data.triplets(made.train, case.distinct)
    settings = cases.peer_settings(case, triplets.shape[1])
    model = mmrec.MMRec(case.peer, folder, **settings).model
    own = {name: weight for name, weight in model.named_parameters() if name not in cases.FEATURES}
    shapes = {name: list(weight.shape) for name, weight in own.items()}
    fixed = cases.peer_weights(case, shapes)
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(torch.from_numpy(fixed[name])).requires_grad_(name not in case.constant)
    if case.peer == "SLMRec":
        model.f = torch.nn.Identity()  # a sigmoid on its scores
    users = np.linspace(0, made.user_count, SCORED, endpoint=False, dtype=np.int64)
    with patch("torch.nn.functional.gumbel_softmax", _without_noise):  # LGMRec, while evaluating too
        model.pre_epoch_processing()
        loss = model.calculate_loss(torch.from_numpy(triplets))
        loss.backward()
        model.eval()
        scores = model.full_sort_predict([torch.from_numpy(users)]).detach()
    return {"data": golden.description(made), "settings": settings, **golden.step(own, loss, users, scores)}


def training(case: Case, folder: Path) -> dict[str, Any]:
    """Losses and validation metrics by seed and epoch."""
    made = data.training_data()
    mmrec.write_dataset(folder, made)
    settings = cases.peer_settings(case)
    seeds = {}
    for seed in cases.SEEDS:
        peer = mmrec.MMRec(case.peer, folder, seed=seed, **settings)
        found: dict[str, list[float]] = {"loss": [], "recall_at_20": [], "ndcg_at_20": []}
        for _ in range(cases.EPOCHS):
            found["loss"].append(golden.plain(torch.tensor(peer.epoch() / peer.steps)))
            for name, value in peer.evaluate().items():
                found[name.replace("@", "_at_")].append(value)
        seeds[str(seed)] = found
    return {"data": golden.description(made), "settings": settings, "epochs": cases.EPOCHS, "seeds": seeds}


def _without_noise(logits: torch.Tensor, tau: float, dim: int, hard: bool) -> torch.Tensor:
    return (logits / tau).softmax(dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CASES)
    parser.add_argument("--out", type=Path, default=golden.FOLDER)
    parser.add_argument("--step-only", action="store_true", help="without training, in seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"step": step} if arguments.step_only else {"step": step, "training": training}
    case, found = CASES[arguments.model], {}
    for name, part in parts.items():
        with TemporaryDirectory() as folder:
            found[name] = part(case, Path(folder))
    golden.write(
        arguments.out / f"mmrec-{arguments.model}.json",
        f"{case.peer} of MMRec, https://github.com/enoche/MMRec",
        mmrec.revision(),
        f"SCALE_MMREC=CHECKOUT python tests/parity/reference.py {arguments.model}",
        found,
    )


if __name__ == "__main__":
    main()
