"""SCALE_REQUIRE_ALL, as docs/contributing.md has it."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SKIPPED = """
import pytest

@pytest.mark.skipif(True, reason="install chromium to see the page")
def test_marked(): ...

def test_said():
    pytest.skip("there is no PostgreSQL")

def test_of_data():
    pytest.skip("set SCALE_SHARED to the folder")

@pytest.mark.xfail
def test_known_to_fail():
    raise ValueError
"""


def ended(folder: Path, required: str) -> dict[str, int]:
    """How many tests of a folder ended how."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "--rootdir", folder, folder]
    environment = os.environ | {"SCALE_REQUIRE_ALL": required}
    said = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False).stdout
    words = said.splitlines()[-1].strip("= ").partition(" in ")[0].split(", ")
    return {how: int(count) for count, how in (word.split() for word in words)}


def test_skips_for_want_of_a_program_fail_where_all_is_required(tmp_path: Path):
    (tmp_path / "test_some.py").write_text(SKIPPED)
    assert ended(tmp_path, "") == {"skipped": 3, "xfailed": 1}
    assert ended(tmp_path, "1") == {"failed": 1, "error": 1, "skipped": 1, "xfailed": 1}
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('a_package_that_is_not_there')\n")
    assert ended(tmp_path, "1") == {"error": 1}
