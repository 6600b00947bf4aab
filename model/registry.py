"""Every model by name; importing this module imports no model."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.base import Recommender


@dataclass(frozen=True)
class ModelEntry:
    """Where a model lives and what it reads.

    Parameters
    ----------
    path
        `"module:Class"`.
    needs
        The class's `needs`, repeated here so that asset definitions need no torch.
    title
        How reports call it.
    preset
        Settings that make this variant of a class; a dataset's own settings go on from there.
    training
        Settings of training that its authors use and that are not the default; a dataset's own come first.
    """

    path: str
    needs: frozenset[str]
    title: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


INTERACTIONS = frozenset({"interactions"})
MULTIMODAL = INTERACTIONS | {"modalities"}
TEXTS = INTERACTIONS | {"text", "user_text"}
DECAY = {"learning_rate_decay": 0.96 ** (1 / 50)}  # by 0.96 in 50 epochs
ON_SGL: dict[str, Any] = {"backbone": "sgl"}

MODELS: dict[str, ModelEntry] = {
    "scale": ModelEntry("model.scale:Scale", INTERACTIONS | {"semantic_graph"}, "SCALE"),
    "bm3": ModelEntry("model.baselines.bm3:BM3", MULTIMODAL, "BM3"),
    "bpr": ModelEntry("model.baselines.bpr:BPR", INTERACTIONS, "BPR-MF"),
    "diffmm": ModelEntry("model.baselines.diffmm:DiffMM", MULTIMODAL, "DiffMM"),
    "freedom": ModelEntry("model.baselines.freedom:Freedom", MULTIMODAL, "FREEDOM"),
    "kar": ModelEntry("model.baselines.kar:KAR", TEXTS, "KAR"),
    "kar-sgl": ModelEntry("model.baselines.kar:KAR", TEXTS, "KAR (SGL)", ON_SGL),
    "lattice": ModelEntry("model.baselines.lattice:Lattice", MULTIMODAL, "LATTICE", training=DECAY),
    "layergcn": ModelEntry("model.baselines.layergcn:LayerGCN", INTERACTIONS, "LayerGCN"),
    "lgmrec": ModelEntry("model.baselines.lgmrec:LGMRec", MULTIMODAL, "LGMRec"),
    "lightgcn": ModelEntry("model.baselines.lightgcn:LightGCN", INTERACTIONS, "LightGCN"),
    "mentor": ModelEntry("model.baselines.mentor:MENTOR", MULTIMODAL, "MENTOR", training={"learning_rate": 1e-4}),
    "mgcn": ModelEntry("model.baselines.mgcn:MGCN", MULTIMODAL, "MGCN", training=DECAY),
    "rlmrec-con": ModelEntry("model.baselines.rlmrec:Contrastive", TEXTS, "RLMRec-Con"),
    "rlmrec-con-sgl": ModelEntry(
        "model.baselines.rlmrec:Contrastive", TEXTS, "RLMRec-Con (SGL)", ON_SGL | {"alignment_temperature": 0.5}
    ),
    "rlmrec-gen": ModelEntry("model.baselines.rlmrec:Generative", TEXTS, "RLMRec-Gen", {"layers": 2}),
    "rlmrec-gen-sgl": ModelEntry(
        "model.baselines.rlmrec:Generative",
        TEXTS,
        "RLMRec-Gen (SGL)",
        ON_SGL | {"alignment_temperature": 0.2, "masking": 0.2},
    ),
    "sgl": ModelEntry("model.baselines.sgl:SGL", INTERACTIONS, "SGL"),
    "slmrec": ModelEntry("model.baselines.slmrec:SLMRec", MULTIMODAL, "SLMRec"),
    "vbpr": ModelEntry("model.baselines.vbpr:VBPR", MULTIMODAL, "VBPR"),
}


def entry(name: str) -> ModelEntry:
    """The entry of a model; an unknown name is a `ValueError` with the nearest known one."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(MODELS))}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    return MODELS[name]


def load(name: str) -> type["Recommender"]:
    """Import a model's class."""
    module, _, attribute = entry(name).path.partition(":")
    loaded: type[Recommender] = getattr(import_module(module), attribute)
    return loaded
