"""Files of golden numbers: how they are written, and how one step of ours is held against one of them."""

import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.base import Batch, RecData, Recommender
from tests.parity import data

FOLDER = Path(__file__).resolve().parents[1] / "golden"
PACKAGES = ("torch", "numpy", "scipy", "pandas")
GOLDEN_RATIO = 0.6180339887498949
EPOCHS = 20  # of a whole training from fixed weights, of one batch each
RATE = 0.01  # its step size


def write(path: Path, reference: str, commit: str, command: str, parts: Mapping[str, Any]) -> None:
    """A JSON file with where its numbers come from; a row of numbers to a line."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    content = {"reference": reference, "commit": commit, "versions": versions, "command": command, **parts}
    text = re.sub(r"\[[^][]*\]", lambda row: " ".join(row[0].split()), json.dumps(content, indent=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def read(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What `write` wrote to NAME.json."""
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


def plain(numbers: torch.Tensor) -> Any:
    """Numbers of seven figures, nested as the tensor is."""
    rounded = np.array([float(f"{value:.7g}") for value in numbers.flatten().tolist()])
    return rounded.reshape(numbers.shape).tolist()


def description(made: RecData) -> dict[str, Any]:
    """Sizes and fingerprint of a dataset."""
    arrays = {"text": made.text, "image": made.visual, "user_text": made.user_text}
    return {
        "users": made.user_count,
        "items": made.item_count,
        "interactions": [split.nnz for split in (made.train, made.valid, made.test)],
        **{name: array.shape[1] for name, array in arrays.items() if array is not None},
        "fingerprint": data.fingerprint(made),
    }


def fixed_weight(place: int, shape: Sequence[int]) -> np.ndarray:
    """Numbers in [-0.5, 0.5), float64: fractional parts of the golden ratio's multiples by squares."""
    numbers = 1000.0 * place + np.arange(np.prod(shape))
    return (numbers * numbers * GOLDEN_RATIO % 1 - 0.5).reshape(shape)


def fixed_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Of each of some weights, by name, float32."""
    return {name: fixed_weight(place, shape).astype(np.float32) for place, (name, shape) in enumerate(shapes.items())}


def set_weights(own: Mapping[str, torch.Tensor], weights: Mapping[str, np.ndarray]) -> None:
    """Write arrays into the tensors of the same names and shapes."""
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for name, weight in own.items():
            assert weight.shape == weights[name].shape, name
            weight.copy_(torch.from_numpy(weights[name].copy()))


def descent(weights: Mapping[str, torch.Tensor], loss: torch.Tensor) -> dict[str, Any]:
    """A loss as it is stored, and the gradients that it has sent to `weights`."""
    return {
        "weights": {name: list(weight.shape) for name, weight in weights.items()},
        "loss": plain(loss.detach().reshape(())),
        "gradients": {name: plain(weight.grad) for name, weight in weights.items() if weight.grad is not None},
    }


def step(
    weights: Mapping[str, torch.Tensor], loss: torch.Tensor, users: np.ndarray, scores: torch.Tensor
) -> dict[str, Any]:
    """One step as it is stored: `loss` has sent its gradients to `weights`, `scores` are those of `users`."""
    return {**descent(weights, loss), "scored_users": users.tolist(), "scores": plain(scores.detach())}


def losses(optimizer: torch.optim.Optimizer, loss: Callable[[int], torch.Tensor]) -> list[float]:
    """Losses of `EPOCHS` epochs of one step each; `loss` makes that of an epoch, counted from 1."""
    found = []
    for epoch in range(1, EPOCHS + 1):
        optimizer.zero_grad()
        total = loss(epoch)
        total.backward()
        optimizer.step()
        found.append(total.item())
    return found


def gradients(stored: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Those that `descent` stored."""
    return {name: np.array(values) for name, values in stored["gradients"].items()}


def assert_same_descent(
    own: Mapping[str, torch.Tensor], loss: torch.Tensor, gradients: Mapping[str, np.ndarray], stored: Mapping[str, Any]
) -> None:
    """Loss and gradients are the stored ones, but for rounding.

    Parameters
    ----------
    own
        Weights to which `loss` has sent its gradients.
    gradients
        By names of these.
    stored
        What `descent` made.
    """
    np.testing.assert_allclose(loss.item(), stored["loss"], rtol=1e-6)
    rounding = 1e-6 * max(np.abs(values).max() for values in gradients.values())
    for name, weight in own.items():
        assert np.abs(gradients[name]).max() > 100 * rounding, name
        np.testing.assert_allclose(weight.grad, gradients[name], rtol=1e-5, atol=rounding, err_msg=name)


def assert_same_step(
    model: Recommender,
    batch: Batch,
    weights: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    stored: Mapping[str, Any],
    factor: float = 1.0,
) -> None:
    """Loss, gradients and scores of `model` with these weights are the stored ones, but for rounding.

    Parameters
    ----------
    weights, gradients
        By names of `model`'s.
    stored
        What `step` made.
    factor
        Their loss over ours.
    """
    own = dict(model.named_parameters())
    set_weights(own, weights)
    loss = factor * torch.stack(list(model.loss(batch).values())).sum()
    loss.backward()
    assert_same_descent(own, loss, gradients, stored)
    model.eval()
    scores = model.scores(torch.tensor(stored["scored_users"]))
    np.testing.assert_allclose(scores.detach(), stored["scores"], rtol=1e-5, atol=1e-6)


def assert_same_reference(again: Any, stored: Any, place: str = "") -> None:
    """What other code has computed once more is what is stored of it, but for rounding of the numbers in it.

    Parameters
    ----------
    place
        Where in the file both stand, for messages.
    """
    if isinstance(stored, dict):
        assert again.keys() == stored.keys(), place
        for part, values in stored.items():
            assert_same_reference(again[part], values, f"{place}/{part}")
    elif np.asarray(stored).dtype.kind == "f":
        tolerance = 1e-4 if isinstance(stored, list) else 1e-6  # a loss hardly moves
        np.testing.assert_allclose(again, stored, rtol=tolerance, atol=1e-6, err_msg=place)
    else:
        assert again == stored, place
