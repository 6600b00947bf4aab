"""Images: visual features in the order of the item ids."""

import numpy as np
import polars as pl

from pipeline.embeddings.vectors import Embeddings, normalised


def align_images(images: pl.DataFrame | pl.LazyFrame, items: pl.DataFrame) -> Embeddings:
    """Visual features in the order of the item ids.

    Parameters
    ----------
    images
        item (raw id) and vector (array of d_v float32). Of a lazy frame only the rows of `items` are ever in memory.
    items
        raw_id; one row per item, in id order.

    Returns
    -------
    Embeddings
        vectors (N, d_v). An item without a usable vector (none, zero, or not finite) has the mean of the others'
        vectors. (0, 0) if no item has one.
    """
    wanted = items.select(item="raw_id").with_row_index("row").lazy()
    found = (
        images.lazy()
        .select("item", "vector")
        .with_row_index("place")
        .join(wanted, on="item", how="inner")
        .sort("row", "place")
        .select("row", "vector")
        .collect(engine="streaming")
    )
    first = found.unique("row", keep="first", maintain_order=True)
    features = first["vector"].to_numpy().astype(np.float32, copy=False)  # (n, d_v)
    usable = np.isfinite(features).all(axis=1) & features.any(axis=1)
    counts = {
        "images": first.height,
        "duplicate_images": found.height - first.height,
        "unusable_images": int((~usable).sum()),
        "missing_images": items.height - int(usable.sum()),
    }
    if not usable.any():
        return Embeddings(np.zeros((0, 0), dtype=np.float32), counts)
    vectors = np.empty((items.height, features.shape[1]), dtype=np.float32)
    vectors[:] = features[usable].mean(axis=0, dtype=np.float64)
    vectors[first["row"].to_numpy()[usable]] = features[usable]
    vectors = normalised(vectors)
    return Embeddings(vectors, counts | {"zero_vectors": int((~vectors.any(axis=1)).sum())})
