"""Dagster's history in SQLite, over connections that stay open.

Dagster opens a database anew for every statement of its event log, with an engine of its own, and closing it moves the
write-ahead log into the database: together a quarter of what a small run takes, two fifths of a small refresh.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from dagster._core.storage.event_log.base import EventHandlerFn
from dagster._core.storage.event_log.sqlite.sqlite_event_log import (
    SqliteEventLogStorage,
    SqliteEventLogStorageWatchdog,
)
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import QueuePool

from assets.nodes import GPU

KEPT_OPEN = 4  # databases: one of all runs, and those of the runs that were used last
LOOK_SECONDS = 0.5


class _Open(NamedTuple):
    engine: Engine
    file: tuple[int, int]  # device and inode


class EventLog(SqliteEventLogStorage):
    """Dagster's own event log; a database that was deleted or replaced meanwhile is opened anew."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._open: dict[str, _Open] = {}  # the one that was used last is last
        super().__init__(base_dir, inst_data)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        with self._db_lock, self._engine(shard).connect() as connection, connection.begin():
            yield connection

    def _engine(self, shard: str) -> Engine:
        path, found = self.path_for_shard(shard), self._open.pop(shard, None)
        if found is None or found.file != _file(path):
            if found is not None:
                found.engine.dispose()
            if found is not None or _file(path) is None:  # another file than was looked at, or none any more
                self._initialized_dbs.discard(shard)
            engine = create_engine(
                self.conn_string_for_shard(shard),
                poolclass=QueuePool,
                connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
            )
            if shard not in self._initialized_dbs:
                self._initdb(engine)
                self._initialized_dbs.add(shard)
            file = _file(path)
            assert file is not None
            found = _Open(engine, file)
        self._open[shard] = found
        while len(self._open) > KEPT_OPEN:
            self._open.pop(next(iter(self._open))).engine.dispose()
        return found.engine

    def get_concurrency_keys(self) -> set[str]:
        """The pools that have a limit, the GPU's from the start: Dagster's queue limits none when it first meets it."""
        found = super().get_concurrency_keys()
        if GPU not in found:
            self.initialize_concurrency_limit_to_default(GPU)
            found = super().get_concurrency_keys()
        return found

    def watch(self, run_id: str, cursor: str | None, callback: EventHandlerFn) -> None:
        """Call back with every event of a run that is written from now on: a run's page shows them as they come."""
        looks = _Looks(SqliteEventLogStorageWatchdog(self, run_id, callback, cursor))
        self._watchers[run_id][callback] = looks
        looks.start()

    def end_watch(self, run_id: str, handler: EventHandlerFn) -> None:
        looks = self._watchers[run_id].pop(handler, None)
        if looks is not None:
            looks.over.set()

    def dispose(self) -> None:
        for run_id, watchers in list(self._watchers.items()):
            for handler, looks in list(watchers.items()):
                self.end_watch(run_id, handler)
                looks.join(timeout=15)
        super().dispose()
        with self._db_lock:
            while self._open:
                self._open.popitem()[1].engine.dispose()


class _Looks(threading.Thread):
    """Looks for new events of a run again and again.

    Dagster waits for the database's file to change. A connection that stays open writes to the write-ahead log, and
    what it has written can be read only a moment after the last change of any file.
    """

    def __init__(self, watchdog: SqliteEventLogStorageWatchdog) -> None:
        super().__init__(daemon=True, name="looks for new events")
        self.over = threading.Event()
        self._watchdog = watchdog

    def run(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            self._watchdog._process_log()


class History(DagsterSqliteStorage):
    """Dagster's storage in SQLite with that event log: `storage: custom:` of dagster.yaml."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage = EventLog(self._event_log_storage._base_dir)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> "History":
        return cls.from_local(inst_data=inst_data, **config_value)


def _file(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
