"""What the hybrid-expert adaptor of KAR's own code computes, as numbers in a file that the tests hold ours against.

    SCALE_KAR=CHECKOUT python tests/parity/kar.py adaptor [--out tests/golden]

The checkout is a clone of https://github.com/YunjiaXi/Open-World-Knowledge-Augmented-Recommendation (Xi et al.,
*Towards Open-World Recommendation with Knowledge Augmentation from Large Language Models*, RecSys 2024). That code
predicts clicks and reranks, so of a recommender on a graph it has the adaptor alone. Both adaptors have to come to the
same, although an expert's last layer has a ReLU there: its biases are so high that no output is below zero.
"""

from collections.abc import Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.parity import golden, rlmrec
from tests.parity.authors import Authors

SIZE = 8
HIDDEN = 6
SHARED = 2
OWN = 3
KINDS = ("user", "item")  # theirs are two, too: histories and items
RAISED = 4  # biases of the last layers, on top


def texts() -> list[torch.Tensor]:
    """As many of users as of items, for that code wants pairs, (n, d_t) each."""
    made = rlmrec.dataset()
    assert made.user_text is not None
    assert made.text is not None
    return [torch.from_numpy(part[: made.user_count]) for part in (made.user_text, made.text)]


def fixed_weights(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Of every weight of theirs."""
    found = golden.fixed_weights(shapes)
    return {name: values + np.float32(RAISED) * name.endswith("fc.3.bias") for name, values in found.items()}


def mixture(outputs: torch.Tensor) -> torch.Tensor:
    """One number of all outputs (2 n, d), users first, to be differentiated."""
    return (outputs * torch.from_numpy(golden.fixed_weight(0, outputs.shape).astype(np.float32))).mean()


def weights(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From arrays by their names to arrays by ours."""
    found = {}
    groups = {"shared": [f"share_expt_net.{place}" for place in range(SHARED)]}
    for number, kind in enumerate(KINDS):
        groups[f"{kind}s"] = [f"spcf_expt_net.{number}.{place}" for place in range(OWN)]
        for part in ("weight", "bias"):
            found[f"{kind}_gate.{part}"] = theirs[f"sub_module.gate_net.{number}.{part}"]
    for ours, experts in groups.items():
        inner, inner_bias, outer, outer_bias = (
            [theirs[f"sub_module.{expert}.fc.{part}"] for expert in experts]
            for part in ("0.weight", "0.bias", "3.weight", "3.bias")
        )
        found[f"{ours}.inner"], found[f"{ours}.inner_bias"] = np.concatenate(inner), np.concatenate(inner_bias)
        found[f"{ours}.outer"] = np.concatenate([part.T for part in outer])
        found[f"{ours}.outer_bias"] = np.stack(outer_bias)
    return found


def adaptor() -> dict[str, Any]:
    """Outputs for all texts, and gradients of their mixture, from fixed weights."""
    settings = {"convert_arch": [HIDDEN, SIZE], "export_num": SHARED, "specific_export_num": OWN, "augment_num": 2}
    model = import_module("layers").ConvertNet(SimpleNamespace(device="cpu", **settings), rlmrec.WIDTH, 0.0, "HEA")
    own = dict(model.named_parameters())
    golden.set_weights(own, fixed_weights({name: list(weight.shape) for name, weight in own.items()}))
    outputs = torch.cat(model(texts()).split(SIZE, dim=1))
    loss = mixture(outputs)
    loss.backward()
    data = golden.description(rlmrec.dataset())
    return {"data": data, "settings": settings, **golden.descent(own, loss), "outputs": golden.plain(outputs.detach())}


AUTHORS = Authors(
    "kar",
    "https://github.com/YunjiaXi/Open-World-Knowledge-Augmented-Recommendation",
    "RS",
    {"adaptor": ("HEA of KAR", adaptor)},
)

if __name__ == "__main__":
    AUTHORS.main(__doc__)
