"""What MySQL says of its InnoDB and in its log, from what servers of each series print."""

import pytest

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules import mysqllog
from atoll_agent.modules.innodbstate import Flavour, State, read_flavour, read_state

STATUS_57 = """InnoDB\t\t
=====================================
LOG
---
Log sequence number 2638295
Log flushed up to   2638295
Pages flushed up to 2634168
Last checkpoint at  2634159
History list length 12
"""
STATUS_80 = """InnoDB\t\t
Log sequence number          19535211
Log buffer assigned up to    19535211
Added dirty pages up to      19535211
Last checkpoint at           19535200
History list length 0
"""


class Server:
    """Answers what it was told to, and remembers the question."""

    def __init__(self, answer):
        self.answer, self.asked = answer, ""

    def ask(self, statement, deadline):
        self.asked = statement
        return self.answer


def state_of(answer, version):
    server = Server(answer)
    return read_state(server, Flavour(False, version), Deadline(1)), server.asked


def test_the_state_of_each_series():
    binlog = "\nbin.000001\t778\t\t\t\natoll: InnoDB\n"
    found, asked = state_of(binlog + STATUS_57, (5, 7))
    assert found == State("binlog bin.000001:778", 4136, 12)
    assert "SHOW MASTER STATUS" in asked
    found, asked = state_of(f"uuid:1-5\n{binlog[1:]}{STATUS_80}", (8, 4))
    assert found == State("gtid uuid:1-5", 11, 0)
    assert "SHOW BINARY LOG STATUS" in asked
    assert state_of("\natoll: InnoDB\n" + STATUS_80, (8, 0))[0].position == "lsn 19535211"


def test_a_server_that_does_not_tell_is_an_error():
    with pytest.raises(ApplicationError, match="does not tell its InnoDB status"):
        state_of("\natoll: InnoDB\nInnoDB\t\tdisabled", (8, 0))


@pytest.mark.parametrize(
    ("text", "flavour"),
    [
        ("10.11.6-MariaDB-0+deb12u1-log", Flavour(True, (10, 11))),
        ("5.7.29-log", Flavour(False, (5, 7))),
        ("8.0.36-28", Flavour(False, (8, 0))),
    ],
)
def test_flavours(text, flavour):
    assert read_flavour(Server(text), Deadline(1)) == flavour


def test_logs_of_recoveries():
    crashed = (
        "InnoDB: Log scan progressed past the checkpoint lsn 2634183\n"
        "InnoDB: Doing recovery: scanned up to log sequence number 2634192\n"
        "mysqld: ready for connections.\n"
    )
    assert mysqllog.judge_log(crashed).replayed_bytes == 9
    newer = (
        "[InnoDB] Starting to parse redo log at lsn = 100, whereas checkpoint_lsn = 90 and\n"
        "[InnoDB] Doing recovery: scanned up to log sequence number 200\n"
        "[InnoDB] Doing recovery: scanned up to log sequence number 340\n"
    )
    assert mysqllog.judge_log(newer).replayed_bytes == 250
    clean = mysqllog.judge_log("mysqld: ready for connections.")
    assert (clean.replayed_bytes, clean.repaired) == (0, False)
    assert mysqllog.judge_log("InnoDB: initializing").replayed_bytes is None
    assert mysqllog.judge_log("[ERROR] InnoDB: page is corrupt").repaired
