"""The golden numbers that authors' code gave are still what it gives; each needs a clone of its repository."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity import diffmm, golden, kar, mentor, rlmrec
from tests.parity.authors import Authors

FOLDER = Path(__file__).resolve().parent
PARTS = [
    (authors, part)
    for authors in (rlmrec.AUTHORS, kar.AUTHORS, diffmm.AUTHORS, mentor.AUTHORS)
    for part in authors.steps
]


@pytest.mark.slow
@pytest.mark.parametrize(("authors", "part"), PARTS, ids=[f"{authors.name}-{part}" for authors, part in PARTS])
def test_the_authors_code_still_says_what_is_stored(authors: Authors, part: str, tmp_path: Path) -> None:
    if authors.checkout() is None:
        pytest.skip(authors.missing)
    command = [sys.executable, str(FOLDER / f"{authors.name}.py"), part, "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    golden.assert_same_reference(golden.read(f"{authors.name}-{part}", tmp_path)["step"], authors.stored(part))
