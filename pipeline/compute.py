"""Where the work of a stage is done: in this process, or on a Ray cluster, with the same results.

What is spread calls the functions that run here otherwise. Retries of what a lost worker had in hand, placement, and
spilling to disk are Ray's; Ray itself is imported when a cluster is asked for.
"""

import hashlib
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.settings import ComputeSettings

AHEAD = 2  # blocks in Ray's hands for each core: the next one is there when one is done
PATIENCE = 10.0  # seconds in which a cluster has to take a connection
ERROR = "error raised"  # the one column of a table that stands for an error
ROOMS = ("pipeline", "model", "assets")

Part = tuple[Any, ...]


class ComputeError(RuntimeError):
    """A cluster that cannot be used; the message says what to start, install or set."""


def cluster(settings: ComputeSettings) -> "Cluster | None":
    """The Ray cluster that the settings ask for; None to work in this process.

    Raises
    ------
    ComputeError
        If Ray is not installed, no cluster answers at `compute.address`, or it has other code of this project.
    """
    return None if settings.kind == "local" else Cluster(settings)


def blocks(
    cluster: "Cluster | None",
    function: Callable[..., Iterator[Any]],
    shared: Sequence[np.ndarray | None],
    parts: Iterable[Part],
) -> Iterator[Any]:
    """All that `function(*shared, *part)` yields for each part, in order.

    Parameters
    ----------
    function
        One that other processes can import.
    shared
        Arrays that every part reads and none writes: on a cluster they are sent once, and read where they lie.
    """
    if cluster is not None:
        yield from cluster.blocks(function, shared, parts)
        return
    for part in parts:
        yield from function(*shared, *part)


