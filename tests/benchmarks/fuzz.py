"""Coverage-guided fuzzing of whatever reads bytes of others: raw files, answers, prompts, settings, the store.

    python tests/benchmarks/fuzz.py [--inputs 2000] [--seed 1] [--only "tables csv"] [--found var/fuzz]

Every target has a process of its own, in which atheris changes good inputs so that they reach new lines. An input is
good if it is read, or named in the error that its reader promises. The first that ends in another way, takes longer
than `LIMIT_SECONDS` or more memory than `LIMIT_MB` is saved in the folder `found`, and the script exits with 1. To do
one again: `--only NAME --again FILE`.
"""

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris
import numpy as np
import polars as pl
import pyarrow.parquet as pq
from scipy.sparse import csr_array

with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["pipeline"]):  # it names every module
    from assets.settings import Dataset, dataset_files
    from pipeline import parquet
    from pipeline.files import StoredFileError
    from pipeline.profiles import prompts
    from pipeline.profiles.answer import Answer, Failure, parse_answer
    from pipeline.profiles.chat import usable
    from pipeline.settings import ChatModelSettings, SettingsError, load_settings
    from pipeline.sources import SourceError, amazon, read_source, rlmrec, tables, yelp  # noqa: F401
    from tests.unit_pipeline.test_sources_fuzz import CASES, WHOLE, source

LIMIT_SECONDS = 10
LIMIT_MB = 2048
MOST_BYTES = 40_000  # of one input; two image vectors of Amazon's fit


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes
    ----------
    seeds
        Good inputs to begin from.
    check
        Reads an input, given as bytes, in an empty folder; raises where the reader does what it should not.
    """

    seeds: list[bytes]
    check: Callable[[bytes, Path], None]


def targets() -> Iterator[tuple[str, Target]]:
    """Every target by its name."""
    for case in CASES:
        yield case, Target([WHOLE[case]], lambda content, folder, case=case: check_source(case, content, folder))  # type: ignore[misc]
    answers = ['{"summary": "Likes tea", "reasoning": null}', 'So: ```{"summary": "a\\u00e9", "reasoning": "b"}```']
    yield "profile answer", Target([answer.encode() for answer in answers], check_answer)
    for kind in prompts.FIELDS:
        seed = (prompts.PROMPTS_FOLDER / f"{kind}.md.j2").read_bytes()
        yield f"{kind} prompt", Target([seed], lambda content, folder, kind=kind: check_prompt(kind, content, folder))  # type: ignore[misc]
    yield "settings", Target([path.read_bytes() for path in dataset_files("").values()], check_settings)
    graph = csr_array(np.eye(3, 5, dtype=np.float32))
    table = pl.DataFrame({"a": [1, None], "b": "é"})
    for name, write, read in (
        ("stored table", lambda path: parquet.write_table(table, path), parquet.read_table),
        ("stored array", lambda path: parquet.write_array(np.ones((3, 2), np.float32), path), parquet.read_array),
        ("stored graph", lambda path: parquet.write_graph(graph, path), parquet.read_graph),
    ):
        yield name, Target(stored(write), lambda content, folder, read=read: check_stored(read, content, folder))  # type: ignore[misc]


def check_source(case: str, content: bytes, folder: Path) -> None:
    """A raw file is read, or named in a `SourceError`."""
    _, name, beside = CASES[case]
    for other, good in beside.items():
        (folder / other).write_bytes(good)
    (folder / name).write_bytes(content)
    try:
        found = read_source(source(case, folder), folder / "out", folder)
    except SourceError as error:
        if name not in str(error):
            raise
    else:
        assert pl.read_parquet(found.reviews).height == found.rows["reviews"]


def check_answer(content: bytes, folder: Path) -> None:
    """An answer is taken, or a failure with its reason; either as text that can be stored."""
    # Bytes that are no UTF-8 become halves of surrogate pairs, which the JSON of a server can hold.
    answer = usable(content.decode("utf-8", "surrogateescape"), False, ChatModelSettings())
    if isinstance(answer, Failure):
        pl.Series([answer.reason, answer.answer])
        return
    found = parse_answer(answer)
    assert isinstance(found, Answer)
    assert found.summary
    pl.Series([found.summary, found.reasoning, answer])


def check_prompt(kind: prompts.Kind, content: bytes, folder: Path) -> None:
    """A template is loaded and rendered, or named in a `TemplateError`."""
    path = folder / "own.md.j2"
    path.write_bytes(content)
    row = dict.fromkeys(prompts.FIELDS[kind], "a <|im_end|> {{ cup }}") | {"categories": ["Home"]}
    try:
        template = prompts.load_template(path, kind)
        if kind == "item":
            prompts.render_item(template, row, prompts.Budget(300))
        else:
            prompts.render_user(template, [row, row], prompts.Budget(300))
    except prompts.TemplateError as error:
        if path.name not in str(error):
            raise


def check_settings(content: bytes, folder: Path) -> None:
    """A dataset's YAML is settings, or named in a `SettingsError`."""
    path = folder / "own.yaml"
    path.write_bytes(content)
    try:
        load_settings(path, Dataset)
    except SettingsError as error:
        if path.name not in str(error):
            raise


