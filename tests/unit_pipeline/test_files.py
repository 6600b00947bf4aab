"""Files written whole or not at all."""

import os
from pathlib import Path

import pytest

from pipeline.files import atomic_path


def test_bytes_are_on_the_disk_before_the_name_and_then_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power cut after a rename alone leaves a file of zeros under the right name."""
    path, done = tmp_path / "result", []
    path.write_text("before")
    sync = os.fsync

    def noted(descriptor: int) -> None:
        done.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[-1], path.read_text()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert done == [("tmp", "before"), (tmp_path.name, "whole")]


def test_what_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "result"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise OSError("full")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("result", "before")]
