"""Coverage-guided fuzzing of whatever reads bytes of others or of a disk: raw files, answers, stored files.

    python tests/benchmarks/fuzz.py [--inputs 2000] [--seed 1] [--only "tables csv"] [--found var/fuzz]

Every target has a process of its own, in which atheris changes good inputs so that they reach new lines; there are as
many at once as CPUs. An input is good if it is read, or named or left out as its reader promises. The first that ends
in another way, takes longer than `LIMIT_SECONDS` or more memory than `LIMIT_MB` is saved in the folder `found`, and the
script exits with 1. To do one again: `--only NAME --again FILE`.
"""

import argparse
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris
import numpy as np
import polars as pl
import pyarrow.parquet as pq
from scipy.sparse import csr_array


@contextmanager
def watched(*modules: str) -> Iterator[None]:
    """Have atheris see which lines of these modules, imported here, an input reaches."""
    with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=list(modules)):  # it names every module
        yield


with watched("pipeline"):
    from assets.settings import Dataset, dataset_files
    from pipeline import parquet
    from pipeline.files import StoredFileError
    from pipeline.graphs import kept
    from pipeline.profiles import prompts
    from pipeline.profiles.answer import Answer, Failure, parse_answer
    from pipeline.profiles.chat import usable
    from pipeline.row_cache import RowCache, compact, prune, size
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
        Gives good inputs to begin from.
    check
        Reads an input, given as bytes, in an empty folder; raises where the reader does what it should not.
    """

    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes, Path], None]


def targets() -> Iterator[tuple[str, Target]]:
    """Every target by its name."""
    for case in CASES:
        yield case, Target(lambda case=case: [WHOLE[case]], partial(check_source, case))  # type: ignore[misc]
    answers = ['{"summary": "Likes tea", "reasoning": null}', 'So: ```{"summary": "a\\u00e9", "reasoning": "b"}```']
    yield "profile answer", Target(lambda: [answer.encode() for answer in answers], check_answer)
    for kind in prompts.FIELDS:
        template = prompts.PROMPTS_FOLDER / f"{kind}.md.j2"
        yield f"{kind} prompt", Target(lambda path=template: [path.read_bytes()], partial(check_prompt, kind))  # type: ignore[misc]
    yield "settings", Target(lambda: [path.read_bytes() for path in dataset_files("").values()], check_settings)
    yield "cache shard", Target(cache_shards, check_cache)
    yield "kept graph", Target(kept_graphs, check_kept)
    yield "checkpoint", Target(checkpoints, check_checkpoint)
    yield "stored JSON", Target(lambda: STORED_JSON, check_json)
    graph = csr_array(np.eye(3, 5, dtype=np.float32))
    table = pl.DataFrame({"a": [1, None], "b": "é"})
    for name, write, read in (
        ("stored table", lambda path: parquet.write_table(table, path), parquet.read_table),
        ("stored array", lambda path: parquet.write_array(np.ones((3, 2), np.float32), path), parquet.read_array),
        ("stored graph", lambda path: parquet.write_graph(graph, path), parquet.read_graph),
    ):
        yield name, Target(partial(stored, write), partial(check_stored, read))


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
        return [path.read_bytes(), unsealed(path)]


def unsealed(path: Path) -> bytes:
    """What a Parquet file holds, as another program writes it."""
    plain = io.BytesIO()
    pq.write_table(pq.read_table(path), plain)
    return plain.getvalue()


ANSWER = {"answer": pl.String}


def cache_shards() -> list[bytes]:
    """A shard of a row cache, with its seal and without."""
    with TemporaryDirectory() as folder:
        with RowCache(Path(folder), ANSWER) as cache:
            cache.add("a", "é")
            cache.add("b", None)
        (path,) = Path(folder).glob("*.parquet")
        return [path.read_bytes(), unsealed(path)]


def check_cache(content: bytes, folder: Path) -> None:
    """A shard is read or set aside, and the cache goes on keeping rows."""
    with TemporaryDirectory(dir=folder) as place:
        (Path(place) / "shard.parquet").write_bytes(content)
        size(Path(place))
        prune(Path(place), timedelta(days=1))
        with RowCache(Path(place), ANSWER) as cache:
            cache.rows()
            cache.add("new", "tea")
        compact(Path(place))
        assert "new" in cache.rows()["key"]


def kept_graphs() -> list[bytes]:
    """A graph of two rows, as it is kept for the next time."""
    rows = kept.row_hashes(np.eye(2, dtype=np.float32))
    ids, yes = np.array([[1], [0]], np.int32), np.ones(2, bool)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.npz"
        kept.save(kept.Kept(rows, rows, ids, np.ones((2, 1), np.float32), yes, ids, yes), path, "this code")
        return [path.read_bytes()]


def check_kept(content: bytes, folder: Path) -> None:
    """A kept graph is read, or left out with a sentence that names it."""
    path = folder / "graph.npz"
    path.write_bytes(content)
    said: list[str] = []
    kept.load(path, "this code", said.append)
    assert all(path.name in sentence for sentence in said)


def checkpoints() -> list[bytes]:
    """A checkpoint of a training run."""
    import torch

    with watched("model.checkpoint"):
        from model.checkpoint import Checkpoint, save_checkpoint
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        save_checkpoint(path, Checkpoint({"a": torch.ones(2, 3), "b": torch.tensor(1)}, {"history": []}), "a run")
        return [path.read_bytes()]


def check_checkpoint(content: bytes, folder: Path) -> None:
    """A checkpoint is read or left out, also under a checksum that fits: atheris sees what it is compared with."""
    from model.checkpoint import load_checkpoint

    path = folder / "run.safetensors"
    path.write_bytes(content)
    load_checkpoint(path, "a run")


RESULT, OTHER = "item_profiles/shop", "item_profiles/other"
STORED_JSON = [
    json.dumps(seed).encode()
    for seed in (
        {"seed": 0, "test": {"recall_at_20": 0.1}, "run_id": "a"},
        {"run_id": "a", "fingerprint": "b"},
        {"object": f"{RESULT}/1-2-0123456789ab.parquet", "size": 4, "time": 1, "sha256": "0"},
    )
]


def check_json(content: bytes, folder: Path) -> None:
    """A trial's record, the note of an unfinished run and a bucket's manifest: read, named, or left out."""
    with watched("assets.trials", "assets.tracking", "assets.bucket"):
        from assets.bucket import Bucket
        from assets.tracking import run_to_resume
        from assets.trials import read_record
    path = folder / "stored.json"
    path.write_bytes(content)
    try:
        assert isinstance(read_record(path), dict)
    except StoredFileError as error:
        if path.name not in str(error):
            raise
    run_to_resume(path, "b")
    bucket = Bucket("memory://store")
    if not bucket.holds(OTHER):
        bucket.send(path, OTHER)
    bucket._files.pipe_file(bucket._path(f"{RESULT}.json"), content)
    try:
        assert not bucket.fetch(RESULT, folder / "copy")
    except StoredFileError as error:
        if RESULT not in str(error):
            raise
    assert bucket.holds(OTHER)


def fuzz(name: str, target: Target, inputs: int, seed: int, found: Path) -> None:
    """Run one target in this process, which ends with it."""
    logging.disable(logging.WARNING)  # what is left out is told each time
    with TemporaryDirectory() as folder:
        corpus, place = Path(folder) / "corpus", Path(folder) / "place"
        corpus.mkdir()
        place.mkdir()
        for number, good in enumerate(target.seeds()):
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
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            good = pool.map(lambda name: run(name, arguments.inputs, arguments.seed, arguments.found), names)
        sys.exit(not all(good))


if __name__ == "__main__":
    main()