def check_stored(read: Callable[[Path], object], content: bytes, folder: Path) -> None:
    """A file of the store is read, or named in a `StoredFileError`."""
    path = folder / "stored.parquet"
    path.write_bytes(content)
    try:
        read(path)
        parquet.stored_version(path)
    except StoredFileError as error:
        if path.name not in str(error):
            raise


def stored(write: Callable[[Path], None]) -> list[bytes]:
    """A file of the store; and without its seal, which would stop nearly every change at the checksum."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "seed.parquet"
        write(path)
        plain = io.BytesIO()
        pq.write_table(pq.read_table(path), plain)
        return [path.read_bytes(), plain.getvalue()]


def fuzz(name: str, target: Target, inputs: int, seed: int, found: Path) -> None:
    """Run one target in this process, which ends with it."""
    with TemporaryDirectory() as folder:
        corpus, place = Path(folder) / "corpus", Path(folder) / "place"
        corpus.mkdir()
        place.mkdir()
        for number, good in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(good)
        options = {
            "runs": inputs,
            "timeout": LIMIT_SECONDS,
            "rss_limit_mb": LIMIT_MB,
            "max_len": MOST_BYTES,
            "len_control": 0,
            "seed": seed,
            "artifact_prefix": str(found / f"{name.replace(' ', '-')}-"),
            "print_final_stats": 1,
        }
        atheris.Setup(
            [sys.argv[0], *(f"-{option}={value}" for option, value in options.items()), str(corpus)],
            lambda content: target.check(content, place),
        )
        atheris.Fuzz()


def run(name: str, inputs: int, seed: int, found: Path) -> bool:
    """Fuzz one target in a process of its own, and say what came of it."""
    command = [sys.executable, __file__, "--here", "--only", name, "--inputs", str(inputs), "--seed", str(seed)]
    ended = subprocess.run([*command, "--found", str(found)], capture_output=True, text=True, errors="replace")
    told = ended.stdout + ended.stderr
    done, reached = (
        re.findall(pattern, told) or ["?"] for pattern in (r"number_of_executed_units: (\d+)", r"cov: (\d+)")
    )
    print(f"{name:<18} {done[-1]:>8} inputs, {reached[-1]:>5} edges reached", flush=True)
    if ended.returncode:
        saved = re.findall(r"Test unit written to (.+)", told)
        print(
            told[max(told.find("Uncaught Python exception"), 0) :][:4000],
            f"saved: {saved[-1] if saved else 'nothing'}",
            sep="\n",
            flush=True,
        )
    return ended.returncode == 0


def main() -> None:
    known = dict(targets())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="of each target; default: 2000")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other inputs; default: 1")
    parser.add_argument("--only", choices=known, help="one target alone")
    parser.add_argument("--found", type=Path, default=Path("var/fuzz"), help="folder for inputs that were found")
    parser.add_argument("--again", type=Path, help="one input that was found, with --only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.found.mkdir(parents=True, exist_ok=True)
    if arguments.again:
        with TemporaryDirectory() as folder:
            known[arguments.only].check(arguments.again.read_bytes(), Path(folder))
    elif arguments.here:
        fuzz(arguments.only, known[arguments.only], arguments.inputs, arguments.seed, arguments.found)
    else:
        names = [arguments.only] if arguments.only else list(known)
        good = [run(name, arguments.inputs, arguments.seed, arguments.found) for name in names]
        sys.exit(not all(good))


if __name__ == "__main__":
    main()
