"""How a long stage shows what it is doing: in a run's log, and on a terminal."""

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from assets import bars, progress, terminal

DETAIL = "310 cached, 21.3 prompts/s, 3,410 tokens/s, about 22 min left"


def test_the_log_says_how_far_and_how_fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    lines: list[str] = []
    context = SimpleNamespace(log=SimpleNamespace(info=lines.append))
    report = progress.Progress().bar(context, "writing item profiles")
    report(1200, 30_000, DETAIL)
    report(1201, 30_000)
    report(1201, 30_000)  # no news
    report(5, 0)
    assert lines == [
        f"writing item profiles: 1,200 of 30,000 ({DETAIL})",
        "writing item profiles: 1,201 of 30,000",
        "writing item profiles: 5",
    ]


def test_the_terminal_shows_it_beside_the_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bars, "SHOW_AFTER", 0)
    monkeypatch.setattr(terminal, "console", Console(force_terminal=True))
    report = bars.TerminalProgress().bar(None, "writing item profiles")
    report(1, 30)
    report(12, 30, DETAIL)
    task = bars.bars.tasks[-1]
    try:
        table = bars.bars.make_tasks_table([task])
        cells = [str(next(iter(column.cells))) for column in table.columns]
        assert cells[0].strip() == "writing item profiles"
        assert DETAIL in cells
    finally:
        bars.bars.remove_task(task.id)


def test_a_file_gets_lines_instead_of_a_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bars, "LINE_SECONDS", 0)
    written = StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=written, width=100))
    bars.TerminalProgress().bar(None, "training SGL")(3, 1000, "best validation recall_at_20 0.0712")
    bars.trial_bar("sgl")(1, 6, "best validation recall_at_20 0.0712")
    assert written.getvalue().splitlines() == [
        "  training SGL: 3 of 1,000 (best validation recall_at_20 0.0712)",
        "  trials of sgl: 1 of 6 (best validation recall_at_20 0.0712)",
    ]
