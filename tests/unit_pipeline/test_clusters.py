"""Ray clusters of other shapes than this machine's: with GPUs, and with less memory than is shared."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.compute import Cluster, cluster
from pipeline.graphs import knn, products
from pipeline.graphs.execution import Execution
from pipeline.settings import ComputeSettings

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]' -c constraints.txt")

pytestmark = pytest.mark.slow


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Cluster]]:
    """Starts a cluster with what Ray is to take the machine for; its GPUs are numbers that are given out."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    def started(**resources: Any) -> Cluster:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, **resources)
        found = cluster(ComputeSettings(kind="ray"))
        assert found is not None
        return found

    yield started
    ray.shutdown()


def seen(folder: Path, count: int) -> str:
    """The GPUs that this process sees, as soon as so many processes have come to look."""
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"]


class _Engine:
    """Tells its GPUs and how many rows it takes at a time."""

    def __init__(self, folder: Path, count: int) -> None:
        self._seen = seen(folder, count)

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.table({"gpus": [self._seen], "rows": [table.num_rows]})


def test_jobs_and_engines_have_gpus_of_their_own(start: Callable[..., Cluster], tmp_path: Path) -> None:
    found = start(num_cpus=4, num_gpus=2)

    def job() -> tuple[str, int]:
        gpu = seen(tmp_path / "jobs", 2)
        (tmp_path / gpu).touch(exist_ok=False)  # fails where another one holds it
        time.sleep(0.5)
        (tmp_path / gpu).unlink()
        return gpu, len(ray.get_runtime_context().get_accelerator_ids()["GPU"])

    with found.pool(4, {}, on_gpu=True) as pool:
        jobs = [pool.submit(job) for _ in range(4)]
    assert {future.result() for future in jobs} == {("0", 1), ("1", 1)}

    tables = [pa.table({"row": range(length)}) for length in [3] * 11 + [2]]
    for gpus, expected in ((1, {"0", "1"}), (2, {"0,1"})):
        engines = len(expected)
        told = pa.concat_tables(found.batches(_Engine, [tmp_path / f"{gpus} each", engines], tables, gpus))
        assert set(told["gpus"].to_pylist()) == expected
        assert sorted(told["rows"].to_pylist()) == [2] + [3] * 11
    assert found.call(seen, tmp_path / "call", 1) in ("0", "1")


def test_more_than_fits_the_object_store_gives_the_same_graph(
    start: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = start(num_cpus=2, object_store_memory=80 * 2**20, object_spilling_directory=str(tmp_path))
    monkeypatch.setattr(products, "LARGEST_BLOCK", 16)
    rng = np.random.default_rng(0)
    users, items = (rng.standard_normal((rows, 300_000), np.float32) for rows in (40, 48))  # 48 and 58 MB
    there = knn.nearest(users, items, 5, Execution(cluster=found))
    here = knn.nearest(users, items, 5)
    assert there.ids.tobytes() == here.ids.tobytes()
    assert there.similarities.tobytes() == here.similarities.tobytes()
    spilled = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert spilled >= min(users.nbytes, items.nbytes)
