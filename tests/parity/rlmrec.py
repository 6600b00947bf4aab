"""What RLMRec's own code computes in one step and in a training, as numbers in files that the tests hold ours against.

    SCALE_RLMREC=CHECKOUT python tests/parity/rlmrec.py PART [--out tests/golden]

The checkout is a clone of https://github.com/HKUDS/RLMRec (Ren et al., *Representation Learning with Large Language
Models for Recommendation*, WWW 2024). PART is `sgl`, its SGL alone, or an alignment: `con` or `gen` on LightGCN,
`con-sgl` or `gen-sgl` on SGL. Both codes have to come to the same, although they differ in what
`model.baselines.rlmrec`, `model.baselines.backbone` and `model.baselines.sgl` say:

- A sum of layers, where ours is a mean: weights of layer 0, and their steps, are so many times smaller there.
- Users are contrasted with all users, positives and negatives with the batch's, repeats included: the batch holds
  every user once, and no positive and no negative twice.
- Dropping of edges outside views, and the regulariser, which reads other weights there, are off.
- Masked nodes are drawn: both mask the same ones.
- SGL's views are drawn, with the degrees of the whole graph there: both get the same two, with degrees of their own.
- SGL's contrast has negative items for anchors, too: that term is left out.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.sparse import csr_array, csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from model.base import RecData
from pipeline.settings import DemoSource
from tests.parity import data, golden
from tests.parity.authors import Authors

SOURCE = DemoSource(kind="demo", users=50, items=120, seed=1)  # more items than users, so that none has to repeat
WIDTH = 12  # of texts
SIZE = 8
LAYERS = 2
MASKED = np.arange(0, SOURCE.users + SOURCE.items, 6)  # users and items
MASKING = len(MASKED) / (SOURCE.users + SOURCE.items)


@dataclass(frozen=True)
class Variant:
    """One of RLMRec's models: our name of it, its module and class, our names of its parts, settings of both.

    Parameters
    ----------
    table
        Our name of the ID embeddings.
    network
        Our name of the network between the two spaces.
    sgl
        The model contrasts views.
    """

    model: str
    module: str
    peer: str
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    table: str = "backbone.embeddings"
    network: str = ""
    sgl: bool = False

    def weights(self, theirs: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
        """From arrays by RLMRec's names to arrays by ours; those of layer 0 times `scale`."""
        found = {f"{self.network}.{name[4:]}": values for name, values in theirs.items() if name.startswith("mlp.")}
        found[self.table] = scale * np.concatenate([theirs["user_embeds"], theirs["item_embeds"]])
        if "masker.mask_token" in theirs:
            found["mask_token"] = scale * theirs["masker.mask_token"][0]
        return found


CON = {"alignment_weight": 0.5, "alignment_temperature": 0.4}
THEIR_CON = {"kd_weight": 0.5, "kd_temperature": 0.4}
GEN = {"alignment_weight": 0.5, "alignment_temperature": 0.4, "masking": MASKING}
THEIR_GEN = {"recon_weight": 0.5, "re_temperature": 0.4, "mask_ratio": MASKING}
VIEWS = {"contrast_weight": 0.7, "contrast_temperature": 0.5}
THEIR_VIEWS = {
    "keep_rate": 0.8,
    "augmentation": "edge_drop",
    "cl_weight": 0.7,
    "temperature": 0.5,
    "cl_temperature": 0.5,  # the same where there is an alignment
}
ON_SGL = {"backbone": "sgl", **VIEWS}

