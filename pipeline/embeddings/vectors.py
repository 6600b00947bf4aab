"""What every kind of feature vector shares: the result of a stage, its error, and unit norms."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


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


def normalised(vectors: Vectors) -> Vectors:
    """`vectors` (n, d) with rows of unit L2 norm, as float32; a zero row stays zero."""
    # In float64, so that the squares of very small or large features neither vanish nor overflow.
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    return np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0).astype(np.float32)
