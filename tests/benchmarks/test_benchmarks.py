"""The benchmark suite's own logic, and its scripts at a small shape; nothing here is about time."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import made, mmrec, plan, report, results, workers
from tests.benchmarks.results import Row
from tests.benchmarks.workers import Measured

FOLDER = Path(__file__).parent
DOCS = FOLDER.parents[1] / "docs"


def content(**changes: object) -> results.Json:
    """A result of one job with what `changes` says."""
    measured = Measured({"fast": [1.0, 2.0], "slow": [6.0, 8.0]}, {"fast": [1e9, 2e9], "slow": [3e9, 3e9]}, [0.5, 1.5])
    made = results.result("A title", "About it.", 2, measured.load, jobs=results.figures(measured), **changes)
    return json.loads(json.dumps(made))


def test_ratios_are_taken_within_a_round() -> None:
    assert Measured({"fast": [1.0, 2.0], "slow": [6.0, 8.0]}).ratios("slow", "fast") == [6.0, 4.0]


SCRIPT = """\
from tests.benchmarks import workers
arguments = workers.arguments(None).parse_args()
if arguments.job == "broken":
    raise SystemExit(3)
told = arguments.folder / "told"
def tell(text):
    print("what a job prints is no answer")
    told.write_text((told.read_text() if told.exists() else "") + text)
    return text
