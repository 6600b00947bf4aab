"""Profile texts as unit vectors; a text that has been encoded before is not encoded again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline.embeddings.lsa import LatentSemanticEncoder
from pipeline.embeddings.sentence import SentenceEncoder
from pipeline.embeddings.spread import SpreadEncoder
from pipeline.embeddings.vectors import EmbeddingError, Embeddings, Vectors, normalised
from pipeline.row_cache import RowCache, row_key
from pipeline.settings import EmbeddingSettings

if TYPE_CHECKING:
    from pipeline.compute import Cluster

Progress = Callable[[int, int], None]

_ROWS_PER_SHARD = 4096


def embed_texts(
    texts: list[str],
    settings: EmbeddingSettings,
    corpus: list[str],
    cache: Path,
    used_by: str,
    progress: Progress | None = None,
    cluster: "Cluster | None" = None,
) -> Embeddings:
    """Encode profile texts as unit vectors.

    Parameters
    ----------
    texts
        n texts; "" or white space where there is none.
    corpus
        The texts that LSA learns from: the items', whichever side is encoded, so that users and items lie in one
        space. Encoders that are already trained do not look at it.
    cache
        Folder of vectors that trained encoders gave before, a `RowCache`. The result is the same, bit for bit, with
        whatever it holds. What is encoded is in it as soon as it is there, also when a later text fails.
    used_by
        Under which name to note the rows of the cache that make up this result: "items" or "users".
    progress
        Called with (done, total) distinct texts.
    cluster
        Where trained encoders work. Default: here.

    Returns
    -------
    Embeddings
        Its counts tell how many texts were encoded (`rows_computed`) and taken from the cache (`rows_reused`).

    Raises
    ------
    EmbeddingError
        If the encoder cannot be loaded, or gives a vector that is not finite.
    RowCacheError
        If the cache cannot be read.
    """
    distinct = sorted({text for text in texts if text.strip()})
    if settings.encoder == "lsa":
        latent = LatentSemanticEncoder(corpus, settings)
        encoded = latent.encode(distinct)
        _check_finite(encoded, distinct)
        counts = {**latent.counts, "rows_computed": len(distinct), "rows_reused": 0}
        if progress is not None:
            progress(len(distinct), len(distinct))
    else:
        encoder = SentenceEncoder(settings) if cluster is None else SpreadEncoder(settings, cluster)
        encoded, counts = _sentence_vectors(distinct, encoder, cache, used_by, progress)
    dimensions = encoded.shape[1]
    table = np.concatenate([normalised(encoded), np.zeros((1, dimensions), dtype=np.float32)])  # last row: no text
    rows_by_text = {text: row for row, text in enumerate(distinct)}
    rows = np.array([rows_by_text.get(text, len(distinct)) for text in texts], dtype=np.int64)
    vectors = table[rows]
    empty = int((rows == len(distinct)).sum())
    return Embeddings(
        vectors,
        {
            "texts": len(texts),
            "empty_texts": empty,
            "duplicate_texts": len(texts) - empty - len(distinct),
            "zero_vectors": int((~vectors.any(axis=1)).sum()),
            "dimensions": dimensions,
            **counts,
        },
    )


def _sentence_vectors(
    texts: list[str], encoder: SentenceEncoder | SpreadEncoder, cache: Path, used_by: str, progress: Progress | None
) -> tuple[Vectors, dict[str, int]]:
    """Vectors (n, d) of distinct texts, not yet normalised; the encoder loads its model only if one is missing."""
    setup = row_key(encoder.identity)
    keys = [row_key(setup, text) for text in texts]
    with RowCache(cache, {"vector": pl.Binary}, chunk=_ROWS_PER_SHARD) as kept:
        found = dict(kept.lookup(keys).iter_rows())
        missing = np.array([row for row, key in enumerate(keys) if key not in found], dtype=np.int64)
        done = reused = len(found)
        if progress is not None:
            progress(done, len(texts))
        known = next(iter(found.values()), None)
        dimensions = encoder.dimensions if known is None else len(known) // np.float32().itemsize
        table = np.empty((len(texts), dimensions), dtype=np.float32)
        for row, key in enumerate(keys):
            if key in found:
                table[row] = np.frombuffer(found.pop(key), dtype=np.float32)
        for part, vectors in encoder.encode([texts[row] for row in missing]):
            rows = missing[part]
            _check_finite(vectors, [texts[row] for row in rows])
            table[rows] = vectors
            for row, vector in zip(rows, vectors, strict=True):
                kept.add(keys[row], vector.tobytes())
            done += len(rows)
            if progress is not None:
                progress(done, len(texts))
        kept.mark_in_use(used_by, keys)
    return table, {"rows_computed": len(missing), "rows_reused": reused}


def _check_finite(vectors: Vectors, texts: list[str]) -> None:
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise EmbeddingError(
            f"the encoder gave vectors that are not finite for {len(wrong)} texts, first {texts[wrong[0]][:80]!r}"
        )
