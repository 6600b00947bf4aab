"""The whole pipeline on published data, through the same assets as every run."""

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets.results import latest_runs
from assets.store import stored_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def real(shared: Path, tmp_path: Path, open_pipeline) -> Iterator:
    with open_pipeline(tmp_path) as pipeline:
        yield pipeline


def stored(asset: str, dataset: str) -> pl.LazyFrame:
    return pl.scan_parquet(stored_path(dg.AssetKey(asset), dataset))


def rows(asset: str, dataset: str) -> int:
    return stored(asset, dataset).select(pl.len()).collect().item()


def test_gift_cards_from_raw_amazon_files(real):
    ran = real.run("gift-cards", ["scale", "lightgcn"], training__epochs=60)
    assert len(ran) == 24 + 2 * 3
    assert rows("raw_reviews", "gift-cards") == 2972
    assert stored("raw_reviews", "gift-cards").select("user", "item").unique().collect().height == 2965
    published = stored("raw_reviews", "gift-cards").select(pl.col("user", "item").n_unique()).collect()
    assert published.row(0) == (458, 148)
    # Repeated reviews counted towards the published 5-core; pairs alone leave a little less.
    assert (rows("users", "gift-cards"), rows("items", "gift-cards")) == (453, 147)
    scale, lightgcn = latest_runs(real.instance, "gift-cards", ["scale", "lightgcn"])
    assert scale["recall_at_20"] > 0.2
    assert lightgcn["recall_at_20"] > 0.2


def test_yelp_tables_with_written_profiles(real):
    if "SCALE_TEST_ENCODER" not in os.environ:
        pytest.skip("install the dev extra: it carries the encoder")
    real.run("xrec-yelp", ["scale", "lightgcn"], training__patience=10)  # both stop early: docs/LOG.md has the figures
    counts = [rows(name, "xrec-yelp") for name in ("interactions", "users", "items")]
    assert counts == [32_319, 1_845, 1_981]
    scale, lightgcn = latest_runs(real.instance, "xrec-yelp", ["scale", "lightgcn"])
    assert lightgcn["recall_at_20"] == pytest.approx(0.223, abs=0.015)
    assert scale["recall_at_20"] > 0.19


def test_baby_reproduces_the_known_lightgcn(real):
    real.run("amazon14-baby", ["lightgcn"])
    counts = [rows(name, "amazon14-baby") for name in ("interactions", "users", "items")]
    assert counts == [160_792, 19_445, 7_050]
    (lightgcn,) = latest_runs(real.instance, "amazon14-baby", ["lightgcn"])
    assert lightgcn["recall_at_20"] == pytest.approx(0.0744, abs=0.003)
    assert lightgcn["ndcg_at_20"] == pytest.approx(0.0313, abs=0.002)
