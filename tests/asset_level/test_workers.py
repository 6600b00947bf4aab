"""What trainings side by side share, and how their memory is counted."""

import os
import resource

import pytest

from assets import workers
from pipeline.settings import ComputeSettings


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_cores_are_those_that_this_process_may_use(quota, cores, tmp_path, monkeypatch):
    (tmp_path / "some" / "group").mkdir(parents=True)
    (tmp_path / "some" / "group" / "cpu.max").write_text(quota)
    (tmp_path / "own").write_text("0::/some/group\n")
    monkeypatch.setattr(workers, "PROCESS_GROUP", tmp_path / "own")
    monkeypatch.setattr(workers, "GROUPS", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert workers.cores() == cores
    assert workers.threads(2, ComputeSettings(kind="local")) == max(1, cores // 2)
    assert workers.threads(1, ComputeSettings(kind="local")) is None


def test_without_a_control_group_affinity_alone_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PROCESS_GROUP", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 3}, raising=False)
    assert workers.cores() == 3


def test_a_process_s_memory_is_in_billions_of_bytes(monkeypatch):
    used = resource.struct_rusage([0.0, 0.0, 10**6, *[0] * 13])  # KiB
    monkeypatch.setattr(resource, "getrusage", lambda whose: used)
    assert workers.process_peak_memory() == pytest.approx(1.024)
