"""Feature vectors: profile texts through an encoder, and images aligned to item ids. All rows have unit norm."""

from pipeline.embeddings.images import align_images
from pipeline.embeddings.text import embed_texts
from pipeline.embeddings.vectors import EmbeddingError, Embeddings, normalised

__all__ = ["EmbeddingError", "Embeddings", "align_images", "embed_texts", "normalised"]
