"""An encoder on every GPU, or core, of a cluster."""

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.embeddings.sentence import Rows, SentenceEncoder
from pipeline.embeddings.vectors import Vectors
from pipeline.settings import EmbeddingSettings

if TYPE_CHECKING:
    from pipeline.compute import Cluster

TEXTS = 256  # that an encoder takes at a time, and encodes again if it is lost


class SpreadEncoder:
    """What `SentenceEncoder` is here, on the nodes of a cluster; models, libraries and devices are theirs."""

    def __init__(self, settings: EmbeddingSettings, cluster: "Cluster") -> None:
        self._settings, self._cluster = settings, cluster

    @cached_property
    def identity(self) -> list[Any]:
        """As of an encoder there: its device and threads show in a vector's last bits."""
        found: list[Any] = self._cluster.call(_told, self._settings, "identity")
        return found

    @cached_property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self._cluster.call(_told, self._settings, "dimensions"))

    def encode(self, texts: list[str]) -> Iterator[tuple[Rows, Vectors]]:
        """See `SentenceEncoder.encode`: a text has its vector in any block; those of about a length go together."""
        order = np.argsort([-len(text) for text in texts], kind="stable")
        tables = (
            pa.table({"row": rows, "text": [texts[row] for row in rows]})
            for rows in (order[first : first + TEXTS] for first in range(0, len(order), TEXTS))
        )
        for made in self._cluster.batches(_Encoder, [self._settings], tables):
            vectors = made["vector"].combine_chunks().flatten().to_numpy()
            yield made["row"].to_numpy(), vectors.reshape(made.num_rows, -1)


def _encoder(settings: EmbeddingSettings) -> SentenceEncoder:
    """One that has a core to itself where there is no GPU, whatever its process did before."""
    import torch

    torch.set_num_threads(1)
    return SentenceEncoder(settings)


def _told(settings: EmbeddingSettings, name: str) -> Any:
    return getattr(_encoder(settings), name)


class _Encoder:
    """Takes `row` and `text`, gives `row` and `vector`."""

    def __init__(self, settings: EmbeddingSettings) -> None:
        self._encoder = _encoder(settings)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table["row"].to_numpy()
        parts = list(self._encoder.encode(table["text"].to_pylist()))
        vectors = np.concatenate([vectors for _, vectors in parts])
        order = rows[np.concatenate([part for part, _ in parts])]
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.table({"row": order, "vector": lists})
