"""Latent semantic analysis: an encoder that needs no trained model."""

from typing import Any

import numpy as np

from pipeline.embeddings.vectors import Vectors
from pipeline.settings import EmbeddingSettings

_SEED = 0
_ITERATIONS = 7
_LARGEST_VOCABULARY = 100_000
# A direction whose singular value is this much smaller than the first is rounding, not meaning.
_SMALLEST_SHARE = 1e-5


class LatentSemanticEncoder:
    """Latent semantic analysis: TF-IDF and a truncated SVD, learnt from a corpus; needs no model.

    Always gives `settings.dimensions` numbers. Where the corpus spans fewer dimensions, the rest are zero.
    """

    def __init__(self, corpus: list[str], settings: EmbeddingSettings) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        self.dimensions = settings.dimensions
        self.vectorizer: Any = TfidfVectorizer(
            sublinear_tf=True, stop_words="english", max_features=_LARGEST_VOCABULARY, dtype=np.float32
        )
        self.components = np.zeros((0, settings.dimensions), dtype=np.float32)  # (terms, d)
        documents = [text for text in corpus if text.strip()]
        analyse = self.vectorizer.build_analyzer()
        if any(analyse(text) for text in documents):
            weights = self.vectorizer.fit_transform(documents)  # (documents, terms) sparse
            rank = min(settings.dimensions, *weights.shape)
            with threadpool_limits(1, "blas"):  # with more, sums round by their number
                _, values, directions = randomized_svd(weights, rank, n_iter=_ITERATIONS, random_state=_SEED)
            meaningful = int((values > _SMALLEST_SHARE * values[0]).sum())
            self.components = np.zeros((weights.shape[1], settings.dimensions), dtype=np.float32)
            self.components[:, :meaningful] = directions[:meaningful].T
        self.counts: dict[str, int] = {
            "used_dimensions": int(self.components.any(axis=0).sum()),
            "corpus_texts": len(documents),
            "terms": self.components.shape[0],
        }

    def encode(self, texts: list[str]) -> Vectors:
        """Vectors float32 (n, d) of `texts`, not yet normalised; a text without a word of the corpus gets zeros."""
        if not texts or not self.components.shape[0]:
            return np.zeros((len(texts), self.dimensions), dtype=np.float32)
        return np.asarray(self.vectorizer.transform(texts) @ self.components, dtype=np.float32)
