"""What is compared with MMRec, model by model: settings of both, and which of its weights are which of ours.

Each model's docstring says in what it differs from MMRec on purpose. Where it does, settings, weights and batch of the
one step are such that both have to come to the same:

- Norms as regularisers (BPR, LightGCN, VBPR, LGMRec), where ours has squares: both are off.
- Trained features (FREEDOM, BM3, MGCN, LATTICE): their gradients are not compared.
- Biases that ours does without (VBPR, FREEDOM, MGCN): zero. SLMRec's two stay, to show that they change nothing; its
  linear map left over from the modality of sound is the identity, and its weight decay, the optimiser's, is left out.
- LayerGCN and LGMRec's contrast, sums over the batch: MMRec's weight, or the whole loss, is scaled.
- MGCN's contrast of distinct users and items: the batch repeats none.
- LGMRec's noise while evaluating: left out there, and the loss is that of evaluation mode here.
- LATTICE's normalised sum of learned graphs, where ours has a sum of normalised ones: both modalities' projections are
  the same. Its interaction graph with self-loops: no layers on it, here and, by `cf_model`, there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.registry import MODELS
from tests.parity.data import BATCH, STEP_BATCH, STEP_WIDTHS, STRETCH
from tests.parity.golden import fixed_weight

Arrays = dict[str, np.ndarray]
Settings = Mapping[str, Any]

STEP_SIZE = 8  # embedding size of the one step
# Settings of every training.
SEEDS = range(5)
SIZE = 32
RATE = 1e-2
EPOCHS = 8
DECAYING = {"learning_rate_decay": MODELS["mgcn"].training["learning_rate_decay"]}  # MMRec's files say so
FEATURES = ("text_embedding.weight", "image_embedding.weight")  # MMRec trains them along; they stay as they are here


@dataclass(frozen=True)
class Case:
    """One model beside MMRec's.

    Parameters
    ----------
    peer
        MMRec's class.
    weights
        From arrays by MMRec's names, values of weights or gradients, to arrays by our names.
    ours, theirs
        Settings.
    step_ours, step_theirs
        On top of them for the one step: nothing is drawn, and every term is large enough to be seen.
    training
        Settings of our training.
    constant
        Weights of MMRec's that have no counterpart here -> `zero` or `identity`, with which they change nothing.
    distinct
        The step's batch holds nothing twice.
    summed
        MMRec's loss is a sum over the batch.
    quiet
        The loss, too, is computed in evaluation mode, for in training it draws.
    twins
        The modalities are the same after their projections.
    losses
        Training losses are the same quantity.
    unseen
        Term of our loss that MMRec leaves to its optimiser.
    """

    peer: str
    weights: Callable[[Arrays], Arrays]
    ours: Settings = field(default_factory=dict)
    theirs: Settings = field(default_factory=dict)
    step_ours: Settings = field(default_factory=dict)
    step_theirs: Settings = field(default_factory=dict)
    training: Settings = field(default_factory=dict)
    constant: Mapping[str, str] = field(default_factory=dict)
    distinct: bool = False
    summed: bool = False
    quiet: bool = False
    twins: bool = False
    losses: bool = True
    unseen: str | None = None


def peer_weights(case: Case, shapes: Mapping[str, list[int]]) -> Arrays:
    """Fixed weights by MMRec's names, float32."""
    found: Arrays = {}
    for place, (name, shape) in enumerate(shapes.items()):
        kind = case.constant.get(name)
        if kind is not None:
            found[name] = np.zeros(shape) if kind == "zero" else np.eye(*shape)
            continue
        found[name] = fixed_weight(place, shape)
    if case.twins:
        found["image_trs.weight"] = found["text_trs.weight"] / np.resize(STRETCH, shapes["text_trs.weight"][1])
        found["image_trs.bias"] = found["text_trs.bias"]
    return {name: values.astype(np.float32) for name, values in found.items()}


def peer_settings(case: Case, batch: int | None = None) -> dict[str, Any]:
    """Settings of MMRec's training, or of its one step with `batch` triplets, on top of its own files."""
    size = SIZE if batch is None else STEP_SIZE
    sizes = {"embedding_size": size, "feat_embed_dim": size, "recdim": size}  # a model reads some of these names
    common = {"learning_rate": RATE, "train_batch_size": batch or BATCH, "metrics": ["Recall", "NDCG"], "topk": [20]}
    return {**common, **sizes, **case.theirs, **({} if batch is None else case.step_theirs)}


