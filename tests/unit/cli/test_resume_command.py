"""`atoll resume`, and what an interrupted backup says is kept."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from atoll.cli import backup, context
from atoll.cli.main import app
from atoll.service.resuming import Resumed, kept_note
from repository_parts import point

DONE = Resumed("r1", (point("r1"),), 4096, ("Went on with run r1.",))
GIVEN_UP = Resumed("r2", (), 0, ("Run r2 was given up.",))
COMMITTED = Resumed("r3", (), 0, ())


@pytest.fixture
def resumes(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Resumed]], None]:
    """Has the command find these runs."""
    monkeypatch.setattr(context, "site", SimpleNamespace)

    def found(done: list[Resumed]) -> None:
        monkeypatch.setattr(backup, "resume_runs", lambda site, run, progress: done)

    return found


@pytest.mark.parametrize(
    ("done", "status", "said"),
    [
        ([], 0, "No run was cut off"),
        ([DONE, COMMITTED], 0, "Went on with run r1."),
        ([DONE, GIVEN_UP], 1, "was given up."),
    ],
)
def test_what_it_says(
    resumes: Callable[[list[Resumed]], None], done: list[Resumed], status: int, said: str
) -> None:
    resumes(done)
    result = CliRunner().invoke(app, ["resume"])
    assert (result.exit_code, said in result.output) == (status, True), result.output
    assert CliRunner().invoke(app, ["resume", "--json"]).exit_code == status


def test_an_interrupted_copy_says_that_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "site", SimpleNamespace)

    def interrupted(*args: object) -> None:
        error = KeyboardInterrupt()
        error.add_note(kept_note("r1"))
        raise error

    monkeypatch.setattr(backup, "resume_runs", interrupted)
    result = CliRunner().invoke(app, ["resume"])
    assert result.exit_code == 130
    assert "--drop-interrupted" in result.output
