"""Typed settings of models and of training; imports nothing heavy, so the UI can read them at start-up."""

import re
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Kernels = Literal["fast", "reference"]


class ModelConfig(BaseModel):
    """Base of every model's settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    embedding_size: int = Field(64, ge=1, description="d: numbers per user and per item.")


class TrainingConfig(BaseModel):
    """Settings of a training run; the same for every model."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    epochs: int = Field(1000, ge=1, description="At most so many passes over the training interactions.")
    patience: int = Field(20, ge=1, description="Stop after so many evaluations without a better one.")
    batch_size: int = Field(2048, ge=1, description="Training interactions per step.")
    learning_rate: float = Field(1e-3, gt=0, description="Step size of Adam.")
    learning_rate_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the step size after every epoch; LATTICE and MGCN: 0.96 in 50 epochs, 0.99918.",
    )
    seed: int = Field(0, ge=0, description="Seed of the weights, the batches and everything else that is drawn.")
    evaluate_every: int = Field(1, ge=1, description="Epochs between two evaluations on the validation split.")
    top_k: tuple[int, ...] = Field((10, 20), min_length=1, description="Cut-offs of Recall@k and NDCG@k.")
    selection_metric: str = Field("recall_at_20", description="Validation metric that picks the best epoch.")
    checkpoint_every: int = Field(5, ge=1, description="Epochs between two checkpoints, where one is asked for.")
    device: str = Field("auto", description="`auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1`, ...")
    kernels: Kernels = Field(
        "fast", description="`reference`: plain torch operations, slow, to hold a result of the fast ones against."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads. Default: 1 for a small dataset, where sharing costs more, else every core.",
    )

    @field_validator("top_k")
    @classmethod
    def _cutoffs(cls, top_k: tuple[int, ...]) -> tuple[int, ...]:
        if min(top_k) < 1 or len(set(top_k)) != len(top_k):
            raise ValueError("give distinct cut-offs of at least 1, for example [10, 20]")
        return tuple(sorted(top_k))

    @model_validator(mode="after")
    def _metric_is_computed(self) -> Self:
        match = re.fullmatch(r"(recall|ndcg)_at_(\d+)", self.selection_metric)
        if match is None or int(match[2]) not in self.top_k:
            known = [f"{name}_at_{k}" for name in ("recall", "ndcg") for k in self.top_k]
            raise ValueError(f"selection_metric {self.selection_metric!r} is not computed; choose one of {known}")
        return self
