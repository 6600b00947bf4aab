"""The one shape of every benchmark's result: a JSON file that the report reads.

`title`, `about`, `command`, `date`, `rounds`, `machine`, then `jobs` (job -> figures), `rows` (what is held against a
goal), `curves` (each a `name`, sizes `x`, and lists of figures at these sizes, such as `seconds` and `peak_gb`), and
`notes` (Markdown). The last four may be missing.
"""

import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tests.benchmarks.workers import Measured

PACKAGES = ("numpy", "scipy", "numba", "torch", "polars", "scikit-learn", "faiss-cpu", "spams-bin", "pandas", "dagster")
THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Sense = Literal["at least", "at most"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure and what it should be.

    Parameters
    ----------
    job, measure
        What was done, and what is told of it: `SCALE epoch`, `times as fast as MMRec's FREEDOM`.
    unit
        `×`, `s`, `GB`, or empty.
    median, least, most
        Over rounds; None when it was not measured, and then `missing` says what to do about it.
    goal, sense
        The bound that the median is held to, if there is one.
    """

    job: str
    measure: str
    unit: str
    median: float | None
    least: float | None
    most: float | None
    goal: float | None = None
    sense: Sense = "at least"
    missing: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the goal; None without a goal or a figure."""
        if self.goal is None or self.median is None:
            return None
        return self.median >= self.goal if self.sense == "at least" else self.median <= self.goal

    @property
    def margins(self) -> tuple[float, float, float] | None:
        """How many times better than its goal the median, the least and the most are; at 1 it is just met.

        None also for a figure of 0 that may be at most something: no bar is long enough for it.
        """
        if not self.goal or self.median is None or self.least is None or self.most is None:
            return None
        values = self.median, self.least, self.most
        if self.sense == "at most" and 0 in values:
            return None
        median, *ends = (value / self.goal if self.sense == "at least" else self.goal / value for value in values)
        return median, min(ends), max(ends)


def row(
    job: str, measure: str, unit: str, values: Sequence[float], goal: float | None = None, sense: Sense = "at least"
) -> Json:
    """A measured row, from one value per round."""
    found = spread(values)
    return asdict(Row(job, measure, unit, found["median"], found["least"], found["most"], goal, sense))


def missing_row(job: str, measure: str, unit: str, goal: float, missing: str) -> Json:
    """A row that could not be measured, with what to do about it."""
    return asdict(Row(job, measure, unit, None, None, None, goal=goal, missing=missing))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def figures(measured: Measured, notes: Mapping[str, str] | None = None) -> Json:
    """Seconds and peak memory (10^9 bytes: the largest of the rounds) of every job."""
    return {
        name: {
            "seconds": spread(seconds),
            "peak_gb": max(peaks(measured)[name]),
            "note": (notes or {}).get(name, ""),
        }
        for name, seconds in measured.seconds.items()
    }


def peaks(measured: Measured) -> dict[str, list[float]]:
    """Peak memory of every job's process, round by round, in 10^9 bytes."""
    return {name: [peak / 1e9 for peak in found] for name, found in measured.peak.items()}


def result(
    title: str,
    about: str,
    rounds: int,
    load: Sequence[float],
    *,
    jobs: Mapping[str, Any] | None = None,
    rows: Sequence[Json] = (),
    notes: Sequence[str] = (),
) -> Json:
    """A result, with the command and the machine of this very process."""
    return {
        "title": title,
        "about": about,
        "command": command(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "rounds": rounds,
        "machine": machine(load),
        "jobs": dict(jobs or {}),
        "rows": list(rows),
        "notes": list(notes),
    }


def command() -> str:
    """How this process was called, without the name of the file that it writes."""
    words = ["tests/benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return " ".join(["python", *words])


def machine(load: Sequence[float]) -> Json:
    """CPU, cores, memory, versions, and the load averages that were seen."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9,
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
        "load": spread(load) if load else None,
    }


def installed(package: str) -> str | None:
    """Version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(content: Json, path: Path | None) -> None:
    """Print a result as the report shows it, and write it to `path` if there is one."""
    from tests.benchmarks.report import section

    print(section(content))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(content), indent=1, ensure_ascii=False) + "\n")


def _rounded(value: Any) -> Any:
    """Six figures say all that a timing can."""
    match value:
        case float() if math.isfinite(value):
            return float(f"{value:.6g}")
        case dict():
            return {key: _rounded(part) for key, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
        case _:
            return value
