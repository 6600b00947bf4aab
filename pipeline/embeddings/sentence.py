"""sentence-transformers encoders, with one vector per text and setup, whatever else is encoded beside it."""

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.embeddings.vectors import EmbeddingError, Vectors
from pipeline.fingerprint import code_version, file_states
from pipeline.settings import EmbeddingSettings, local_folder

# A short batch is filled up by repetition, so on a CPU a large one would make a single changed text dear.
_CPU_BATCH = 8
_GPU_BATCH = 128
_WIDTH_STEP = 8
_BATCHES_PER_BLOCK = 16
_TEXTS_PER_COUNT = 1024
_LIBRARIES = ("sentence-transformers", "transformers", "tokenizers", "torch")

Rows = npt.NDArray[np.int64]


class SentenceEncoder:
    """A sentence-transformers model; one without pooling of its own, as Contriever, gets the mean over its tokens.

    The last bits of a vector depend on the shape of the batch in which its text is encoded. Here that shape follows
    from the text alone: its token count is rounded up to a width, and every batch of a width has the same number of
    rows. So a text has the same vector, bit for bit, alone and among any others.

    The model is loaded when it is first needed.
    """

    def __init__(self, settings: EmbeddingSettings) -> None:
        self.settings = settings

    @cached_property
    def identity(self) -> list[Any]:
        """Everything but the text that a vector depends on, as JSON values.

        Raises
        ------
        EmbeddingError
            If the device is none of this machine's, a hub model that is not on this machine cannot be loaded, or the
            model's name holds an environment variable that is not set.
        """
        settings = self.settings
        if "${" in settings.model:
            raise EmbeddingError(f"embeddings.model = {settings.model!r}: set this environment variable first")
        files = file_states(folder) if (folder := local_folder(settings.model)) else {}
        if not files and self._commit() is None:
            self.model.eval()  # loading downloads it
        return [
            [settings.model, settings.revision, self._commit(), files],
            [settings.max_tokens, self.batch_size, *self._device_state()],
            [[library, version(library)] for library in _LIBRARIES],
            code_version(Path(__file__).read_text(encoding="utf-8")),
        ]

    @cached_property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self.model.get_embedding_dimension())

    @cached_property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.settings.batch_size or (_CPU_BATCH if self.device.type == "cpu" else _GPU_BATCH)

    @cached_property
    def device(self) -> Any:
        """The `torch.device` that encodes."""
        import torch

        name = self.settings.device
        if name == "auto":
            return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        try:
            torch.empty(0, device=name)
        except Exception as error:  # a wrong name, no such device, a torch built without it
            raise EmbeddingError(f"embeddings.device = {name!r} cannot be used: {error}; choose auto or cpu") from error
        return torch.device(name)

    @cached_property
    def model(self) -> Any:
        """The loaded `SentenceTransformer`.

        Raises
        ------
        EmbeddingError
            If it cannot be loaded.
        """
        from sentence_transformers import SentenceTransformer

        settings = self.settings
        try:
            # The commit that `identity` names, not a newer one that the hub may have.
            model = SentenceTransformer(
                settings.model, revision=self._commit() or settings.revision, device=str(self.device)
            )
        except Exception as error:  # whatever the hub client, the file formats or the device raise
            raise EmbeddingError(
                f"embeddings.model = {settings.model!r} cannot be loaded on device {settings.device}: {error}. "
                f"Download it with `hf download {settings.model}` where there is a network, name a folder that holds a "
                "model, or choose embeddings.encoder = lsa, which needs none"
            ) from error
        limit = model.max_seq_length
        with suppress(AttributeError):  # static embeddings read a text of any length
            model.max_seq_length = min(settings.max_tokens, limit) if limit else settings.max_tokens
        return model

    def encode(self, texts: list[str]) -> Iterator[tuple[Rows, Vectors]]:
        """Encode texts, none of them empty; the longest come first, so that memory runs out early if at all.

        Yields
        ------
        Rows of `texts`, and their vectors float32 (rows, d), not yet normalised; over all yields each row once.
        """
        widths = self._widths(texts) if texts else np.zeros(0, dtype=np.int64)
        for width in np.unique(widths)[::-1]:
            rows = np.flatnonzero(widths == width)
            batch, options = (self.batch_size, _padded(width)) if width else (1, {})
            step = batch * _BATCHES_PER_BLOCK
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                filled = np.resize(block, -(-len(block) // batch) * batch)
                vectors = self.model.encode(
                    [texts[row] for row in filled], batch_size=batch, show_progress_bar=False, **options
                )
                yield block, np.asarray(vectors[: len(block)], dtype=np.float32)

    def _widths(self, texts: list[str]) -> Rows:
        """Tokens to which each text is padded, (n,); zeros for a model that cannot be told: one text a batch then."""
        from sentence_transformers.base.modules import Transformer

        unpadded = np.zeros(len(texts), dtype=np.int64)
        own = self.model[0].processing_kwargs.get("text", {}) if isinstance(self.model[0], Transformer) else None
        if own is None or "padding" in own:
            return unpadded
        limit = min(self.model.max_seq_length, own.get("max_length", self.model.max_seq_length))
        if self._tokens(["a"], _padded(limit)).shape != (1, limit):
            return unpadded
        cut = {"processing_kwargs": {"text": {"max_length": limit}}}
        parts = [texts[start : start + _TEXTS_PER_COUNT] for start in range(0, len(texts), _TEXTS_PER_COUNT)]
        counts = np.concatenate([self._tokens(part, cut).sum(axis=1) for part in parts])
        return np.minimum(-(-counts // _WIDTH_STEP) * _WIDTH_STEP, limit)

    def _tokens(self, texts: list[str], options: dict[str, Any]) -> npt.NDArray[np.int64]:
        """1 for a token, 0 for padding, (n, width); (0, 0) for a model that does not tell."""
        prompt = self.model.prompts.get(self.model.default_prompt_name)
        mask = self.model.preprocess(texts, prompt=prompt, **options).get("attention_mask")
        return np.zeros((0, 0), dtype=np.int64) if mask is None else mask.numpy()

    def _commit(self) -> str | None:
        """Commit of the copy of a hub model on this machine: `main` may mean another one tomorrow."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        # sentence-transformers takes models of its own publisher without an owner.
        name = self.settings.model if "/" in self.settings.model else f"sentence-transformers/{self.settings.model}"
        for file in ("config.json", "modules.json"):
            try:
                found = try_to_load_from_cache(name, file, revision=self.settings.revision)
            except HFValidationError:  # a path
                return None
            if isinstance(found, str):
                return Path(found).parent.name
        return None

    def _device_state(self) -> list[Any]:
        """What of the device shows in a vector's last bits: kernels differ by chip, and by how work is shared."""
        import torch

        if self.device.type == "cpu":
            return ["cpu", torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
        return [self.device.type, torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None]


def _padded(width: int) -> dict[str, Any]:
    """Options of `encode` and `preprocess` that pad every text to `width` tokens."""
    return {"processing_kwargs": {"text": {"padding": "max_length", "max_length": int(width)}}}
