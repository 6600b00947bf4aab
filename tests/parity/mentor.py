"""What MENTOR's own code computes in one step and in a training, as numbers in files that the tests hold ours against.

    SCALE_MENTOR=CHECKOUT python tests/parity/mentor.py PART [--out tests/golden]

The checkout is a clone of https://github.com/Jinfeng-Xu/MENTOR (Xu et al., *MENTOR: Multi-level Self-supervised
Learning for Multimodal Recommendation*, AAAI 2025). PART is `recommending`, where masking and perturbation are off in
both codes, or `whole`. Both codes have to come to the same, although they differ in what `model.baselines.mentor` says:

- Logarithms to base 2 in BPR: weights of the other terms, and the loss, are scaled.
- Variances divided by n - 1: by n there, too.
- Masking without gradients: with gradients there, too, of which the masked target has none.
- Noisy propagations with weights of their own: they share those of the propagation without noise there, too.
- Masking and perturbation of all users and items: in `whole` the batch holds each of them once.
- Noise, and what masking hides, are drawn: both codes get the same.
"""

import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.sparse import coo_matrix
from torch import Tensor

from model.base import RecData
from tests.parity import data, golden
from tests.parity.authors import Authors

SIZE = 8
NODES = data.STEP.users + data.STEP.items
SCALE = math.log(2)  # natural logarithms over those to base 2
MODALITIES = {"text": "t_gcn", "visual": "v_gcn"}  # ours -> theirs
OURS = {
    "embedding_size": SIZE,
    "layers": 2,
    "item_layers": 2,
    "neighbours": 5,
    "visual_weight": 0.3,
    "alignment_weight": 5 * SCALE,
    "l2": 0.5 * SCALE,
    "masking_weight": 0,
    "perturbation_weight": 0,
}
THEIRS = {
    "embedding_size": SIZE,
    "feat_embed_dim": SIZE,
    "n_mm_layers": 2,
    "knn_k": 5,
    "mm_image_weight": 0.3,
    "align_weight": 5,
    "reg_weight": 0.5,
    "dropout": 0.4,
    "mask_weight_f": 0,
    "mask_weight_g": 0,
    "temp": 0.5,
    "train_batch_size": data.STEP_BATCH,
}
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "recommending": (OURS, THEIRS),
    "whole": (
        OURS | {"masking_weight": 1.5 * SCALE, "masking": 0.4, "perturbation_weight": 0.7 * SCALE, "temperature": 0.5},
        THEIRS | {"mask_weight_f": 1.5, "mask_weight_g": 0.7},
    ),
}


def triplets(part: str, made: RecData) -> np.ndarray:
    """A batch as in training, or every user and every item once, int64 (3, B)."""
    if part == "recommending":
        return data.triplets(made.train, distinct=False)
    users = np.arange(made.user_count)
    return np.stack([users, (7 * users + 3) % made.item_count, (3 * users + 1) % made.item_count])


def noise() -> Tensor:
    """Numbers in [0, 1) by view, layer, node, modality (text first) and entry."""
    numbers = golden.fixed_weight(100, (2, 2, NODES, 2, SIZE)) + 0.5
    return torch.from_numpy(numbers.astype(np.float32))


def kept() -> Tensor:
    """1 where masking leaves a number, 0 where not: by node, modality (text first) and entry."""
    return torch.from_numpy((golden.fixed_weight(101, (NODES, 2, SIZE)) > -0.1).astype(np.float32))


