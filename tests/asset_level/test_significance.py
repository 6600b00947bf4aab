"""Tests between trained models, from the metrics that are kept of every user."""

import polars as pl
import pytest
from scipy import stats

from assets import terminal
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
