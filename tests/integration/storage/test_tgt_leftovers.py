"""What is left of dead clients of a tgtd, and of a tgtd that died."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.storage.targets.tgt.leftovers import dismiss_dead_callers
from atoll.storage.targets.tgt.process import TargetProcess
from tgt_site import MIB, TgtSite, tgt_site

pytestmark = pytest.mark.needs_root

ASKS_NOTHING = """
import os, signal, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TgtSite]:
    with tgt_site(tmp_path) as one:
        one.add("a")
        one.serve()
        yield one


def rests(process: TargetProcess) -> bool:
    """Whether its main thread is ever seen waiting; one that goes in a circle never does."""
    where = Path(f"/proc/{process.pid}/task/{process.pid}/syscall")
    for _ in range(50):
        if where.read_text() != "running\n":
            return True
        time.sleep(0.01)
    return False


def test_dead_callers_keep_it_busy_until_the_next_look(site: TgtSite) -> None:
    path = str(site.run / f"{site.group}.tgt.0")
    process = site.targets.process(site.group)
    assert process is not None
    with process, site.connect("a", reconnect=False) as lun:
        for _ in range(50):
            # tgtd takes the end of a connection for "try again" when that was its last error,
            # which waiting for data of a write leaves.
            lun.write(0, b"1" * 8 * MIB)
            subprocess.run([sys.executable, "-c", ASKS_NOTHING, path], check=False)
            if not rests(process):
                break
        else:
            pytest.fail("this tgtd lets go of dead callers by itself; the remedy can go")
        site.serve()
        assert rests(process)
        assert dismiss_dead_callers(process) == 0
        assert lun.read(0, 512) == b"1" * 512
        assert site.serve() == []


def test_callers_that_live_are_left_alone(site: TgtSite) -> None:
    path = str(site.run / f"{site.group}.tgt.0")
    process = site.targets.process(site.group)
    assert process is not None
    with process, socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(path)
        assert dismiss_dead_callers(process) == 0
        site.serve()
        waiting.sendall(b"\0")


def test_a_killed_daemon_that_nothing_needs_is_forgotten(tmp_path: Path) -> None:
    with tgt_site(tmp_path) as site:
        site.add("a")
        site.serve()
        process = site.targets.process(site.group)
        assert process is not None
        with process:
            process.signal(signal.SIGKILL)
            assert process.ended(20)
        assert site.targets.served() == [site.group]
        site.exports.clear()
        assert site.serve() == []
        assert site.targets.served() == []
