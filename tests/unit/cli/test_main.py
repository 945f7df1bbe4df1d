"""The command itself: errors become one sentence and an exit status, never a traceback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from warm_atoll import WarmAtoll, warm_atoll

ATOLL = str(Path(sys.executable).with_name("atoll"))


ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "ATOLL_CONFIG"}


@pytest.fixture(scope="module")
def atoll() -> Iterator[WarmAtoll]:
    with warm_atoll() as running:
        yield running


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ATOLL, *arguments],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        ("inventory",),
        ("backup", "db1"),
        ("points",),
        ("verify",),
        ("prove", "db1@latest"),
        ("files", "db1@latest"),
        ("find", "passwd"),
        ("versions", "db1:/etc/passwd"),
        ("diff", "db1@latest", "db1"),
        ("export", "db1@latest"),
        ("agent", "list"),
        ("repo", "stats"),
        ("cleanup",),
        ("storage", "init"),
        ("storage", "list"),
    ],
)
def test_without_settings_every_command_says_where_they_may_be(
    tmp_path: Path, atoll: WarmAtoll, command: tuple[str, ...]
) -> None:
    done = atoll.run(*command, environment=ENVIRONMENT, cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("atoll: No settings found")
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_command_line_is_a_usage_error(tmp_path: Path) -> None:
    assert run(tmp_path, "bakcup").returncode == 2
    assert run(tmp_path, "backup").returncode == 2


def test_the_version_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("atoll 0.")


def test_help_lists_the_commands(tmp_path: Path) -> None:
    said = run(tmp_path, "--help").stdout
    for command in ("inventory", "backup", "points", "prove", "restore", "lab"):
        assert command in said
