"""Models by what they read: each group is trained, evaluated and recommended from by assets of its own."""

from dataclasses import dataclass

import dagster as dg

from assets.partitions import by_dataset_and_model
from assets.versions import settings_key
from model.registry import MODELS


@dataclass(frozen=True)
class ModelGroup:
    """The models that read the same things."""

    name: str
    needs: frozenset[str]
    models: list[str]

    def key(self, asset: str) -> dg.AssetKey:
        """Key of one of the group's assets: `trained_model`, `user_metrics` or `recommendations`."""
        return dg.AssetKey([self.name, asset])

    @property
    def settings_key(self) -> dg.AssetKey:
        """External asset of the models' settings and code, by dataset and model."""
        return settings_key(f"{self.name}_models")

    @property
    def partitions(self) -> dg.MultiPartitionsDefinition:
        return by_dataset_and_model(self.models)


def model_groups() -> list[ModelGroup]:
    """Every set of needs in the registry with its models."""
    groups: dict[frozenset[str], list[str]] = {}
    for name, entry in MODELS.items():
        groups.setdefault(entry.needs, []).append(name)
    named = {"_".join(sorted(needs - {"interactions"})) or "interactions": needs for needs in groups}
    return [ModelGroup(name, needs, sorted(groups[needs])) for name, needs in sorted(named.items())]


def group_of(model: str) -> ModelGroup:
    """The group that a model belongs to."""
    return next(group for group in model_groups() if model in group.models)
