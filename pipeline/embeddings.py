"""Feature vectors: profile texts through an encoder, and images aligned to item ids. All rows have unit norm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.settings import EmbeddingSettings

Progress = Callable[[int, int], None]
Vectors = npt.NDArray[np.float32]

_LSA_SEED = 0
_LSA_ITERATIONS = 7
_LSA_LARGEST_VOCABULARY = 100_000
# A direction whose singular value is this much smaller than the first is rounding, not meaning.
_LSA_SMALLEST_SHARE = 1e-5
_BATCHES_PER_CALL = 16


class EmbeddingError(RuntimeError):
    """An encoder or features that cannot be used; the message says which, and what to do."""


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors and what happened on the way to them.

    Attributes
    ----------
    vectors
        float32 (n, d). Rows are L2-normalised; a row is zero where there is nothing to encode. (0, 0) stands for a
        modality that a dataset does not have.
    counts
        texts, empty_texts, duplicate_texts, zero_vectors, ...
    """

    vectors: Vectors
    counts: dict[str, int]


class Encoder(Protocol):
    """Turns texts into vectors; the same text always gets the same vector, up to rounding.

    Attributes
    ----------
    dimensions
        Length of a vector.
    counts
        What it has to tell of itself, for the run's report.
    """

    dimensions: int
    counts: dict[str, int]

    def encode(self, texts: list[str], progress: Progress | None = None) -> Vectors:
        """Vectors float32 (n, d) of `texts`, none of them empty, each once; not yet normalised."""
        ...


def embed_texts(
    texts: list[str], settings: EmbeddingSettings, corpus: list[str], progress: Progress | None = None
) -> Embeddings:
    """Encode profile texts as unit vectors.

    Parameters
    ----------
    texts
        n texts; "" or white space where there is none.
    corpus
        The texts that LSA learns from: the items', whichever side is encoded, so that users and items lie in one
        space. Encoders that are already trained do not look at it.
    progress
        Called with (encoded, total) distinct texts.

    Raises
    ------
    EmbeddingError
        If the encoder cannot be loaded, or gives a vector that is not finite.
    """
    distinct = sorted({text for text in texts if text.strip()})
    encoder: Encoder = (
        LatentSemanticEncoder(corpus, settings) if settings.encoder == "lsa" else SentenceEncoder(settings)
    )
    table = np.zeros((len(distinct) + 1, encoder.dimensions), dtype=np.float32)  # last row: no text
    if distinct:
        table[:-1] = encoder.encode(distinct, progress)
    wrong = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(wrong):
        raise EmbeddingError(
            f"the encoder gave vectors that are not finite for {len(wrong)} texts, first {distinct[wrong[0]][:80]!r}"
        )
    rows_by_text = {text: row for row, text in enumerate(distinct)}
    rows = np.array([rows_by_text.get(text, len(distinct)) for text in texts], dtype=np.int64)
    vectors = normalised(table)[rows]
    empty = int((rows == len(distinct)).sum())
    return Embeddings(
        vectors,
        {
            "texts": len(texts),
            "empty_texts": empty,
            "duplicate_texts": len(texts) - empty - len(distinct),
            "zero_vectors": int((~vectors.any(axis=1)).sum()),
            **encoder.counts,
        },
    )


def normalised(vectors: Vectors) -> Vectors:
    """`vectors` (n, d) with rows of unit L2 norm, as float32; a zero row stays zero."""
    # In float64, so that the squares of very small or large features neither vanish nor overflow.
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    return np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0).astype(np.float32)


class SentenceEncoder:
    """A sentence-transformers model; one without pooling of its own, as Contriever, gets the mean over its tokens.

    Raises
    ------
    EmbeddingError
        If the model cannot be loaded.
    """

    def __init__(self, settings: EmbeddingSettings) -> None:
        from sentence_transformers import SentenceTransformer

        try:
            self.model: Any = SentenceTransformer(
                settings.model,
                revision=settings.revision,
                device=None if settings.device == "auto" else settings.device,
            )
        except Exception as error:  # whatever the hub client, the file formats or the device raise
            raise EmbeddingError(
                f"embeddings.model = {settings.model!r} cannot be loaded on device {settings.device}: {error}. "
                f"Download it with `hf download {settings.model}` where there is a network, name a folder that holds a "
                "model, or choose embeddings.encoder = lsa, which needs none"
            ) from error
        limit = self.model.max_seq_length
        self.model.max_seq_length = min(settings.max_tokens, limit) if limit else settings.max_tokens
        self.batch_size = settings.batch_size
        self.dimensions: int = self.model.get_embedding_dimension()
        self.counts: dict[str, int] = {"dimensions": self.dimensions}

    def encode(self, texts: list[str], progress: Progress | None = None) -> Vectors:
        """See `Encoder.encode`. Texts of like length share a batch, so that little is spent on padding."""
        order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), texts[row]))
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        step = self.batch_size * _BATCHES_PER_CALL
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            vectors[rows] = self.model.encode(
                [texts[row] for row in rows], batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
            )
            if progress is not None:
                progress(start + len(rows), len(texts))
        return vectors


class LatentSemanticEncoder:
    """Latent semantic analysis: TF-IDF and a truncated SVD, learnt from a corpus; needs no model.

    Always gives `settings.dimensions` numbers. Where the corpus spans fewer dimensions, the rest are zero.
    """

    def __init__(self, corpus: list[str], settings: EmbeddingSettings) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        self.dimensions = settings.dimensions
        self.vectorizer: Any = TfidfVectorizer(
            sublinear_tf=True, stop_words="english", max_features=_LSA_LARGEST_VOCABULARY, dtype=np.float32
        )
        self.components = np.zeros((0, settings.dimensions), dtype=np.float32)  # (terms, d)
        documents = [text for text in corpus if text.strip()]
        analyse = self.vectorizer.build_analyzer()
        if any(analyse(text) for text in documents):
            weights = self.vectorizer.fit_transform(documents)  # (documents, terms) sparse
            rank = min(settings.dimensions, *weights.shape)
            _, values, directions = randomized_svd(weights, rank, n_iter=_LSA_ITERATIONS, random_state=_LSA_SEED)
            meaningful = int((values > _LSA_SMALLEST_SHARE * values[0]).sum())
            self.components = np.zeros((weights.shape[1], settings.dimensions), dtype=np.float32)
            self.components[:, :meaningful] = directions[:meaningful].T
        self.counts: dict[str, int] = {
            "dimensions": self.dimensions,
            "used_dimensions": int(self.components.any(axis=0).sum()),
            "corpus_texts": len(documents),
            "terms": self.components.shape[0],
        }

    def encode(self, texts: list[str], progress: Progress | None = None) -> Vectors:
        """See `Encoder.encode`; a text without a word of the corpus gets a zero vector."""
        if not self.components.shape[0]:
            return np.zeros((len(texts), self.dimensions), dtype=np.float32)
        vectors = np.asarray(self.vectorizer.transform(texts) @ self.components, dtype=np.float32)
        if progress is not None:
            progress(len(texts), len(texts))
        return vectors


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