def _table(weights: Arrays, users: str = "user_embedding.weight", items: str = "item_id_embedding.weight") -> Arrays:
    return {"embeddings": np.concatenate([weights[users], weights[items]])}


def _projections(weights: Arrays, biases: bool) -> Arrays:
    found: Arrays = {}
    for ours, theirs in (("text", "text_trs"), ("visual", "image_trs")):
        found[f"projections.weights.{ours}"] = weights[f"{theirs}.weight"].T
        if biases:
            found[f"projections.biases.{ours}"] = weights[f"{theirs}.bias"]
    return found


def _layers(weights: Arrays, names: Mapping[str, str]) -> Arrays:
    """Linear layers by our name -> MMRec's."""
    kinds = ("weight", "bias")
    return {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for ours, theirs in names.items() for kind in kinds}


def _vbpr(weights: Arrays) -> Arrays:
    text, visual = np.split(weights["item_linear.weight"].T, STEP_WIDTHS[:1])
    tables = {"user_embeddings": weights["u_embedding"], "item_embeddings": weights["i_embedding"]}
    return {**tables, "projections.weights.text": text, "projections.weights.visual": visual}


def _mgcn(weights: Arrays) -> Arrays:
    names = {
        "purifiers.text": "gate_t.0",
        "purifiers.visual": "gate_v.0",
        "preferences.text": "gate_text_prefer.0",
        "preferences.visual": "gate_image_prefer.0",
        "query": "query_common.0",
    }
    attention = {"attention": weights["query_common.2.weight"].T}
    return {**_table(weights), **_projections(weights, biases=False), **_layers(weights, names), **attention}


def _lgmrec(weights: Arrays) -> Arrays:
    names = {
        "projections.text": "item_text_trs",
        "projections.visual": "item_image_trs",
        "hyperedges.text": "t_hyper",
        "hyperedges.visual": "v_hyper",
    }
    return {**_table(weights), **{ours: weights[theirs] for ours, theirs in names.items()}}


def _slmrec(weights: Arrays) -> Arrays:
    names = {
        "projections.text": "t_dense",
        "projections.visual": "v_dense",
        "fuse_users": "embedding_user_after_GCN",
        "fuse_items": "embedding_item_after_GCN",
        "coarser.0": "g_i_iv",
        "coarser.1": "g_iva_ivat",
    }
    finer = {"finer.0": weights["g_v_iv.weight"].T, "finer.1": weights["g_t_ivat.weight"].T}
    return {**_table(weights, "embedding_user.weight", "embedding_item.weight"), **_layers(weights, names), **finer}


NO_BIASES = {"text_trs.bias": "zero", "image_trs.bias": "zero"}

