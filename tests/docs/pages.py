"""The pages, what stands in their fences, and the surroundings in which a reader types it."""

import os
import re
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
PAGES = sorted((PROJECT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_ELSEWHERE = re.compile(r"SCALE_|MLFLOW_TRACKING_URI|DAGSTER_HOME")


def surroundings() -> dict[str, str]:
    """This process's variables without what points to another home, the programs of its environment first."""
    kept = {name: value for name, value in os.environ.items() if not _ELSEWHERE.match(name)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(PROJECT), "COLUMNS": "200"}
