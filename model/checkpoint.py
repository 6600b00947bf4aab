"""Checkpoints of a training run: tensors and a JSON note in one safetensors file, written atomically.

A checksum of all that is read back is part of the note: safetensors itself has none.
"""

import json
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped.

    Parameters
    ----------
    tensors
        Weights, optimiser state and random generator states, by a flat name.
    progress
        Everything else, as JSON values.
    """

    tensors: dict[str, Tensor]
    progress: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Write to a temporary name in the same folder, then rename: a reader sees the old file or the new one.

    So does one after a power cut: the bytes are on the disk before the name.

    Parameters
    ----------
    fingerprint
        Names the run that this checkpoint belongs to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is overwritten
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    progress = json.dumps(checkpoint.progress)
    note = {"fingerprint": fingerprint, "progress": progress, "checksum": _checksum(tensors, progress)}
    try:
        save_file(tensors, temporary, metadata=note)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """The checkpoint at `path`, or None where there is none to go on from.

    A file of another run (its fingerprint differs) and a file that cannot be read or is damaged are left out with a
    warning; the next save replaces them.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            if note.get("fingerprint") != fingerprint:
                logger.warning("%s belongs to a run with other data or settings; training starts afresh", path)
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if note["checksum"] != _checksum(tensors, note["progress"]):
                raise ValueError("its checksum is wrong, so it is damaged")
            return Checkpoint(tensors, json.loads(note["progress"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning("%s cannot be read (%s); training starts afresh", path, error)
        return None


def _checksum(tensors: dict[str, Tensor], progress: str) -> str:
    """CRC-32 (hexadecimal) of the progress, and of the tensors' names, dtypes, shapes and bytes, in any order."""
    checksum = zlib.crc32(progress.encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def pack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put `prefix.` before every name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unpack(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
