"""The demo's planted structure has one right answer: texts help."""

import numpy as np
import polars as pl
import pytest

from assets.model_groups import group_of
from assets.store import stored_path
from model.significance import paired


@pytest.mark.slow
def test_scale_beats_lightgcn_on_planted_interests(pipeline):
    values: dict[str, list[np.ndarray]] = {"scale": [], "lightgcn": []}
    for seed in range(3):
        pipeline.run("demo", ["scale", "lightgcn"], training__seed=seed)
        for model, collected in values.items():
            path = stored_path(group_of(model).key("user_metrics"), f"demo|{model}")
            collected.append(pl.read_parquet(path).sort("user")["recall_at_20"].to_numpy())
    for scale, lightgcn in zip(values["scale"], values["lightgcn"], strict=True):
        comparison = paired(lightgcn, scale)
        assert comparison.difference > 0.2 * lightgcn.mean()
        assert max(comparison.t_test, comparison.wilcoxon) < 1e-3