workers.serve(lambda: tell(arguments.job), keep=lambda result: tell(f" kept {result}."))
"""


def test_jobs_take_turns_and_the_last_results_are_kept(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    measured = workers.interleave(str(script), ["a", "b"], 2, tmp_path, quick=True, scale={"b": 1e6})
    assert (tmp_path / "told").read_text() == "ababa kept a.b kept b."  # each once to warm up
    assert max(measured.seconds["a"]) < 10 < min(measured.seconds["b"])
    assert min(measured.peak["a"]) > 1e6
    assert len(measured.load) == 4
    with pytest.raises(RuntimeError, match="'broken'"):
        workers.interleave(str(script), ["a", "broken"], 2, tmp_path, quick=True)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALE_MMREC", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no src/utils/configurator.py: set SCALE_MMREC"):
        mmrec.checkout()


@pytest.mark.parametrize(
    ("values", "goal", "sense", "met", "margins"),
    [
        ([6.0, 4.0, 9.0], 3.0, "at least", True, (2.0, 4 / 3, 3.0)),
        ([6.0, 4.0, 9.0], 8.0, "at least", False, (0.75, 0.5, 1.125)),
        ([1.0, 2.0, 4.0], 2.0, "at most", True, (1.0, 0.5, 2.0)),
        ([1.0, 3.0, 4.0], 2.0, "at most", False, (2 / 3, 0.5, 2.0)),
        ([1.0, 3.0, 4.0], None, "at least", None, None),
        ([0.0, 0.0, 1.0], 2.0, "at most", True, None),  # better by no number
    ],
)
def test_a_goal_is_met_by_the_median(values, goal, sense, met, margins) -> None:
    row = Row(**results.row("job", "measure", "×", values, goal, sense))
    assert (row.met, row.margins) == (met, pytest.approx(margins) if margins else None)


def test_the_report_says_what_was_met_what_was_not_and_what_was_not_measured(tmp_path: Path) -> None:
    rows = [
        results.row("SCALE epoch", "times as fast as a snail", "×", [4.0, 6.0, 5.0], 4.0),
        results.row("start", "the whole process", "s", [4.0, 4.0], 3.0, "at most"),
        results.missing_row("SCALE epoch", "times as fast as a hare", "×", 2.0, "catch a hare"),
    ]
    curves = [
        {"name": "exact", "x": [10, 1000], "seconds": [1.0, 98.71], "peak_gb": [0.5, 0.25]},
        {"name": "other", "x": [10], "seconds": [2.0], "peak_gb": [0.5], "recall": [None]},
    ]
    contents = [content(rows=rows, notes=["a note"]) | {"curves": curves}]
    pictures = report.draw(contents, tmp_path)
    text = report.report(contents, pictures)
    assert "1 of 3 goals are met, 1 missed, 1 not measured." in text
    assert "| SCALE epoch | times as fast as a snail | 5 (4–6) × | ≥ 4 × | yes |" in text
    assert "| start | the whole process | 4 s | ≤ 3 s | **no** |" in text
    assert "| SCALE epoch | times as fast as a hare | catch a hare | ≥ 2 × | not measured |" in text
    assert "| job | seconds | peak GB |\n|---|---|---|\n| fast | 1.5 (1–2) | 2 |" in text
    assert "| exact | 10 | 1 | 0.5 |  |\n| exact | 1,000 | 98.7 | 0.25 |  |\n| other | 10 | 2 | 0.5 |  |" in text
    assert "- a note" in text
    assert sorted(pictures.values()) == ["a-title.png", "goals.png"]
    assert all((tmp_path / name).stat().st_size > 1000 and name in text for name in pictures.values())


def test_a_result_knows_its_command_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/tests/benchmarks/graphs.py", "--quick", "--out", "a.json"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    found = content()
    assert found["command"] == "python tests/benchmarks/graphs.py --quick"
    assert found["machine"]["packages"]["numpy"] == np.__version__
    assert found["machine"]["environment"]["OMP_WAIT_POLICY"] == "passive"
    assert found["machine"]["load"] == {"median": 1.0, "least": 0.5, "most": 1.5}


def test_numbers_have_three_figures() -> None:
    numbers = [1234.5, 123.4, 12.34, 1.234, 2.0, 0.1234, 0.01234, 0.0]
    assert [report.number(value, "") for value in numbers] == [
        "1,234", "123", "12.3", "1.23", "2", "0.123", "0.0123", "0",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [made.QUICK, made.BABY])
def test_made_interactions_have_the_shape_that_they_say(size: made.Shape) -> None:
    users, items = made.interactions(size)
    assert len(set(zip(users.tolist(), items.tolist(), strict=True))) == size.interactions
    for side, count in ((users, size.users), (items, size.items)):
        degrees = np.bincount(side, minlength=count)
        assert len(degrees) == count
        assert degrees.min() >= made.FEWEST


def test_the_documents_are_what_the_results_say(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    for script, page in (("report", "BENCHMARKS.md"), ("plan", "growth.md")):
        before = (DOCS / page).read_text()
        (tmp_path / "docs" / page).write_text(re.sub(r"\| [\d.,]+ \|", "| 7 |", before))
        command = [sys.executable, str(FOLDER / f"{script}.py"), str(tmp_path / "docs")]
        subprocess.run(command, check=True, capture_output=True)
        assert (tmp_path / "docs" / page).read_text() == before
    assert (tmp_path / "docs" / plan.FIGURE).stat().st_size > 10_000


def test_a_law_finds_the_powers_that_made_its_points() -> None:
    law = plan.Law.fitted([10, 100, 1000], [3 * size + 0.5 * size**2 for size in (10, 100, 1000)], 1, 2)
    assert law.factors == pytest.approx((3, 0.5))
    assert law(1e6) == pytest.approx(3e6 + 0.5e12)
    assert law.error < 1e-6
    assert 1.9 < law.exponent < 2
    falling = plan.Law.fitted([10, 100], [100, 10], 0, 1)  # no factor below 0, however the points lie
    assert min(falling.factors) >= 0
    assert falling.error > 0.4


def test_the_plan_grows_by_its_laws_and_in_proportion_to_what_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = plan.read(DOCS)
    stages = {stage.name: stage for stage in plan.stages(measured)}
    training = next(stage for name, stage in stages.items() if name.startswith("training"))
    for stage, power in ((stages["raw reading"], 1), (stages["user profiles"], 1), (training, 2)):
        assert stage.hours(1e9) / stage.hours(1e8) == pytest.approx(10**power, rel=0.01)
    exact, index = (plan.graph_seconds(1e8, measured, "similarity", how) for how in (True, False))
    assert exact > 100 * index
    before = stages["user profiles"].hours(1e6)
    monkeypatch.setitem(plan.ASSUMPTIONS, "prompt_rate", (2 * plan.assumed("prompt_rate"), ""))
    monkeypatch.setitem(plan.ASSUMPTIONS, "answer_rate", (2 * plan.assumed("answer_rate"), ""))
    after = next(stage for stage in plan.stages(measured) if stage.name == "user profiles").hours(1e6)
    assert after == pytest.approx(before / 2)


def test_a_page_without_a_table_is_refused() -> None:
    text = (DOCS / plan.PAGE).read_text()
    with pytest.raises(ValueError, match="marks the tables"):
        plan.filled(text.replace("<!-- cost -->", ""), plan.read(DOCS))


LONG = ("startup", "graph_refresh", "growth", "load", "memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        *("graphs", "training", "evaluation", "rates", "serving"),
        *(pytest.param(script, marks=[pytest.mark.long, pytest.mark.timeout(1800)]) for script in LONG),
    ],
)
def test_a_script_measures_every_job(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script == "graphs":
        pytest.importorskip("faiss")
        pytest.importorskip("spams")
    if script == "serving" and shutil.which("wrk") is None:
        pytest.skip("install wrk to measure the service: apt-get install wrk")
    monkeypatch.delenv("SCALE_MMREC", raising=False)
    out = tmp_path / "out.json"
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--quick", "--out", str(out)]
    command += [] if script == "growth" else ["--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1500 if script in LONG else 500)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(out.read_text())
    if script == "serving":
        assert all(figure["median"] > 0 for job in found["jobs"].values() for figure in job.values())
    elif script == "load":
        names = {row["job"] for row in found["rows"]}
        assert {"scale status", "scale compare", "scale refresh", "Dagster: one asset"} <= names
    else:
        assert all(job["seconds"]["median"] > 0 and job["peak_gb"] > 0 for job in found["jobs"].values())
    if script == "rates":
        assert all(min(curve["seconds"]) > 0 and min(curve["peak_gb"]) > 0 for curve in found["curves"])
    assert found["rows"] or found["curves"]
    assert all(row["median"] is not None or "set SCALE_" in row["missing"] for row in found["rows"])


@pytest.mark.slow
def test_fuzzing_finds_nothing_in_50_inputs_of_every_target(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, str(FOLDER / "fuzz.py"), "--inputs", "50", "--found", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not list(tmp_path.iterdir())
    found = {
        name
        for name, done in re.findall(r"^(.+?) +(\d+) inputs, +\d+ edges", ended.stdout, re.MULTILINE)
        if done == "50"
    }
    names = "from tests.benchmarks import fuzz; print(*dict(fuzz.targets()), sep='\\n')"
    targets = subprocess.run([sys.executable, "-c", names], capture_output=True, text=True, check=True).stdout
    assert found == set(targets.splitlines())
    assert {"amazon", "profile answer", "stored table", "cache shard", "checkpoint", "stored JSON"} <= found


@pytest.mark.slow
def test_fuzzing_saves_what_is_not_named(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    broken = (
        "import sys; from pathlib import Path; from tests.benchmarks import fuzz\n"
        "def check(content, folder):\n    if b'X' in content: raise KeyError('X')\n"
        "fuzz.fuzz('broken one', fuzz.Target(lambda: [b'a'], check), 100000, 1, Path(sys.argv[1]))"
    )
    ended = subprocess.run([sys.executable, "-c", broken, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    (saved,) = tmp_path.iterdir()
    assert saved.name.startswith("broken-one-crash-")
    assert b"X" in saved.read_bytes()
