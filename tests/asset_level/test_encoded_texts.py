"""After an edit an encoder sees the changed texts alone, graphs compute few rows, and a rebuild gives the same."""

import json
import os
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from assets import home
from assets.store import stored_path
from pipeline.row_cache import size

STAGES = ("item_text_embeddings", "user_text_embeddings")
ITEM_GRAPHS = ("item_text_similarity_graph", "item_subspace_graph")
GRAPHS = (
    *ITEM_GRAPHS,
    "user_similarity_graph",
    "user_subspace_graph",
    "user_item_similarity_graph",
    "user_item_subspace_graph",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SCALE_TEST_ENCODER" not in os.environ, reason="install the dev extra: it carries the encoder"),
]


def stored(name: str) -> pl.DataFrame:
    return pl.read_parquet(stored_path(dg.AssetKey(name), "shop"))


def summaries() -> list[set[str]]:
    return [set(stored(name)["summary"]) for name in ("item_profiles", "user_profiles")]


def test_one_items_description(shop, open_pipeline, tmp_path: Path):
    changes = {
        "embeddings__encoder": "sentence-transformers",
        "embeddings__model": os.environ["SCALE_TEST_ENCODER"],
        "training__epochs": 1,
    }

    def refresh():
        report = pipeline.refresh("shop", ["scale"], **changes).run()
        return {ran.node.name: ran.shown for ran in report.ran if ran.node.name in STAGES + GRAPHS}

    with open_pipeline(shop.home) as pipeline:
        before = refresh()
        assert [before[name]["rows_reused"] for name in STAGES] == [0, 0]
        known = summaries()
        item = stored("interactions").filter(pl.col("split") == "train")["item"].mode().min()
        raw_id = stored("items")["raw_id"][item]
        record = next(record for record in shop.records("meta.json") if record["asin"] == raw_id)
        described = record | {"description": ["Glows in the dark, folds flat and sings at noon, never twice the same."]}
        shop.edit("meta.json", lambda text: text.replace(json.dumps(record), json.dumps(described)))

        after = refresh()
        new = [len(there - earlier) for there, earlier in zip(summaries(), known, strict=True)]
        assert new[0] == 1
        assert 0 < new[1] < len(known[1]) / 2
        assert [after[name]["rows_computed"] for name in STAGES] == new
        texts = sum(map(len, summaries()))
        assert sum(after[name]["rows_reused"] for name in STAGES) == texts - sum(new)
        kept = size(home.cache_folder("embeddings", "shop"))
        assert (kept.rows, kept.in_use) == (sum(map(len, known)) + sum(new), texts)
        for name in GRAPHS:
            rows = len(stored("items" if name in ITEM_GRAPHS else "users"))
            assert before[name]["rows_computed"] == after[name]["rows_computed"] + after[name]["rows_reused"] == rows
        for name in ITEM_GRAPHS:
            assert 1 <= after[name]["rows_computed"] < stored("items").height / 2
        refreshed = [stored(name) for name in STAGES + GRAPHS]

    with open_pipeline(tmp_path / "clean") as pipeline:
        rebuilt = refresh()
        assert not any(rebuilt[name]["rows_reused"] for name in STAGES + GRAPHS)
        assert all(new.equals(old) for new, old in zip(map(stored, STAGES + GRAPHS), refreshed, strict=True))
