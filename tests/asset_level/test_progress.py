"""How a long stage shows what it is doing: in a run's log, and on a terminal."""

from types import SimpleNamespace

import pytest

from assets import progress, terminal

DETAIL = "310 cached, 21.3 prompts/s, 3,410 tokens/s, about 22 min left"


def test_the_log_says_how_far_and_how_fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    lines: list[str] = []
    context = SimpleNamespace(log=SimpleNamespace(info=lines.append))
    report = progress.Progress().bar(context, "writing item profiles")
    report(1200, 30_000, DETAIL)
    report(1201, 30_000)
    report(5, 0)
    assert lines == [
        f"writing item profiles: 1,200 of 30,000 ({DETAIL})",
        "writing item profiles: 1,201 of 30,000",
        "writing item profiles: 5",
    ]


def test_the_terminal_shows_it_beside_the_bar(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(terminal, "SHOW_AFTER", 0)
    report = terminal.TerminalProgress().bar(None, "writing item profiles")
    report(1, 30)
    report(12, 30, DETAIL)
    task = terminal.bars.tasks[-1]
    try:
        table = terminal.bars.make_tasks_table([task])
        cells = [str(next(iter(column.cells))) for column in table.columns]
        assert cells[0].strip() == "writing item profiles"
        assert DETAIL in cells
    finally:
        terminal.bars.remove_task(task.id)
