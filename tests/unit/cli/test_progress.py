"""Live progress as a terminal gets it."""

import io

import pytest
from rich.console import Console

from atoll.cli import progress as module
from atoll.cli.progress import LiveProgress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120, markup=False, highlight=False)
    monkeypatch.setattr(module, "err", console)
    return written


def test_stages_bytes_and_vms_are_drawn(terminal: io.StringIO) -> None:
    with LiveProgress() as progress:
        for stage in ("plan", "prepare", "hold", "snapshot", "release", "proof", "map"):
            progress.stage("", stage)
        for vm in ("db1", "app1"):
            progress.stage(vm, "copy", 8 << 20)
            progress.advance(vm, 4 << 20)
            progress.note(vm, "something worth a line")
            progress.advance(vm, 4 << 20)
        progress.stage("", "commit")
        progress.stage("", "done")
    drawn = terminal.getvalue()
    for said in ("group", "db1", "app1", "copying", "8.0 MiB of 8.0 MiB", "done", "worth a line"):
        assert said in drawn


def test_a_line_a_stage_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveProgress() as progress:
        progress.stage("", "plan")
        progress.stage("db1\x1b[2J", "copy", 1)
        progress.advance("db1", 1)
    assert capsys.readouterr().err == "group: planning\ndb1\\x1b[2J: copying\n"