VARIANTS = {
    "con": Variant("rlmrec-con", "lightgcn_plus", "LightGCN_plus", CON, THEIR_CON, network="encoder"),
    "gen": Variant("rlmrec-gen", "lightgcn_gene", "LightGCN_gene", GEN, THEIR_GEN, network="decoder"),
    "sgl": Variant("sgl", "sgl", "SGL", VIEWS, THEIR_VIEWS, table="embeddings", sgl=True),
    "con-sgl": Variant(
        "rlmrec-con-sgl", "sgl_plus", "SGL_plus", CON | ON_SGL, THEIR_CON | THEIR_VIEWS, network="encoder", sgl=True
    ),
    "gen-sgl": Variant(
        "rlmrec-gen-sgl", "sgl_gene", "SGL_gene", GEN | ON_SGL, THEIR_GEN | THEIR_VIEWS, network="decoder", sgl=True
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


def views(train: csr_array, epoch: int = 1) -> list[csr_array]:
    """Two parts of the interactions, without every fifth, and without every seventh; others in another epoch."""
    found = []
    for period in (5, 7):
        part = train.copy()
        part.data[(epoch - 1) % period :: period] = 0
        part.eliminate_zeros()
        found.append(part)
    return found


def step(variant: Variant) -> dict[str, Any]:
    """One batch's loss and gradients, and scores, from fixed weights."""
    made = dataset()
    settings = {"keep_rate": 1.0, "embedding_size": SIZE, "layer_num": LAYERS, "reg_weight": 0.0, **variant.theirs}
    _configure(settings, made)
    handler = object.__new__(import_module("data_utils.data_handler_general_cf").DataHandlerGeneralCF)
    module = import_module(f"models.general_cf.{variant.module}")
    model = getattr(module, variant.peer)(SimpleNamespace(torch_adj=handler._make_torch_adj(made.train)))
    weights = dict(model.named_parameters())
    golden.set_weights(weights, golden.fixed_weights({name: weight.shape for name, weight in weights.items()}))
    with ExitStack() as stack:
        stack.enter_context(patch("numpy.random.choice", lambda *_, **__: MASKED))
        if variant.sgl:
            graphs = [handler._make_torch_adj(view) for view in views(made.train)]
            stack.enter_context(_same_contrast(module, model, graphs))
        loss, _ = model.cal_loss(list(torch.from_numpy(triplets(made.train))))
    loss.backward()
    users = np.arange(0, made.user_count, 5)
    scores = model.full_predict((torch.from_numpy(users), torch.zeros(len(users), made.item_count)))
    found = golden.step(weights, loss, users, scores)
    return {"data": golden.description(made), "settings": settings, **found, "losses": _losses(variant, model, module)}


def _losses(variant: Variant, model: Any, module: ModuleType) -> list[float]:
    """Losses of a training from the weights as they are."""
    made = dataset()
    handler = object.__new__(import_module("data_utils.data_handler_general_cf").DataHandlerGeneralCF)
    batch = list(torch.from_numpy(triplets(made.train)))
    layer0 = [weight for name, weight in model.named_parameters() if name.endswith(("_embeds", "mask_token"))]
    network = [weight for name, weight in model.named_parameters() if name.startswith("mlp.")]
    sums = LAYERS + 1
    groups = [{"params": layer0, "lr": golden.RATE / sums, "eps": sums * 1e-8}, {"params": network, "lr": golden.RATE}]

    def loss(epoch: int) -> Tensor:
        model.is_training = True
        with ExitStack() as stack:
            stack.enter_context(patch("numpy.random.choice", lambda *_, **__: MASKED))
            if variant.sgl:
                graphs = [handler._make_torch_adj(view) for view in views(made.train, epoch)]
                stack.enter_context(_same_contrast(module, model, graphs))
            total: Tensor = model.cal_loss(batch)[0]
        return total

    return golden.losses(torch.optim.Adam([group for group in groups if group["params"]]), loss)


@contextmanager
def _same_contrast(module: ModuleType, model: torch.nn.Module, graphs: list[Tensor]) -> Iterator[None]:
    """Views are `graphs`, and the third contrast, that of negative items, counts nothing."""
    drawn, contrast, calls = iter(graphs), module.cal_infonce_loss, iter(range(sys.maxsize))

    def counted(*arguments: Any) -> Tensor:
        return contrast(*arguments) * (next(calls) != 2)

    def dropped(graph: Tensor, keep_rate: float) -> Tensor:
        return graph if keep_rate == 1 else next(drawn)

    with patch.object(module, "cal_infonce_loss", counted), patch.object(model.edge_dropper, "forward", dropped):
        yield


def _configure(settings: dict[str, Any], made: RecData) -> None:
    """Settings in the place of RLMRec's module that reads its command line and data files."""
    module = ModuleType("config.configurator")
    module.configs = {  # type: ignore[attr-defined]
        "data": {"name": "made", "user_num": made.user_count, "item_num": made.item_count},
        "model": settings,
        "device": "cpu",
        "usrprf_embeds": made.user_text,
        "itmprf_embeds": made.text,
    }
    sys.modules |= {"config": ModuleType("config"), "config.configurator": module}


AUTHORS = Authors(
    "rlmrec",
    "https://github.com/HKUDS/RLMRec",
    "encoder",
    {name: (f"{variant.peer} of RLMRec", partial(step, variant)) for name, variant in VARIANTS.items()},
)

if __name__ == "__main__":
    AUTHORS.main(__doc__)
