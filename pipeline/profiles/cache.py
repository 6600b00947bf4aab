"""Answers of chat models, kept by row: Parquet shards named by content, written as answers arrive."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.profiles.answer import Answer

_SCHEMA = {"key": pl.String, "summary": pl.String, "reasoning": pl.String}
_ABANDONED_SECONDS = 3600


def cache_key(prompt: str, identity: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of a prompt and of everything else that its answer depends on."""
    content = json.dumps([prompt, identity], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode("ascii")).hexdigest()


class AnswerCache:
    """A folder of answers by key; several processes may read and write it at once.

    Shards only ever appear whole, under a name of their own, and are never changed. A process that is killed loses
    at most `chunk` answers or `seconds` of work, whichever is less.

    Parameters
    ----------
    folder
        Made when it is missing.
    chunk, seconds
        Answers are written once there are this many, or once this much time has passed since the last write.
    """

    def __init__(self, folder: Path, chunk: int = 64, seconds: float = 10.0) -> None:
        self.folder, self.chunk, self.seconds = folder, chunk, seconds
        self._pending: list[tuple[str, str, str | None]] = []
        self._written_at = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):  # from a process killed in the middle of a write
            if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                leftover.unlink(missing_ok=True)

    def lookup(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers there are for `keys`.

        Raises
        ------
        ValueError
            For a shard that cannot be read, by name.
        """
        wanted = pl.DataFrame({"key": list(keys)}, schema={"key": pl.String}).unique()
        found = [pl.DataFrame(schema=_SCHEMA)]
        for shard in sorted(self.folder.glob("*.parquet")):
            try:
                found.append(pl.read_parquet(shard, schema=_SCHEMA).join(wanted, on="key", how="semi"))
            except (pl.exceptions.PolarsError, OSError) as error:
                raise ValueError(
                    f"{shard}: not a readable shard of answers: {error}; delete it and run again"
                ) from error
        # Two processes may have asked the same: the choice between their answers must not depend on file names.
        rows = pl.concat(found).sort("key", "summary", "reasoning", nulls_last=True).unique("key", keep="first")
        return {key: Answer(summary=summary, reasoning=reasoning) for key, summary, reasoning in rows.iter_rows()}

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it reaches the disk with its chunk."""
        self._pending.append((key, answer.summary, answer.reasoning))
        if len(self._pending) >= self.chunk or time.monotonic() - self._written_at > self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        self._written_at = time.monotonic()
        if not self._pending:
            return
        name = uuid.uuid4().hex
        temporary = self.folder / f".{name}.tmp"
        pl.DataFrame(self._pending, schema=_SCHEMA, orient="row").write_parquet(temporary)
        os.replace(temporary, self.folder / f"{name}.parquet")
        self._pending = []
