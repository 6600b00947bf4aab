"""What RLMRec's own code computes in one step, as numbers in files that the tests hold ours against.

    SCALE_RLMREC=CHECKOUT python tests/parity/rlmrec.py VARIANT [--out tests/golden]

The checkout is a clone of https://github.com/HKUDS/RLMRec (Ren et al., *Representation Learning with Large Language
Models for Recommendation*, WWW 2024). VARIANT is `con` or `gen`, both on LightGCN; the file is `rlmrec-VARIANT.json`.
Both codes have to come to the same, although they differ in what `model.baselines.rlmrec` and
`model.baselines.backbone` say:

- A sum of layers, where ours is a mean: weights of layer 0 are so many times smaller there.
- Users are contrasted with all users, positives and negatives with the batch's, repeats included: the batch holds
  every user once, and no positive and no negative twice.
- Dropping of edges, and the regulariser, which reads other weights there, are off.
- Masked nodes are drawn: both mask the same ones.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.sparse import csr_array, csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from model.base import RecData
from pipeline.settings import DemoSource
from tests.parity import data, golden

SOURCE = DemoSource(kind="demo", users=50, items=120, seed=1)  # more items than users, so that none has to repeat
WIDTH = 12  # of texts
SIZE = 8
LAYERS = 2
MASKED = np.arange(0, SOURCE.users + SOURCE.items, 6)  # users and items
MASKING = len(MASKED) / (SOURCE.users + SOURCE.items)
MISSING = "set SCALE_RLMREC to the folder of a clone of https://github.com/HKUDS/RLMRec"


@dataclass(frozen=True)
class Variant:
    """One of RLMRec's models: module and class, our name of the network between the two spaces, settings of both."""

    module: str
    peer: str
    network: str
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]

    def weights(self, theirs: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
        """From arrays by RLMRec's names to arrays by ours; those of layer 0 times `scale`."""
        found = {f"{self.network}.{name[4:]}": values for name, values in theirs.items() if name.startswith("mlp.")}
        found["backbone.embeddings"] = scale * np.concatenate([theirs["user_embeds"], theirs["item_embeds"]])
        if "masker.mask_token" in theirs:
            found["mask_token"] = scale * theirs["masker.mask_token"][0]
        return found


VARIANTS = {
    "con": Variant(
        "lightgcn_plus",
        "LightGCN_plus",
        "encoder",
        {"alignment_weight": 0.5, "alignment_temperature": 0.4},
        {"kd_weight": 0.5, "kd_temperature": 0.4},
    ),
    "gen": Variant(
        "lightgcn_gene",
        "LightGCN_gene",
        "decoder",
        {"alignment_weight": 0.5, "alignment_temperature": 0.4, "masking": MASKING},
        {"recon_weight": 0.5, "re_temperature": 0.4, "mask_ratio": MASKING},
    ),
}


def dataset() -> RecData:
    """Interactions, and text vectors of users and items."""
    made = data.dataset(SOURCE, (WIDTH, WIDTH))
    rows = 2 + np.random.default_rng(3).integers(-6, 7, (SOURCE.users, WIDTH))
    lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return replace(made, visual=None, user_text=(rows / lengths).astype(np.float32))


def triplets(train: csr_array) -> np.ndarray:
    """Every user once, with positives and negatives of which none is there twice, int64 (3, M)."""
    free = csr_array((train.toarray() == 0).astype(np.float32))
    sides = [maximum_bipartite_matching(csr_matrix(part), perm_type="column") for part in (train, free)]
    return np.stack([np.arange(train.shape[0]), *sides]).astype(np.int64)


def fixed_weights(shapes: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Of every weight of RLMRec's, float32."""
    return {
        name: golden.fixed_weight(place, shape).astype(np.float32) for place, (name, shape) in enumerate(shapes.items())
    }


def step(variant: Variant, sources: Path) -> dict[str, Any]:
    """One batch's loss and gradients, and scores, from fixed weights."""
    made = dataset()
    settings = {"keep_rate": 1.0, "embedding_size": SIZE, "layer_num": LAYERS, "reg_weight": 0.0, **variant.theirs}
    _configure(sources, settings, made)
    handler = import_module("data_utils.data_handler_general_cf").DataHandlerGeneralCF
    adjacency = object.__new__(handler)._make_torch_adj(made.train)
    kind = getattr(import_module(f"models.general_cf.{variant.module}"), variant.peer)
    model = kind(SimpleNamespace(torch_adj=adjacency))
    weights = dict(model.named_parameters())
    fixed = fixed_weights({name: list(weight.shape) for name, weight in weights.items()})
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(torch.from_numpy(fixed[name]))
    with patch("numpy.random.choice", lambda *_, **__: MASKED):
        loss, _ = model.cal_loss(list(torch.from_numpy(triplets(made.train))))
    loss.backward()
    users = np.arange(0, made.user_count, 5)
    scores = model.full_predict((torch.from_numpy(users), torch.zeros(len(users), made.item_count)))
    return {
        "data": golden.description(made),
        "settings": settings,
        **golden.step(weights, loss, users, scores),
    }


def _configure(sources: Path, settings: dict[str, Any], made: RecData) -> None:
    """Settings in the place of RLMRec's module that reads its command line and data files; the GPU's is the CPU."""
    module = ModuleType("config.configurator")
    module.configs = {  # type: ignore[attr-defined]
        "data": {"name": "made", "user_num": made.user_count, "item_num": made.item_count},
        "model": settings,
        "device": "cpu",
        "usrprf_embeds": made.user_text,
        "itmprf_embeds": made.text,
    }
    sys.modules |= {"config": ModuleType("config"), "config.configurator": module}
    torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign, assignment]
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(sources))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=golden.FOLDER)
    arguments = parser.parse_args()
    named = os.environ.get("SCALE_RLMREC")
    if not named or not (Path(named) / "encoder" / "models").is_dir():
        parser.error(MISSING)
    variant = VARIANTS[arguments.variant]
    revision = ["git", "-C", named, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    golden.write(
        arguments.out / f"rlmrec-{arguments.variant}.json",
        f"{variant.peer} of RLMRec, https://github.com/HKUDS/RLMRec",
        subprocess.run(revision, check=True, capture_output=True, text=True).stdout.strip(),
        f"SCALE_RLMREC=CHECKOUT python tests/parity/rlmrec.py {arguments.variant}",
        {"step": step(variant, Path(named).resolve() / "encoder")},
    )


if __name__ == "__main__":
    main()
