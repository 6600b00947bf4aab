"""Tests between trained models, from the metrics that are kept of every user."""

import numpy as np
import polars as pl
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from assets import terminal
from assets.comparisons import significance_table
from assets.model_groups import group_of
from assets.results import NothingThereError, significance
from assets.store import stored_path


def metrics(model: str) -> pl.DataFrame:
    return pl.read_parquet(stored_path(group_of(model).key("user_metrics"), f"tiny|{model}"))


def test_a_model_is_compared_with_every_other(finished):
    rows = significance("tiny", "scale", "ndcg_at_20")
    assert {row["model"] for row in rows} == {"lightgcn", "bpr"}
    assert [row["other"] for row in rows] == sorted((row["other"] for row in rows), reverse=True)
    own = metrics("scale")["ndcg_at_20"]
    p_values = {}
    for row in rows:
        other = metrics(row["model"])["ndcg_at_20"]
        assert row["users"] == len(own)
        assert row["mean"] == pytest.approx(own.mean())
        assert row["other"] == pytest.approx(other.mean())
        assert row["difference"] == pytest.approx(own.mean() - other.mean())
        assert row["low"] <= row["difference"] <= row["high"]
        p_values[row["model"]] = stats.ttest_rel(own.to_numpy(), other.to_numpy()).pvalue
    smaller, larger = sorted(p_values.values())
    corrected = [min(1, 2 * smaller), max(min(1, 2 * smaller), larger)]
    assert sorted(row["t_test"] for row in rows) == pytest.approx(corrected)
    table = terminal.significance_table("scale", "ndcg_at_20", rows)
    assert "SCALE, test N@20" in str(table.title)
    assert table.row_count == 2


def test_what_is_not_there_is_named(finished):
    with pytest.raises(NothingThereError, match="freedom is not trained on tiny; train it with: scale run"):
        significance("tiny", "freedom", "recall_at_20")
    with pytest.raises(NothingThereError, match=r"no metric 'recall_at_7' in .*; there are recall_at_10"):
        significance("tiny", "scale", "recall_at_7")
    with pytest.raises(ValueError, match="did you mean scale"):
        significance("tiny", "scaled", "recall_at_20")


def test_every_model_is_held_against_scale_by_its_users_means_over_seeds():
    rng = np.random.default_rng(0)
    means = {  # (3 seeds, 60 users)
        "scale": rng.uniform(0.1, 0.5, (3, 60)),
        "bpr": rng.uniform(0.0, 0.45, (3, 60)),
        "lightgcn": rng.uniform(0.05, 0.5, (3, 60)),
        "freedom": rng.uniform(0.05, 0.48, (3, 60)),
    }
    found = {
        model: pl.DataFrame({"seed": np.repeat([0, 1, 2], 60), "user": [*range(60)] * 3, "recall_at_20": each.ravel()})
        for model, each in means.items()
    }
    table = significance_table(found, {"scale": 0.9, "bpr": 0.1, "lightgcn": 0.2, "freedom": 0.3})
    assert table["against"].unique(maintain_order=True).to_list() == ["scale", "lightgcn", "freedom"]
    own = table.filter(against="scale")
    assert own["model"].to_list() == ["bpr", "lightgcn", "freedom"]
    raw: dict[str, list[float]] = {"t_test": [], "wilcoxon": []}
    for row in own.iter_rows(named=True):
        gaps = (means[row["model"]] - means["scale"]).mean(0)
        assert row["users"] == 60
        assert row["difference"] == pytest.approx(gaps.mean())
        assert row["effect_size"] == pytest.approx(gaps.mean() / gaps.std(ddof=1))
        interval = stats.t.interval(0.95, 59, gaps.mean(), stats.sem(gaps))
        assert_allclose([row["low"], row["high"]], interval)
        raw["t_test"].append(stats.ttest_1samp(gaps, 0).pvalue)
        raw["wilcoxon"].append(stats.wilcoxon(gaps, zero_method="pratt", method="approx").pvalue)
    for test, values in raw.items():  # Holm over the three: times 3, 2 and 1, never falling
        order = np.argsort(values)
        corrected = np.empty(3)
        corrected[order] = np.minimum(1, np.maximum.accumulate(np.array([3, 2, 1]) * np.array(values)[order]))
        assert_allclose(own[test].to_numpy(), corrected)
    assert significance_table({"bpr": found["bpr"]}, {"bpr": 0.1}).is_empty()
    assert significance_table({"scale": found["scale"]}, {"scale": 0.1}).is_empty()
