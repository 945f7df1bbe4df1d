"""The directory of a server's socket, and those of servers that were killed."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from atoll.nbd.passing import passing_socket

HOLD = """
import socket, sys
from atoll.nbd.passing import passing_socket
with passing_socket() as path:
    socket.socket(socket.AF_UNIX).bind(str(path))
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def passing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_what_a_dead_server_left_is_cleared(passing: Path) -> None:
    foreign = passing / "atoll-export-of-something-else"
    foreign.mkdir()
    (foreign / "kept").touch()
    (passing / "atoll-export-link").symlink_to(foreign)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(passing)},
    ) as holder:
        assert holder.stdout is not None
        held = Path(holder.stdout.readline().strip())
        with passing_socket() as own:
            assert held.is_socket(), "its server lives"
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(own))
        assert not own.parent.exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
        assert held.is_socket()
        with passing_socket() as own:
            assert not held.parent.exists()
            assert own.parent.exists()
    assert sorted(each.name for each in passing.iterdir()) == [
        "atoll-export-link",
        "atoll-export-of-something-else",
    ]
    assert (foreign / "kept").exists()
