"""RLMRec on LightGCN beside its authors' code: one step from the same weights (`tests/parity/rlmrec.py`)."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from model import kernels
from model.base import Batch
from model.config import Kernels
from model.registry import load
from tests.parity import golden, rlmrec


@pytest.mark.parametrize("name", rlmrec.VARIANTS)
@pytest.mark.parametrize("form", ["fast", "reference"])
def test_one_step_is_that_of_the_authors_code(name: str, form: Kernels) -> None:
    variant, stored, made = rlmrec.VARIANTS[name], golden.read(f"rlmrec-{name}")["step"], rlmrec.dataset()
    assert stored["data"] == golden.description(made)
    kind = load(f"rlmrec-{name}")
    config = kind.Config(embedding_size=rlmrec.SIZE, layers=rlmrec.LAYERS, l2=0.0, **variant.ours)
    model = kind(config, made, torch.Generator())
    sums = rlmrec.LAYERS + 1  # theirs are such sums, ours are means
    weights = variant.weights(rlmrec.fixed_weights(stored["weights"]), sums)
    gradients = {part: np.array(values) for part, values in stored["gradients"].items()}
    batch = Batch(*torch.from_numpy(rlmrec.triplets(made.train)))
    drawn = torch.from_numpy(rlmrec.MASKED)
    with kernels.use(form), patch("torch.randperm", lambda *_, **__: drawn):
        golden.assert_same_step(model, batch, weights, variant.weights(gradients, 1 / sums), stored)
