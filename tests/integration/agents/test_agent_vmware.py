"""VMware Tools' script holds real databases: by itself, with no agent that serves and no network."""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from private_guest import PG_BIN, await_that

from atoll.guests.account import read_account
from atoll_agent.vmware.ledger import Ledger
from atoll_agent.vmware.local import HOLDER
from atoll_agent.vmware.script import run_script

pytestmark = pytest.mark.needs_root
BOTH = {"postgresql", "mariadb"}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def script(agent, directory):
    """Called as VMware Tools would, where no agent serves: that of the fixture does elsewhere."""
    config = Path(agent.argv[-1])
    yield lambda operation: run_script(operation, config, directory)
    run_script("freezeFail", config, directory)


def account(directory):
    return read_account(Ledger(directory).account())


def writable(guest):
    """The databases that take a row now."""
    able = set()
    with contextlib.suppress(AssertionError):
        guest.psql("SET lock_timeout = '1s'; INSERT INTO ledger (note) VALUES ('x')")
        able.add("postgresql")
    with contextlib.suppress(AssertionError):
        guest.sql("SET lock_wait_timeout = 1; INSERT INTO shop.orders (note, n) VALUES ('x', 1)")
        able.add("mariadb")
    return able


def holder_process(directory):
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(directory / HOLDER))
        peer = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return os.pidfd_open(struct.unpack("3i", peer)[0])


def test_both_databases_are_held_from_freeze_to_thaw(guest, script, directory):
    assert writable(guest) == BOTH
    assert script("freeze") == 0
    assert writable(guest) == set()
    # Reading goes on, and the file systems are VMware Tools' own to freeze.
    rows = guest.psql("SELECT count(*) FROM ledger")
    assert not guest.frozen()
    assert account(directory).ended_at is None

    assert script("thaw") == 0

    assert writable(guest) == BOTH
    told = account(directory)
    assert (told.held, told.reason, told.filesystems_thawed) == (True, "", False)
    states = {each.kind: each for each in told.applications}
    assert {kind: state.held for kind, state in states.items()} == {
        "postgresql": True,
        "mariadb": True,
    }
    assert states["postgresql"].witness == rows


def test_the_disk_below_a_hold_needs_no_recovery_of_postgresql(guest, script, directory):
    guest.psql("INSERT INTO ledger (note) SELECT 'x' FROM generate_series(1, 1000)")
    script("freeze")
    control = subprocess.run(
        [PG_BIN / "pg_controldata", guest.mount / "pg/data"],
        capture_output=True,
        text=True,
        check=True,
    )
    position = next(
        line.split()[-1]
        for line in control.stdout.splitlines()
        if line.startswith("Latest checkpoint location:")
    )
    insert = guest.psql("SELECT pg_current_wal_insert_lsn()")
    script("thaw")
    [state] = [each for each in account(directory).applications if each.kind == "postgresql"]
    # Behind the checkpoint there is its own record and nothing else to replay.
    between = guest.psql(f"SELECT '{insert}'::pg_lsn - '{position}'::pg_lsn")
    assert int(between) <= 256, (position, insert, state)


def test_a_holder_that_is_killed_lets_the_databases_go(guest, script, directory):
    script("freeze")
    assert writable(guest) == set()
    process = holder_process(directory)
    signal.pidfd_send_signal(process, signal.SIGKILL)
    select.select([process], [], [], 60)
    os.close(process)
    await_that(lambda: writable(guest) == BOTH, "the watchdog lets go")
    assert script("thaw") == 0
    assert not account(directory).held