CASES: dict[str, Case] = {
    "bpr": Case(
        "BPR",
        lambda weights: {
            "user_embeddings": weights["user_embedding.weight"],
            "item_embeddings": weights["item_embedding.weight"],
        },
        ours={"l2": 0.0},
        theirs={"reg_weight": 0.0},
    ),
    "lightgcn": Case(
        "LightGCN",
        lambda weights: _table(weights, "embedding_dict.user_emb", "embedding_dict.item_emb"),
        ours={"layers": 2, "l2": 0.0},
        theirs={"n_layers": 2, "reg_weight": 0.0},
    ),
    "vbpr": Case(
        "VBPR",
        _vbpr,
        ours={"l2": 0.0},
        theirs={"reg_weight": 0.0},
        constant={"item_linear.bias": "zero"},
    ),
    "layergcn": Case(
        "LayerGCN",
        lambda weights: _table(weights, "user_embeddings", "item_embeddings"),
        ours={"layers": 4, "pruning": 0.1, "l2": 1e-3},
        theirs={"n_layers": 4, "dropout": 0.1, "reg_weight": 1e-3},
        step_ours={"pruning": 0.0, "l2": 0.1},
        step_theirs={"dropout": 0.0, "reg_weight": 0.1},
        summed=True,
    ),
    "freedom": Case(
        "FREEDOM",
        lambda weights: {**_table(weights), **_projections(weights, biases=False)},
        ours={"layers": 2, "item_layers": 1, "neighbours": 10, "pruning": 0.8, "modality_weight": 1e-3},
        theirs={"n_ui_layers": 2, "n_mm_layers": 1, "knn_k": 10, "dropout": 0.8, "reg_weight": 1e-3},
        step_ours={"item_layers": 2, "neighbours": 5, "pruning": 0.0, "modality_weight": 0.5},
        step_theirs={"n_mm_layers": 2, "knn_k": 5, "dropout": 0.0, "reg_weight": 0.5},
        constant=NO_BIASES,
    ),
    "bm3": Case(
        "BM3",
        lambda weights: {
            **_table(weights),
            **_projections(weights, biases=True),
            **_layers(weights, {"predictor": "predictor"}),
        },
        ours={"layers": 1, "dropout": 0.5, "l2": 0.1, "alignment_weight": 2.0},
        theirs={"n_layers": 1, "dropout": 0.5, "reg_weight": 0.1, "cl_weight": 2.0},
        step_ours={"layers": 2, "dropout": 0.0, "l2": 0.5},
        step_theirs={"n_layers": 2, "dropout": 0.0, "reg_weight": 0.5},
        losses=False,  # features that are trained along are soon aligned
    ),
    "mgcn": Case(
        "MGCN",
        _mgcn,
        ours={"layers": 2, "item_layers": 1, "neighbours": 10, "contrast_weight": 0.01, "l2": 1e-4},
        theirs={"n_ui_layers": 2, "n_layers": 1, "knn_k": 10, "cl_loss": 0.01, "reg_weight": 1e-4},
        step_ours={"item_layers": 2, "neighbours": 5, "contrast_weight": 0.5, "l2": 0.1},
        step_theirs={"n_layers": 2, "knn_k": 5, "cl_loss": 0.5, "reg_weight": 0.1},
        training=DECAYING,
        constant=NO_BIASES,
        distinct=True,
        losses=False,  # a training's batches repeat users
    ),
    "lgmrec": Case(
        "LGMRec",
        _lgmrec,
        ours={"layers": 2, "modality_layers": 2, "contrast_weight": 0.2, "l2": 0.0},
        theirs={
            "n_ui_layers": 2,
            "n_mm_layers": 2,
            "n_hyper_layer": 1,
            "hyper_num": 4,
            "keep_rate": 0.5,
            "alpha": 0.3,
            "cl_weight": 0.2 / BATCH,  # of a sum over the batch
            "reg_weight": 0.0,
        },
        step_ours={"hypergraph_layers": 2, "contrast_weight": 0.5},
        step_theirs={"n_hyper_layer": 2, "keep_rate": 1.0, "cl_weight": 0.5 / STEP_BATCH},
        quiet=True,
    ),
    "lattice": Case(
        "LATTICE",
        lambda weights: {
            **_table(weights),
            **_projections(weights, biases=True),
            "importance": weights["modal_weight"][::-1],
        },
        ours={"layers": 2, "item_layers": 1, "neighbours": 10, "initial_weight": 0.9, "l2": 1e-5},
        theirs={"n_layers": 1, "knn_k": 10, "lambda_coeff": 0.9, "reg_weight": 1e-5},
        step_ours={"layers": 0, "item_layers": 2, "neighbours": 5, "initial_weight": 0.4, "l2": 0.3},
        step_theirs={"cf_model": "mf", "n_layers": 2, "knn_k": 5, "lambda_coeff": 0.4, "reg_weight": 0.3},
        training=DECAYING,
        twins=True,
        losses=False,  # another interaction graph
    ),
    "slmrec": Case(
        "SLMRec",
        _slmrec,
        ours={"layers": 3, "contrast_weight": 0.1, "contrast_temperature": 0.2, "l2": 1e-4},
        theirs={"layer_num": 3, "ssl_alpha": 0.1, "ssl_temp": 0.2, "weight_decay": 1e-4},
        step_ours={"layers": 2, "contrast_weight": 0.5, "contrast_temperature": 0.5, "l2": 0.0},
        step_theirs={"layer_num": 2, "ssl_alpha": 0.5, "ssl_temp": 0.5},
        constant={"g_iv_iva.weight": "identity", "g_iv_iva.bias": "zero"},
        unseen="l2",
    ),
}
