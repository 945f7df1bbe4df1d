"""How the commands speak, and the status they end with."""

import re
import sys
from pathlib import Path

import pytest

from atoll.cli import context
from atoll.cli.vcb import commands
from atoll.cli.vcb.console import Console

STAMP = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} 'vcbMounter' \d+ "


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["vcbMounter", *words])
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as caught:
        commands.vcb_mounter()
    return caught.value.code


def test_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Console("vcbMounter").progress('Copying "db1.vmx"', 1000)
    for done in (10, 500, 500, 700):
        bar(done)
    bar.finish()
    said = capsys.readouterr().out
    assert said.splitlines()[:2] == ['Copying "db1.vmx":', f"\t0%{'=' * 21}50%{'=' * 21}100%"]
    assert said.splitlines()[2] == "\t" + "*" * 50


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    for level in (0, 3):
        console = Console("vcbMounter", level)
        console.log("how it goes")
        console.error("what\nfailed")
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(STAMP, "[", line) for line in lines] == [
        "[error] Error: what failed",
        "[info] how it goes",
        "[error] Error: what failed",
    ]


def test_status(
    tmp_path: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(monkeypatch, "-U", f"{tmp_path}/nothing") == 0
    assert ended(monkeypatch, "-U", str(tmp_path)) == 0
    assert capsys.readouterr().out == f"Unmounted {tmp_path}\n"
    assert ended(monkeypatch, "-p", "geheim", "-t", "file") == 1
    said = capsys.readouterr().err
    assert "Error: -a is missing." in said
    assert "Usage: vcbMounter" in said
    assert "geheim" not in said
    # Whatever settings another command of this process had.
    context.choose(Path("/another.toml"))
    monkeypatch.setenv("ATOLL_CONFIG", "/not/there.toml")
    assert ended(monkeypatch, "-a", "name:x", "-r", str(tmp_path)) == 1
    assert "Cannot read /not/there.toml" in capsys.readouterr().err
