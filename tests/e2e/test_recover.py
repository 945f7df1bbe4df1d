"""A VM that runs again at once: from the storage's snapshot and from the repository, side by side."""

import signal
import time

import pytest

from atoll_lab.guests.control import GuestShell
from atoll_lab.guests.errors import LabGuestError
from atoll_lab.guests.load import Committed, postgres_load
from live_lab import LiveLab, until

pytestmark = pytest.mark.lab

HOST, HOME = "esx2.lab", "esx2-local"
BOOT_SECONDS = 300.0
AS_POSTGRES = "cd /tmp; setpriv --reuid postgres --regid postgres --init-groups psql -XAtq bench -c"


def test_postgresql_answers_from_the_snapshot_and_from_the_repository(lab: LiveLab) -> None:
    production = postgres_load(lab.shell("db1"))
    production.start(3)
    until(lambda: production.committed().rows > 0, 60, "a commit")
    run = lab.check("backup", "db1", "--json").json["points"][0]["run"]
    before = lab.assert_in_order()
    production.stop()
    first, second = "db1-from-snapshot", "db1-from-repo"
    words = ("--host", HOST, "--datastore", HOME, "--json")
    for name, source in ((first, "snapshot"), (second, "repository")):
        made = lab.check(
            "recover", "vm", f"db1@{run}", "--from", source, "--name", name, *words
        ).json
        assert made["powered_on"] and made["recovery"]["source"] == source
    shells = {name: lab.shell(name) for name in (first, second)}
    held = {name: _answer(shell, name) for name, shell in shells.items()}
    assert held[first] == held[second], "both are the same instant"
    assert 0 < held[first].rows <= production.committed().rows
    for name, shell in shells.items():
        assert shell.check("ls /sys/class/net").split() == ["lo"], "no network unless asked for"
        shell.check(f"{AS_POSTGRES} 'CREATE TABLE recovered AS SELECT generate_series(1, 1000)'")
        assert shell.check(f"{AS_POSTGRES} 'SELECT count(*) FROM recovered'").strip() == "1000", (
            name
        )
    states = {one["vm_name"]: one["state"] for one in lab.check("recover", "list", "--json").json}
    assert states == {first: "running", second: "running"}
    for name in (first, second):
        lab.check("recover", "end", name, "--discard")
    assert "recovered" not in lab.shell("db1").check(f"{AS_POSTGRES} '\\dt'")
    assert lab.assert_in_order() == before


def test_a_recovery_that_was_killed_is_seen_and_cleared(lab: LiveLab) -> None:
    before = lab.assert_in_order()
    lab.control.inject_fault("CreateVM_Task", delay_seconds=3.0)
    words = ("--from", "repository", "--host", HOST, "--datastore", HOME, "--name", "db1-killed")
    with lab.start("recover", "vm", "db1@latest", *words) as process:
        until(lambda: lab.control.faults()[0]["fired"], 120, "its VM")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    until(lambda: _state(lab) == "cut short", 60, "its lock to be free")
    # What was asked of vCenter is carried out although nobody waits for it.
    time.sleep(4)
    assert "Cleared recovery db1-killed" in lab.check("cleanup").out
    assert lab.check("recover", "list", "--json").json == []
    lab.control.clear_faults()
    assert lab.assert_in_order() == before


def _answer(shell: GuestShell, name: str) -> Committed:
    found: Committed = until(lambda: _ledger(shell), BOOT_SECONDS, f"an answer of {name}")
    return found


def _ledger(shell: GuestShell) -> Committed | None:
    try:
        return postgres_load(shell).committed()
    except LabGuestError:
        return None


def _state(lab: LiveLab) -> str:
    (found,) = lab.check("recover", "list", "--json").json
    return str(found["state"])