class Cluster:
    """A Ray cluster: the one at `compute.address`, or else one on this machine, which ends with this process."""

    def __init__(self, settings: ComputeSettings) -> None:
        self.settings = settings
        try:
            import ray
        except ImportError as error:
            raise ComputeError(
                f"compute.kind = ray, but Ray cannot be imported ({error}). Install it with "
                "`pip install -e '.[ray]' -c constraints.txt`, or set compute.kind to local"
            ) from None
        self._ray: Any = ray
        if not ray.is_initialized():
            _connect(ray, settings.address)
        if self.cores == 0:  # what is sent would wait for ever
            raise ComputeError(
                f"compute.address = {settings.address}: no node of the cluster there has cores to work with. Join one "
                "that has: ray start --address=HOST:PORT"
            )

    # ---------------------------------------------------------------------------------------------- what there is

    @property
    def cores(self) -> int:
        """Cores of all nodes."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def share(self, jobs: int) -> int:
        """Cores for each of so many jobs at a time, no more than a node has; of those with GPUs where there are any."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in [node for node in nodes if "GPU" in node] or nodes]
        return max(1, min(max(cores), sum(cores) // jobs))

    # ------------------------------------------------------------------------------------------------ what it does

    def blocks(
        self, function: Callable[..., Iterator[Any]], shared: Sequence[np.ndarray | None], parts: Iterable[Part]
    ) -> Iterator[Any]:
        """See the function `blocks`: each part is a task of one core."""
        work = self._ray.remote(_all)
        held = [None if array is None else self._ray.put(array) for array in shared]
        limit = AHEAD * self.cores
        waiting: deque[Any] = deque()
        for part in parts:
            waiting.append(work.remote(function, *held, *part))
            if len(waiting) >= limit:
                yield from self._result(waiting.popleft())
        while waiting:
            yield from self._result(waiting.popleft())

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function gives on a node, with a GPU where there are some."""
        return self._result(self._ray.remote(**self._device(1))(function).remote(*arguments))

    def batches(
        self, actor: type, arguments: Sequence[Any], tables: Iterable[pa.Table], gpus: int = 1
    ) -> Iterator[pa.Table]:
        """What `actor(*arguments)(table)` gives for each table, as they are done, in any order.

        Parameters
        ----------
        actor
            A class whose instances are costly to make: each of them lives in a process of its own and takes many
            tables. There are `compute.actors`, or else as many as there are GPUs (without any: cores) for.
        tables
            Of one length; the last may be shorter.
        gpus
            GPUs of an instance, where the cluster has some.
        """
        from ray import data

        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        held, length = [], 0
        for table in tables:
            held.append(self._ray.put(table))
            length = max(length, table.num_rows)
        if not held:
            return
        most = self.settings.actors or max(1, self.gpus // gpus if self.gpus else self.cores)
        made = data.from_arrow_refs(held).map_batches(
            _Worker,
            fn_constructor_args=(actor, *arguments),
            batch_size=length,  # a table; on a GPU Ray Data takes nothing but a number for an answer
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=min(most, len(held))),
            **self._device(gpus),
        )
        for table in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            if table.column_names == [ERROR]:
                raise self._ray.cloudpickle.loads(table[ERROR][0].as_py())
            yield table

    def pool(self, parallel: int, environment: Mapping[str, str], on_gpu: bool) -> Executor:
        """Jobs of `share(parallel)` cores each, and with a GPU of its own if asked for, so many at a time.

        Parameters
        ----------
        environment
            Variables that the jobs see.
        """
        device = self._device(1) if on_gpu else {}
        options = {**device, "num_cpus": self.share(parallel), "runtime_env": {"env_vars": dict(environment)}}
        return _Pool(parallel, lambda job: self._result(self._ray.remote(**options)(_call).remote(*job)))

    def _device(self, gpus: int) -> dict[str, float]:
        return {"num_gpus": gpus} if self.gpus else {"num_cpus": 1}

    def _result(self, reference: Any) -> Any:
        """What a task gives; an error of its own is raised as it is.

        Waited for outside of Ray: a thread that waits inside of it when Ray ends takes the process with it.
        """
        try:
            return reference.future().result()
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None


class _Pool(Executor):
    """Jobs on a cluster, so many at a time; each is waited for by a thread that holds up no end of this process."""

    def __init__(self, parallel: int, run: Callable[[Part], Any]) -> None:
        self._room, self._run = threading.Semaphore(parallel), run
        self._futures: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            with self._room:
                if not future.set_running_or_notify_cancel():
                    return
                try:
                    future.set_result(self._run((function, *arguments)))
                except BaseException as error:
                    future.set_exception(error)

        self._futures.append(future)
        threading.Thread(target=work, name="job on Ray", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for future in self._futures if cancel_futures else ():
            future.cancel()
        if wait:
            futures.wait(self._futures)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)


def _all(function: Callable[..., Iterator[Any]], *arguments: Any) -> list[Any]:
    return list(function(*map(_plain, arguments)))


class _Worker:
    """An actor of `Cluster.batches`. Its error is a table too: Ray Data would hand on no more than the words of it."""

    def __init__(self, actor: type, *arguments: Any) -> None:
        self._made: Any = None
        self._make = partial(actor, *arguments)

    def __call__(self, table: pa.Table) -> pa.Table:
        from ray import cloudpickle

        try:
            self._made = self._made or self._make()
            made: pa.Table = self._made(table)
            return made
        except Exception as error:
            return pa.table({ERROR: [cloudpickle.dumps(error)]})


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class _Memory:
    """An array's memory, without the mark that it is not to be written."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _plain(value: Any) -> Any:
    """Arrays in their own memory, but like any other: numba compiles its kernels anew for those that are read-only."""
    if isinstance(value, np.ndarray):
        return np.asarray(_Memory(value))
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------------------- connection


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster at an address, or start one here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(address="local", include_dashboard=False, **quiet)  # by default, any that it finds here
        return
    _reach(address)
    try:
        ray.init(address=address, **quiet)
    except Exception as error:  # Ray raises of every kind: another version, no node of it on this machine, ...
        raise ComputeError(
            f"compute.address = {address}: the cluster there cannot be joined: {' '.join(str(error).split())[:600]}. "
            f"This machine has to be a node of it (ray start --address={address}); if it asks for a token, set "
            "RAY_AUTH_MODE=token"
        ) from None
    _compare(ray, address)


def _reach(address: str) -> None:
    """See that something listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        raise ComputeError(
            f"compute.address = {address}: no cluster there ({error}). Start one with "
            "`ray start --head --port=6379` and name its HOST:PORT, or name none, and one is started on this machine"
        ) from None


def _compare(ray: Any, address: str) -> None:
    """See that every node has this project's code as it is here: another one may give other results."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        ray.remote(num_cpus=0, scheduling_strategy=On(node["NodeID"], soft=False))(_code).remote() for node in nodes
    ]
    ours = _code()
    wrong: dict[str, str] = {}  # by address; all are heard, as Ray writes of a task that is left behind at the end
    for node, reference in zip(nodes, asked, strict=True):
        address_there = node["NodeManagerAddress"]
        try:
            if ray.get(reference) != ours:
                wrong[address_there] = (
                    f"node {address_there} has other code of this project than this process. "
                    "Install the same there, and start its Ray again"
                )
        except ray.exceptions.RayError as error:
            wrong[address_there] = (
                f"node {address_there} does not work with this project: {' '.join(str(error).split())[-300:]}. "
                "Install it there, as it is here"
            )
    if wrong:
        raise ComputeError(f"compute.address = {address}: {'; '.join(wrong.values())}")


def _code() -> str:
    """Hash of this project's source."""
    root, hasher = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        hasher.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return hasher.hexdigest()
