"""Writes are held around a snapshot, and never for longer than they must be."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from san_system import MIB, SanSystem

pytestmark = pytest.mark.needs_root

LUNS = ("a", "b", "c", "d")
HELD = """
import os, sys, time
from atoll.storage.drivers.san.helper import dm
from atoll.storage.drivers.san.helper.hold import BarrierBrokenError, while_held
devices = [name for name in dm.names() if name.startswith("atoll-") and dm.find(name).open_count]
def action():
    assert all(dm.find(name).suspended for name in devices)
    sys.stdout.write(f"{len(devices)}\\n")
    sys.stdout.flush()
"""


@contextmanager
def writing(system: SanSystem, group: str, luns: int) -> Iterator[OrderedWriter]:
    engine = system.engine
    engine.create_group(group)
    sessions = []
    for lun in LUNS[:luns]:
        engine.create_lun(group, lun, 16 * MIB)
        sessions.append(system.connect(group, lun))
    writer = OrderedWriter(sessions, flush=False)
    writer.start()
    try:
        yield writer
    finally:
        writer.end()
        for session in sessions:
            session.close()
        engine.delete_group(group, force=True)


def goes_on(writer: OrderedWriter) -> None:
    """Wait for two rounds more: one may have been under way."""
    last = writer.written + 2
    while writer.written < last and writer.is_alive():
        writer.join(0.05)
    assert writer.failure is None


@pytest.mark.parametrize("snapshots", [8, pytest.param(200, marks=pytest.mark.soak)])
def test_a_group_snapshot_is_one_instant(system: SanSystem, snapshots: int) -> None:
    engine = system.engine
    with writing(system, "instant", 4) as writer:
        for number in range(snapshots):
            goes_on(writer)
            before = writer.written
            engine.snapshot_group("instant", f"s{number}")
            found = []
            for lun in LUNS:
                with closing(engine.open_snapshot("instant", lun, f"s{number}")) as reader:
                    found.append(newest(reader))
            assert is_one_instant(found), f"snapshot {number} holds {found}"
            assert found[-1] >= before, "an acknowledged write is missing"
            engine.delete_snapshot("instant", f"s{number}")


def test_a_helper_killed_within_the_hold_leaves_nothing_held(system: SanSystem) -> None:
    with writing(system, "killed", 2) as writer:
        goes_on(writer)
        killed = system.inside(
            HELD
            + "if os.fork() == 0:\n"
            + "    while_held(devices, lambda: (action(), os.kill(os.getpid(), 9)))\n"
            + "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) != -9)\n"
        )
        assert killed == "2\n"
        goes_on(writer)


def test_a_helper_that_hangs_is_not_waited_for(system: SanSystem) -> None:
    with writing(system, "hanging", 2) as writer:
        said = system.inside(
            HELD
            + "def hang():\n"
            + "    action()\n"
            + "    while dm.find(devices[0]).suspended:\n"
            + "        time.sleep(0.01)\n"
            + "try:\n"
            + "    while_held(devices, hang, 0.5)\n"
            + "except BarrierBrokenError as error:\n"
            + "    sys.stdout.write(str(error))\n"
        )
        assert said.startswith("2\nWrites were held for 0.5 s and the snapshot was not done")
        goes_on(writer)


def test_what_helper_and_watchdog_left_held_is_let_go_by_the_next_helper(
    system: SanSystem,
) -> None:
    with writing(system, "left", 2) as writer:
        goes_on(writer)
        system.inside(HELD + "for name in devices: dm.suspend(name)\n")
        system.open().capacity()  # starts a helper
        goes_on(writer)
