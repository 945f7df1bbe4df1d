"""Loads are started, read and stopped by command lines that a plain shell understands."""

import pytest

from atoll_lab.guests.control import CommandResult
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.load import Committed, Rate, mariadb_load, postgres_load

LOG = """pgbench (15.18 (Debian 15.18-0+deb12u1))
progress: 1700000001.5 s, 232.0 tps, lat 8.609 ms stddev 4.1, 0 failed
progress: 1700000002.5 s, 240.5 tps, lat 8.300 ms stddev 3.9, 0 failed
progress: torn
"""


class FakeShell:
    def __init__(self, output=""):
        self.output, self.commands = output, []

    def run(self, command, timeout_seconds=60.0):
        self.commands.append(command)
        return CommandResult(0, self.output, "")

    def check(self, command, timeout_seconds=60.0):
        return self.run(command).output


def test_rates_second_by_second():
    assert postgres_load(FakeShell(LOG)).rates() == [
        Rate(1700000001.5, 232.0),
        Rate(1700000002.5, 240.5),
    ]


def test_a_rate_limit_is_passed_only_when_given():
    shell = FakeShell()
    postgres_load(shell, clients=3).start(60)
    postgres_load(shell).start(60, rate=50)
    assert " -R " not in shell.commands[1]
    assert "-c 3 " in shell.commands[1]
    assert "-T 60 -R 50 " in shell.commands[3]


def test_mariadbs_load_gets_its_seconds_and_rate():
    shell = FakeShell()
    mariadb_load(shell).start(30, rate=20)
    assert "shop_load.py 30 20 " in shell.commands[1]


def test_committed_rows():
    assert postgres_load(FakeShell("17 16\n")).committed() == Committed(17, 16)
    with pytest.raises(LabGuestError, match="two numbers"):
        mariadb_load(FakeShell("")).committed()
