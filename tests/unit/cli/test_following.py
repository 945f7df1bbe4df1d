"""`atoll inventory --follow`: what a terminal, a pipe and a program get."""

import io
import json
from contextlib import contextmanager

import pytest
from rich.console import Console
from rich.table import Table

from atoll.cli import following
from atoll.cli.following import follow, say
from atoll.model.changes import ChangeKind, Changes, InventoryChange
from atoll.model.errors import StorageUnreachableError, VCenterUnreachableError


def change(number, kind=ChangeKind.VM_MOVED_HOST, **fields):
    values = {"subject": "db1", "moref": "vm-1", "before": "esx1", "after": "esx2", "at": 0.0}
    return InventoryChange(number=number, kind=kind, **{**values, **fields})


class Scripted:
    """A vCenter that is followed, tells these answers, and then the person interrupts."""

    def __init__(self, *answers: Changes) -> None:
        self._answers = list(answers)
        self.asked: list[int] = []
        self.left = False

    @contextmanager
    def follow(self):
        yield self
        self.left = True

    def wait_for_change(self, since, seconds):
        self.asked.append(since)
        if not self._answers:
            raise KeyboardInterrupt
        return self._answers.pop(0)


def table(cell="first"):
    drawn = Table("VM")
    drawn.add_row(cell)
    return drawn


def test_a_program_gets_a_line_of_json_a_change(capsys):
    vcenter = Scripted(
        Changes(2, (change(1), change(2, ChangeKind.VM_POWER))),
        Changes(2, ()),
        Changes(9, (), True),
    )

    follow(vcenter, lambda: pytest.fail("no table"), as_json=True)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("number") for line in lines] == [1, 2, None]
    assert lines[0]["kind"] == "vm-moved-host"
    assert (lines[0]["before"], lines[0]["after"]) == ("esx1", "esx2")
    assert lines[2] == {"kind": "missed"}
    assert vcenter.asked == [0, 2, 2, 9]
    assert vcenter.left


def test_a_pipe_gets_the_table_once_and_a_line_a_change(capsys):
    follow(Scripted(Changes(1, (change(1, subject="db\x1b[2J1"),))), table, as_json=False)

    said = capsys.readouterr().out
    assert said.count("first") == 1
    assert "moved from esx1 to esx2" in said
    assert "\x1b" not in said


def test_a_terminal_gets_the_table_anew_with_each_change(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(
        following, "out", Console(file=written, force_terminal=True, width=100, markup=False)
    )
    tables = iter([table("first"), table("second"), table("third")])

    follow(
        Scripted(Changes(0, ()), Changes(1, (change(1),)), Changes(1, ())),
        lambda: next(tables),
        as_json=False,
    )

    drawn = written.getvalue()
    assert "first" in drawn
    assert "second" in drawn
    assert "third" not in drawn, "nothing had changed"
    assert "moved from esx1 to esx2" in drawn


def test_the_last_table_stays_while_vcenter_is_lost(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(
        following, "out", Console(file=written, force_terminal=True, width=100, markup=False)
    )
    draws = [0]

    def draw():
        draws[0] += 1
        if draws[0] > 1:
            raise VCenterUnreachableError("nobody answers")
        return table("first")

    lost = change(1, ChangeKind.VCENTER_LOST, subject="", after="it is down")
    follow(Scripted(Changes(0, ()), Changes(1, (lost,))), draw, as_json=False)

    assert "lost vCenter: it is down" in written.getvalue()
    assert "nobody answers" not in written.getvalue(), "it is told once"
    with pytest.raises(VCenterUnreachableError):
        follow(Scripted(Changes(0, ())), draw, as_json=False)


def test_what_else_keeps_the_table_from_being_drawn_is_told_below_it(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(
        following, "out", Console(file=written, force_terminal=True, width=100, markup=False)
    )
    tables = iter([table("first")])

    def draw():
        for drawn in tables:
            return drawn
        raise StorageUnreachableError("the pool is away")

    follow(Scripted(Changes(0, ()), Changes(1, (change(1),))), draw, as_json=False)

    assert "the pool is away" in written.getvalue()


def test_every_kind_of_change_can_be_said():
    for kind in ChangeKind:
        assert say(change(1, kind))
