"""Settings of one dataset as the assets see them: those of the data stages, of training and of each model."""

import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.config import ModelConfig, TrainingConfig
from pipeline.settings import Closed, DatasetSettings, SettingsError, dataset_files, load_settings, validate

if TYPE_CHECKING:
    import dagster as dg

SUBJECT = "scale"  # the model that ablations, audits and sensitivity are about
OVERRIDES_TAG = "scale/set"
VARIANT_TAG = "scale/variant"  # on runs that make what a variant reads, apart from the dataset's own


class Range(Closed):
    """Numbers between two ends; whole ones where both ends are."""

    low: int | float = Field(description="Least value.")
    high: int | float = Field(description="Greatest value.")
    log: bool = Field(False, description="Draw the logarithm evenly.")

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} has to be below high {self.high}, and above 0 with `log`")
        return self


Space = dict[str, list[Any] | Range]


class SweepSettings(Closed):
    """How `scale sweep` looks for a model's settings; the same for every model that is compared."""

    trials: int = Field(
        20, ge=1, description="Trainings of each model, at most: a grid with fewer combinations is tried whole."
    )
    sampler: Literal["grid", "random", "tpe"] = Field(
        "grid", description="`grid` draws from all combinations without repeating one, `tpe` learns from what it saw."
    )
    seed: int = Field(0, ge=0, description="Seed of what is drawn.")
    prune: bool = Field(True, description="Stop a trial that falls below the median of the others at its epoch.")
    warm_up: int = Field(20, ge=0, description="Epochs in which no trial is stopped.")
    parallel: int = Field(1, ge=1, description="Trials at a time; they share the cores.")
    spaces: dict[str, Space] = Field(
        default_factory=dict,
        description="Model -> setting (`training.learning_rate` for one of training) -> a list of values, or low and "
        "high. Default: the model's own.",
    )


WEIGHTS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
SPARSITIES = [2, 5, 10, 12, 15]
LAYERS = [1, 2, 3, 4, 5]
FIGURE_5: list[dict[str, list[Any]]] = [
    {"models.scale.semantic_weight": WEIGHTS},
    {"models.scale.relation_weight": WEIGHTS},
    {"models.scale.negatives": [1, 2, 4, 8, 16]},
    {"subspace.user_sparsity": SPARSITIES},
    {"subspace.item_sparsity": SPARSITIES},
    {"subspace.user_item_sparsity": SPARSITIES},
    {"models.scale.interaction_layers": LAYERS, "models.scale.semantic_layers": LAYERS},
]


class EvidenceSettings(Closed):
    """What `scale report` trains: every model, and variants of SCALE, over several seeds."""

    seeds: int = Field(5, ge=1, description="Trainings of each model and variant: `training.seed` and those after it.")
    parallel: int = Field(1, ge=1, description="Trainings at a time; they share the cores.")
    sensitivity: list[dict[str, list[Any]]] = Field(
        FIGURE_5,
        description="Panels of the sensitivity study: one setting and its values, or two and every pair of values.",
    )
    sensitivity_seeds: int = Field(1, ge=1, description="Trainings of each point of a panel.")

    @field_validator("sensitivity")
    @classmethod
    def _one_or_two(cls, panels: list[dict[str, list[Any]]]) -> list[dict[str, list[Any]]]:
        for panel in panels:
            if len(panel) not in (1, 2) or not all(panel.values()):
                raise ValueError(f"a panel varies one setting or two, each over some values; found {panel}")
        return panels


class Dataset(DatasetSettings):
    """One dataset's YAML, whole."""

    training: TrainingConfig = TrainingConfig()
    models: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Model name -> its own settings, with those of its training under `training`."
    )
    sweep: SweepSettings = SweepSettings()
    evidence: EvidenceSettings = EvidenceSettings()


@cache
def dataset_names() -> tuple[str, ...]:
    """Every known dataset; fixed for the life of the process, since Dagster's partitions are."""
    return tuple(dataset_files())


def dataset(name: str, overrides: Mapping[str, Any] | None = None) -> Dataset:
    """Settings of a dataset, read afresh; `SettingsError` names what is wrong."""
    files = dataset_files()
    if name not in files:
        raise SettingsError(f"there is no dataset {name!r}; known: {', '.join(files)} (SCALE_DATASETS adds folders)")
    return load_settings(files[name], Dataset, overrides)


def model_config(name: str, settings: Dataset) -> ModelConfig:
    """Settings of one model: its class's defaults, its registry line's preset, then the dataset's `models.<name>`."""
    from model.registry import entry, load

    chosen = {**entry(name).preset, **settings.models.get(name, {})}
    chosen.pop("training", None)
    return validate(load(name).Config, chosen, f"models.{name}")


def training_config(name: str, settings: Dataset) -> TrainingConfig:
    """Settings of one model's training, each from the first place that gives it.

    The places: the dataset's `models.<name>.training`, its `training`, the model's registry line, the default.
    """
    from model.registry import entry

    given = settings.training.model_dump(include=settings.training.model_fields_set)
    own = settings.models.get(name, {}).get("training", {})
    return validate(TrainingConfig, {**entry(name).training, **given, **own}, f"models.{name}.training")


def search_space(name: str, settings: Dataset) -> Space:
    """What a sweep of one model tries, by dotted key of the dataset's settings."""
    from model.registry import load

    space = settings.sweep.spaces.get(name) or {key: list(values) for key, values in load(name).search.items()}
    if not space:
        raise SettingsError(f"nothing to search: give sweep.spaces.{name} in the dataset's file")
    return {f"models.{name}.{key}": choices for key, choices in space.items()}


def partition_of(context: "dg.AssetExecutionContext") -> dict[str, str]:
    """`{"dataset": ..., "model": ...}` of the partition being materialised; no model in the data stages."""
    import dagster as dg

    key = context.partition_key
    return dict(key.keys_by_dimension) if isinstance(key, dg.MultiPartitionKey) else {"dataset": key}


def settings_of(context: "dg.AssetExecutionContext") -> Dataset:
    """Settings for the partition being materialised, with the run's overrides (tag `scale/set`, JSON)."""
    return dataset(partition_of(context)["dataset"], overrides_of(context))


def overrides_of(context: "dg.AssetExecutionContext") -> dict[str, Any]:
    """The run's overrides, by dotted key."""
    overrides: dict[str, Any] = json.loads(context.run.tags.get(OVERRIDES_TAG, "{}"))
    return overrides
