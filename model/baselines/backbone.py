"""What models share that put text vectors on LightGCN or SGL: the backbone, the vectors, their settings.

Such a model gives the backbone its layer 0, takes the backbone's loss and adds to it. RLMRec's own code differs in its
LightGCN: it sums the layers where LightGCN takes their mean (which leaves cosines as they are), drops 20 % of the edges
in every step, and penalises the norm of all parameters instead of the batch's own embeddings.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from model.base import DataError, RecData, Recommender
from model.baselines.lightgcn import LightGCN
from model.baselines.sgl import SGL, SGLConfig
from model.config import ModelConfig

BACKBONES: dict[str, type[LightGCN]] = {"lightgcn": LightGCN, "sgl": SGL}


class BackboneConfig(SGLConfig):
    """Settings of a model on a backbone, the backbone's own among them; LightGCN reads none of SGL's views."""

    backbone: Literal["lightgcn", "sgl"] = Field("lightgcn", description="Model that propagates the embeddings.")


class OnBackbone(Recommender):
    """Base of models on a backbone."""

    Config: ClassVar[type[ModelConfig]] = BackboneConfig
    needs: ClassVar[frozenset[str]] = frozenset({"interactions", "text", "user_text"})

    text: Tensor

    def __init__(self, config: BackboneConfig, data: RecData, generator: torch.Generator) -> None:
        super().__init__(config, data, generator)
        assert data.text is not None  # the base class has checked `needs`
        assert data.user_text is not None
        if data.user_text.shape[1] != data.text.shape[1]:
            raise DataError(
                f"dataset {data.name}: user_text has {data.user_text.shape[1]} numbers per row and text "
                f"{data.text.shape[1]}; {type(self).__name__} needs one encoder for both"
            )
        text = np.concatenate([data.user_text, data.text]).astype(np.float32, copy=False)
        self.register_buffer("text", torch.from_numpy(text), persistent=False)  # (M + N, d_t)
        kind = BACKBONES[config.backbone]
        settings = config.model_dump(include=set(kind.Config.model_fields))
        self.backbone = kind(kind.Config(**settings), data, generator)

    def before_epoch(self, epoch: int) -> None:
        """Let the backbone draw its views."""
        self.backbone.before_epoch(epoch)

    def embed(self) -> tuple[Tensor, Tensor]:
        return self.backbone.embed()
