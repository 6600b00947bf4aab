"""KAR's adaptor beside its authors' code, from the same weights (`tests/parity/kar.py`)."""

import numpy as np
import torch

from model.baselines.kar import HybridExperts, KARConfig
from tests.parity import golden, kar, rlmrec


def test_the_adaptor_is_that_of_the_authors_code() -> None:
    stored = kar.AUTHORS.stored("adaptor")
    assert stored["data"] == golden.description(rlmrec.dataset())
    config = KARConfig(embedding_size=kar.SIZE, hidden_size=kar.HIDDEN, shared_experts=kar.SHARED, own_experts=kar.OWN)
    adaptor = HybridExperts(config, rlmrec.WIDTH, torch.Generator())
    own = dict(adaptor.named_parameters())
    golden.set_weights(own, kar.weights(kar.fixed_weights(stored["weights"])))
    outputs = adaptor(*kar.texts())
    np.testing.assert_allclose(outputs.detach(), stored["outputs"], rtol=1e-5, atol=1e-6)
    loss = kar.mixture(outputs)
    loss.backward()
    golden.assert_same_descent(own, loss, kar.weights(golden.gradients(stored)), stored)
