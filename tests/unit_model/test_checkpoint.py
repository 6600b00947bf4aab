"""A checkpoint comes back as it was saved, or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

SAVED = Checkpoint(
    {
        "weights.table": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "weights.none": torch.zeros(0, 4),
        "weights.half": torch.ones(2, dtype=torch.bfloat16),
        "weights.mask": torch.tensor([True, False]),
        "optimizer.step": torch.tensor(3.0),
        "generator.batches": torch.Generator().manual_seed(0).get_state()[:64],
    },
    {"history": [{"epoch": 1, "losses": {"bpr": 0.1}}]},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, SAVED, "a run")
    return path


def test_a_checkpoint_comes_back_as_it_was(path: Path) -> None:
    found = load_checkpoint(path, "a run")
    assert found is not None
    assert found.progress == SAVED.progress
    assert found.tensors.keys() == SAVED.tensors.keys()
    for name, tensor in SAVED.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert list(path.parent.iterdir()) == [path]


def test_every_flipped_bit_is_noticed_and_mended(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        caplog.clear()
        assert load_checkpoint(path, "a run") is None
        assert f"{path} " in caplog.text
        assert "training starts afresh" in caplog.text
    save_checkpoint(path, SAVED, "a run")
    assert load_checkpoint(path, "a run") is not None


def test_a_tensor_under_another_name_is_noticed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"weights.half"', b'"weights.hall"'))
    assert load_checkpoint(path, "a run") is None
    assert f"{path} cannot be read (its checksum is wrong, so it is damaged)" in caplog.text


def test_a_file_without_a_checksum_is_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(SAVED.tensors, path, metadata={"fingerprint": "a run", "progress": "{}"})
    assert load_checkpoint(path, "a run") is None
    assert f"{path} cannot be read ('checksum')" in caplog.text
