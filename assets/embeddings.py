"""Embeddings: profile texts and images as unit vectors."""

import dagster as dg
import numpy as np
import polars as pl

from assets import home
from assets.nodes import GPU
from assets.progress import Progress
from assets.settings import partition_of, settings_of
from assets.stage import Check, Result, stage
from pipeline.compute import cluster
from pipeline.embeddings import Embeddings, align_images, embed_texts

CHECKS = {"unit_norms": "Every vector has norm 1, or is zero because its text is empty."}


@stage(group="embeddings", code=["pipeline.embeddings.text"], settings=["embeddings"], checks=CHECKS, pool=GPU)
def item_text_embeddings(context: dg.AssetExecutionContext, item_profiles: pl.DataFrame, progress: Progress) -> Result:
    """Text vector of every item, (N, d_t)."""
    texts = item_profiles["summary"].to_list()
    cache = home.cache_folder("embeddings", partition_of(context)["dataset"])
    bar = progress.bar(context, "encoding items")
    settings = settings_of(context)
    where = cluster(settings.compute)
    return _result(embed_texts(texts, settings.embeddings, texts, cache, "items", bar, where))


@stage(group="embeddings", code=["pipeline.embeddings.text"], settings=["embeddings"], checks=CHECKS, pool=GPU)
def user_text_embeddings(
    context: dg.AssetExecutionContext, user_profiles: pl.DataFrame, item_profiles: pl.DataFrame, progress: Progress
) -> Result:
    """Text vector of every user, (M, d_t), in the items' space."""
    texts, corpus = user_profiles["summary"].to_list(), item_profiles["summary"].to_list()
    cache = home.cache_folder("embeddings", partition_of(context)["dataset"])
    bar = progress.bar(context, "encoding users")
    settings = settings_of(context)
    where = cluster(settings.compute)
    return _result(embed_texts(texts, settings.embeddings, corpus, cache, "users", bar, where))


@stage(group="embeddings", code=["pipeline.embeddings.images"], checks=CHECKS)
def item_visual_embeddings(context: dg.AssetExecutionContext, raw_images: pl.LazyFrame, items: pl.DataFrame) -> Result:
    """Image vector of every item, (N, d_v); (0, 0) where the dataset has no images."""
    return _result(align_images(raw_images, items))


def _result(embeddings: Embeddings) -> Result:
    norms = np.linalg.norm(embeddings.vectors, axis=1)
    wrong = int(((np.abs(norms - 1) > 1e-3) & (norms != 0)).sum())
    return Result(embeddings.vectors, dict(embeddings.counts), {"unit_norms": Check(wrong == 0, {"wrong": wrong})})