def weights(theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """From arrays by their names to arrays by ours; images are before texts there."""
    found = {"user_weights": theirs["weight_u"][:, ::-1, 0], "item_ids": theirs["id_feat"]}
    for ours, name in {**MODALITIES, "id": "id_gcn"}.items():
        found[f"preferences.{ours}"] = theirs[f"{name}.preference"]
        for place, layer in ((0, "MLP"), (2, "MLP_1")):
            for kind in ("weight", "bias"):
                found[f"encoders.{ours}.{place}.{kind}"] = theirs[f"{name}.{layer}.{kind}"]
    if "mlp.weight" in theirs:
        found["predictor.weight"] = np.roll(theirs["mlp.weight"], SIZE, axis=(0, 1))
        found["predictor.bias"] = np.roll(theirs["mlp.bias"], SIZE)
    return found


def step(part: str) -> dict[str, Any]:
    """One batch's loss and gradients, and scores, from fixed weights."""
    made, (_, settings) = data.step_data(twins=False), PARTS[part]
    model = _model(made, settings)
    read = ["weight_u", "id_feat", "v_gcn.", "t_gcn.", "id_gcn.", *(["mlp."] if settings["mask_weight_f"] else [])]
    own = {name: weight for name, weight in model.named_parameters() if name.startswith(tuple(read))}
    golden.set_weights(own, golden.fixed_weights({name: weight.shape for name, weight in own.items()}))
    batch = list(torch.from_numpy(triplets(part, made)))
    loss = _loss(model, batch, made)
    loss.backward()
    users = np.arange(0, made.user_count, 5)
    scores = model.full_sort_predict([torch.from_numpy(users)])
    found = golden.step(own, loss, users, scores)
    losses = golden.losses(torch.optim.Adam(own.values(), golden.RATE), lambda _: _loss(model, batch, made))
    return {"data": golden.description(made), "settings": settings, **found, "losses": losses}


def _loss(model: Any, batch: list[Tensor], made: RecData) -> Tensor:
    """Of a batch, with noise and masks drawn as in ours."""
    # View by view images before texts, layer by layer within.
    uniform = iter([noise()[view, layer, :, place] for view in (0, 1) for place in (1, 0) for layer in (0, 1)])
    masks = iter(kept().flip(1).flatten(1).split([made.user_count, made.item_count]))
    with (
        patch("torch.var", lambda table: table.var(correction=0)),
        patch("torch.rand_like", lambda _: next(uniform)),
        patch("torch.nn.functional.dropout", lambda rows, rate: (rows * next(masks) / (1 - rate)).detach()),
        patch("torch.no_grad", nullcontext),
    ):
        loss: Tensor = model.calculate_loss([part.clone() for part in batch])  # it adds to the batch in place
    return loss


def _model(made: RecData, settings: dict[str, Any]) -> Any:
    """Theirs, narrower than the 64 numbers that its code fixes, with shared weights of noisy propagations."""
    _without_geometric()
    module = import_module("models.mentor")
    for kind in (module.MENTOR, module.GCN):
        kind.dim_latent = property(lambda _: SIZE, lambda *_: None)
    dataset = SimpleNamespace(
        dataset=SimpleNamespace(get_user_num=lambda: made.user_count, get_item_num=lambda: made.item_count),
        inter_matrix=lambda form: coo_matrix(made.train),
    )
    files = {"user_graph_dict_file": "users.npy", "vision_feature_file": "image.npy", "text_feature_file": "text.npy"}
    names = {"USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "NEG_PREFIX": "neg_", "dataset": "", "device": "cpu"}
    with TemporaryDirectory() as folder:
        for name, array in (("image", made.visual), ("text", made.text), ("users", {})):
            np.save(Path(folder) / f"{name}.npy", array, allow_pickle=True)
        modes = {"end2end": False, "is_multimodal_model": True, "data_path": f"{folder}/"}
        model = module.MENTOR({**settings, **files, **names, **modes}, dataset)
    for name in ("", "_guide", "_v", "_t", "_n1", "_n2"):
        delattr(model, f"result_embed{name}")  # parameters on a CPU alone, in the place of later results
    model.v_gcn_n1 = model.v_gcn_n2 = model.v_gcn
    model.t_gcn_n1 = model.t_gcn_n2 = model.t_gcn
    return model


def _without_geometric() -> None:
    """What MENTOR uses of torch_geometric: sums over edges of messages from the first node to the second."""

    class MessagePassing(torch.nn.Module):
        def __init__(self, aggr: str) -> None:
            super().__init__()

        def propagate(self, edge_index: Tensor, size: tuple[int, int], x: Tensor) -> Tensor:
            messages = self.message(x_j=x[edge_index[0]], edge_index=edge_index, size=size)
            return self.update(x.new_zeros(size[1], x.shape[1]).index_add(0, edge_index[1], messages))

    def degree(nodes: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        return nodes.bincount(minlength=count).to(dtype)

    parts: dict[str, dict[str, Any]] = {
        "torch_geometric": {},
        "torch_geometric.nn": {},
        "torch_geometric.nn.conv": {"MessagePassing": MessagePassing},
        "torch_geometric.utils": {
            "remove_self_loops": lambda edges: (edges, None),  # there are none between users and items
            "add_self_loops": None,  # imported, never called
            "degree": degree,
        },
    }
    for name, content in parts.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)


AUTHORS = Authors(
    "mentor", "https://github.com/Jinfeng-Xu/MENTOR", "src", {part: ("MENTOR", partial(step, part)) for part in PARTS}
)

if __name__ == "__main__":
    AUTHORS.main(__doc__)
