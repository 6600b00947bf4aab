"""A text as a vector in the space of a dataset's item texts."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from pipeline.embeddings import EmbeddingError, normalised
from pipeline.embeddings.lsa import LatentSemanticEncoder
from pipeline.embeddings.sentence import SentenceEncoder
from pipeline.settings import EmbeddingSettings

SAME = 0.999  # cosine from which on a text counts as encoded as it was: devices differ in the last bits


class TextEncoder:
    """The dataset's own encoder, made when the first text comes; for one text at a time.

    Parameters
    ----------
    settings
        The dataset's `embeddings`.
    corpus
        Profile texts of the items, from which LSA learns its space.
    stored
        Their vectors as the pipeline has stored them, (N, d_t).
    """

    def __init__(self, settings: EmbeddingSettings, corpus: list[str], stored: np.ndarray) -> None:
        self._settings, self._corpus, self._stored = settings, corpus, stored

    def __call__(self, text: str) -> np.ndarray:
        """Unit vector (d_t,) float32 of a text; zeros where the encoder knows no word of it.

        Raises
        ------
        EmbeddingError
            The encoder cannot be loaded, or gives other vectors than those that are stored.
        """
        return self._encode(text)

    @property
    def is_quick(self) -> bool:
        """Whether a text takes less time than handing it to a thread does: by LSA, once its space is learnt."""
        return self._settings.encoder == "lsa" and "_encode" in vars(self)

    @cached_property
    def _encode(self) -> Callable[[str], np.ndarray]:
        encode = self._lsa() if self._settings.encoder == "lsa" else self._sentences()
        known = np.flatnonzero(self._stored.any(axis=1))
        if not known.size:
            raise EmbeddingError("no item of this dataset has a text, so a text cannot be placed among them")
        again, before = encode(self._corpus[known[0]]), self._stored[known[0]]
        if again.shape != before.shape or again @ before < SAME:
            raise EmbeddingError(
                "the dataset's settings name another encoder than the one that made its item vectors; bring both "
                "together with `scale refresh`, and start the service again"
            )
        return encode

    def _lsa(self) -> Callable[[str], np.ndarray]:
        encoder = LatentSemanticEncoder(self._corpus, self._settings)
        return lambda text: normalised(encoder.encode([text]))[0]

    def _sentences(self) -> Callable[[str], np.ndarray]:
        # The pipeline fills a batch up, so that a text takes as long as eight; at most a vector's last bits differ.
        encoder = SentenceEncoder(self._settings.model_copy(update={"batch_size": 1}))

        def encode(text: str) -> np.ndarray:
            ((_, vectors),) = encoder.encode([text])
            return normalised(vectors)[0]

        return encode
