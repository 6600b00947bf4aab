"""The pages: the site builds, and what they quote of the command exists."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from markdown.extensions.toc import slugify

from assets.cli import app
from tests.docs.pages import FENCE, PAGES, PROJECT, README, surroundings

CODE = re.compile(r"(?<![\w/.-])(?:pipeline|model|assets|tests|docker)/[\w./-]*\w")


def commands(text: str) -> Iterator[str]:
    """Every `scale ...` of a page, in a fence or in a line, without comments and the marks of what may be left out."""
    lines = [line for _, _, content in FENCE.findall(text) for line in content.splitlines()]
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", text))
    for line in [*lines, *(" ".join(span.split()) for span in spans)]:
        found = re.match(r"(?:\.venv/bin/)?scale (.+)", line)
        if found:
            yield found[1].partition(" #")[0].replace("[", "").replace("]", "").strip()


def refused(command: str) -> str | None:
    """Why the command line would not take it, apart from what a mention leaves out."""
    words = shlex.split(command)
    words = [word for before, word in zip(["", *words], words, strict=False) if word != "..." or before[0] == "-"]
    group = typer.main.get_command(app)
    if words == ["--help"]:
        return None
    if words[0] not in group.commands:
        return f"no command {words[0]}"
    try:
        group.commands[words[0]].make_context(words[0], words[1:])
    except Exception as error:
        if type(error).__name__ != "MissingParameter":
            return f"{type(error).__name__}: {error}"
    return None


def test_site_builds_with_every_link_and_anchor(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert {f"{page.stem}.html" for page in PAGES} <= {path.name for path in tmp_path.glob("*.html")}
    linked = re.findall(r'href="(code/[^"]+)"', (tmp_path / "algorithm.html").read_text())
    assert "code/model/scale.py.txt" in linked
    assert all((tmp_path / path).is_file() for path in linked)


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path):
    wrong = {command: why for command in commands(page.read_text()) if (why := refused(command))}
    assert not wrong


def test_a_wrong_command_would_be_found():
    text = "`scale run --modell x`\n\n```\n.venv/bin/scale run -d x  # fine\nscale sing -d x\n```\n"
    assert [bool(refused(command)) for command in commands(text)] == [False, True, True]


def misnamed(text: str) -> list[str]:
    """Files and names that a page says are in the code, and that are not; NAME is for the reader to fill in."""
    named = {path for path in CODE.findall(text) if "NAME" not in path and path != "docker/secrets"}
    absent = sorted(path for path in named if not (PROJECT / path).exists())
    for symbol, path in re.findall(rf"`(\w+)` (?:of |in |\()`({CODE.pattern}\.py)`", text):
        defined = re.compile(rf"^(?:class |def )?{symbol}\b", re.MULTILINE)
        if path not in absent and not defined.search((PROJECT / path).read_text()):
            absent.append(f"{symbol} of {path}")
    return absent


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_code_that_a_page_names_exists(page: Path):
    assert misnamed(page.read_text()) == []


def test_wrong_names_of_code_would_be_found():
    right = "`MODELS` of `model/registry.py`, `stage` (`assets/stage.py`), `model/baselines/NAME.py`"
    assert misnamed(right) == []
    wrong = "`MODEL` of `model/registry.py`, `stages` (`assets/stage.py`), `python tests/benchmark/memory.py`"
    assert misnamed(wrong) == ["tests/benchmark/memory.py", "MODEL of model/registry.py", "stages of assets/stage.py"]


def broken(text: str) -> list[str]:
    """Links of the README that lead to no file, or to no heading of it."""
    found = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", FENCE.sub("", text)):
        path, _, anchor = link.partition("#")
        file = PROJECT / (path or "README.md")
        if not file.exists():
            found.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.MULTILINE)
            found += [link] if anchor not in {slugify(heading, "-") for heading in headings} else []
    return found


def test_links_of_the_readme_lead_somewhere():
    text = README.read_text()
    assert text.count("](docs/") > 5
    assert broken(text) == []
    assert broken("[a](docs/none.md) ![b](docs/serving.png) [c](#serve) [d](docs/operations.md#none)") == [
        "docs/none.md",
        "docs/operations.md#none",
    ]


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string of a module; what is put into an f-string shows as `…`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def missing(quoted: list[str]) -> list[str]:
    """Messages of which no string of the code holds the fixed parts, in order."""
    modules = [path for room in ("pipeline", "model", "assets") for path in (PROJECT / room).rglob("*.py")]
    code = "\0".join(text.replace("\0", "") for path in modules for text in texts(ast.parse(path.read_text())))
    patterns = {message: r"[^\0]*?".join(re.escape(part) for part in message.split("…")) for message in quoted}
    return [message for message, pattern in patterns.items() if not re.search(pattern, code)]


def test_pictures_are_those_that_tests_take_and_small():
    """So that `make pictures` renews every one."""
    taken = re.findall(r'picture\(page, "([\w-]+)"', (PROJECT / "tests" / "browser" / "test_uis.py").read_text())
    pictures = list((PROJECT / "docs").glob("*.png"))
    assert {picture.stem for picture in pictures} <= set(taken)
    assert all(5_000 < picture.stat().st_size < 200_000 for picture in pictures)


def test_quoted_messages_are_those_of_the_code():
    quoted = re.findall(r"^### `(.+)`$", (PROJECT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 50
    assert all(len(message.replace("…", "").strip()) > 10 for message in quoted)
    assert missing(quoted) == []
    invented = ["there is no dataset … of that name", "known: …; there is no dataset …"]
    assert missing(invented) == invented


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tutorial_does_what_it_says(tmp_path: Path):
    """Its files are written, its commands run in one shell, and what it shows of their output is in it."""
    # KILL: a process that pytest shares with other tests may have been made deaf to less, and what it starts is, too.
    script = ["set -euo pipefail", "trap 'kill -KILL $(jobs -p)' EXIT"]
    shown: dict[int, list[str]] = {}
    steps = 0
    for kind, title, content in FENCE.findall((PROJECT / "docs" / "tutorial.md").read_text()):
        if title:
            script.append(f"cat > {title} <<'END OF FILE'\n{content}END OF FILE")
        elif kind == "bash":
            steps += 1
            script += [f"echo '=== step {steps}'", content]
        else:
            shown[steps] = content.splitlines()
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=surroundings(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    (tmp_path / "output.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:]
    outputs = done.stdout.split("=== step ")
    assert len(outputs) == steps + 1
    assert shown
    for step, lines in shown.items():
        for line in lines:
            assert line in outputs[step], outputs[step]
    # What was edited reached its side alone.
    last_edit = next(output for output in outputs if "user prompt edited" in output and "ran" in output)
    assert "user_profiles" in last_edit
    assert not re.search(r"^│ item_profiles", last_edit, re.MULTILINE)
    assert not re.search(r"^│ .*lightgcn", last_edit, re.MULTILINE)
