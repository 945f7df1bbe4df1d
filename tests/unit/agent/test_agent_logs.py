"""What servers and the kernel say about recovery is read right."""

import pytest

from atoll_agent.kernellog import recovered_devices
from atoll_agent.modules import mariadblog, pglog
from atoll_agent.serverlog import log_since_start

PG = """\
LOG:  starting PostgreSQL 15.14
LOG:  database system was interrupted; last known up at 2026-01-01 00:00:00 UTC
LOG:  database system was not properly shut down; automatic recovery in progress
LOG:  redo starts at 1/FFFFFF00
LOG:  invalid record length at 2/138: wanted 24, got 0
LOG:  redo done at 2/100 system usage: CPU: user: 0.00 s
LOG:  database system is ready to accept connections
"""


def test_postgresql_says_how_much_it_replayed():
    assert pglog.judge_log(PG) == pglog.Recovery(0x200, False)


def test_postgresql_without_redo_replayed_nothing():
    log = "LOG:  redo is not required\nLOG:  database system is ready to accept connections\n"
    assert pglog.judge_log(log) == pglog.Recovery(0, False)


def test_postgresql_still_starting_says_nothing_yet():
    assert pglog.judge_log(PG.split("LOG:  redo done", maxsplit=1)[0]).replayed_bytes is None


def test_postgresql_repairs_are_seen():
    assert pglog.judge_log(PG + "WARNING:  invalid page in block 3; zeroing out page\n").repaired


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("InnoDB: End of log at LSN=44404\n", mariadblog.Recovery(0, False)),
        (
            "InnoDB: Starting crash recovery from checkpoint LSN=8515336\n"
            "InnoDB: End of log at LSN=8528176\n",
            mariadblog.Recovery(12840, False),
        ),
        (
            "InnoDB: Starting crash recovery from checkpoint LSN=5\n",
            mariadblog.Recovery(None, False),
        ),
        (
            "InnoDB: End of log at LSN=1\n[ERROR] mysqld: Table './a' is marked as crashed\n",
            mariadblog.Recovery(0, True),
        ),
    ],
)
def test_mariadb_says_how_much_it_replayed(log, expected):
    assert mariadblog.judge_log(log) == expected


def test_the_kernel_names_what_it_recovered():
    log = """\
EXT4-fs (vda1): recovery complete
EXT4-fs (vda1): mounted filesystem with ordered data mode
EXT4-fs (vdb): mounted filesystem with ordered data mode
XFS (dm-0): Starting recovery (logdev: internal)
XFS (vdc): Ending clean mount
BTRFS info (device vdd): start tree-log replay
"""
    assert recovered_devices(log) == {"vda1", "dm-0", "vdd"}


def test_a_log_is_found_through_the_servers_standard_error(tmp_path):
    import subprocess

    path = tmp_path / "server.log"
    path.write_text("START one\nold\n")
    with path.open("ab") as stream:
        server = subprocess.Popen(
            ["sh", "-c", "echo START two >&2; echo new >&2; echo up; read wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
        )
    with server:
        assert server.stdout.readline() == b"up\n"
        assert log_since_start(server.pid, "START") == "START two\nnew\n"
        assert log_since_start(server.pid, "never") is None
        server.stdin.close()
    assert log_since_start(server.pid, "START") is None
