"""Files written whole or not at all."""

import os
from pathlib import Path

import pytest

from pipeline.files import atomic_folder, atomic_path


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was put on the disk, the end of its name, and what `result`, or the file in it, held at that moment."""
    done, sync, path = [], os.fsync, tmp_path / "result"

    def noted(descriptor: int) -> None:
        held = path if path.is_file() else path / "part"
        done.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[-1], held.read_text()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return done


def test_bytes_are_on_the_disk_before_the_name_and_then_the_name(tmp_path: Path, synced: list[tuple[str, str]]):
    """A power cut after a rename alone leaves a file of zeros under the right name."""
    path = tmp_path / "result"
    path.write_text("before")
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert synced == [("tmp", "before"), (tmp_path.name, "whole")]


def test_so_are_the_files_of_a_folder(tmp_path: Path, synced: list[tuple[str, str]]):
    path = tmp_path / "result"
    path.mkdir()
    (path / "part").write_text("before")
    with atomic_folder(path) as temporary:
        (temporary / "part").write_text("whole")
    assert synced == [("part", "before"), (tmp_path.name, "whole")]
    assert [found.name for found in tmp_path.iterdir()] == ["result"]


def test_what_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "result"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise OSError("full")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("result", "before")]
