"""A group snapshot is one instant for whoever writes to several LUNs over iSCSI."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from atoll.storage.drivers.embedded import backend as backend_module
from atoll.storage.drivers.embedded import btrfs, open_embedded
from atoll.storage.engine import ManagedEngine, Rules
from atoll.storage.limits import Allowances
from atoll.storage.targets.tgt import barrier
from atoll_lab.iscsi import IscsiLun
from atoll_lab.iscsi.ordered_writer import OrderedWriter, is_one_instant, newest
from atoll_lab.pool import image

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20
_FICLONE = 0x40049409
LUNS = ("first", "second")


@contextmanager
def writing(engine: ManagedEngine, *, flush: bool) -> Iterator[OrderedWriter]:
    engine.create_group("db")
    sessions = []
    for lun in LUNS:
        engine.create_lun("db", lun, 16 * MIB)
        portal = engine.present("db", lun, [HOST]).portals[0]
        sessions.append(IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST))
    writer = OrderedWriter(sessions, flush=flush)
    writer.start()
    try:
        yield writer
    finally:
        writer.end()
        for session in sessions:
            session.close()


def newest_of(engine: ManagedEngine, snapshot: str, lun: str) -> int:
    reader = engine.open_snapshot("db", lun, snapshot)
    try:
        return newest(reader)
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("durability", "flush", "snapshots"),
    [
        ("cache", False, 20),
        ("cache", True, 20),
        ("disk", False, 20),
        pytest.param("cache", False, 500, marks=pytest.mark.soak),
        pytest.param("cache", True, 500, marks=pytest.mark.soak),
        pytest.param("disk", False, 500, marks=pytest.mark.soak),
    ],
)
def test_every_snapshot_is_one_instant(
    pool: Path, durability: Literal["cache", "disk"], flush: bool, snapshots: int
) -> None:
    engine = open_embedded(pool, Rules(Allowances(reserve_bytes=MIB)), durability=durability)
    seen = []
    with writing(engine, flush=flush) as writer:
        for number in range(snapshots):
            before = writer.written
            taken = engine.snapshot_group("db", f"s{number}")
            after = writer.written
            assert taken.pause_seconds > 0
            first, second = (newest_of(engine, taken.name, lun) for lun in LUNS)
            assert is_one_instant([first, second]), f"snapshot {number} holds {first} and {second}"
            assert before <= second <= after + 1, "the snapshot is not of its time"
            seen.append(first)
    assert seen == sorted(seen)
    assert seen[-1] - seen[0] >= snapshots, "the writer hardly wrote, so nothing was tested"


@pytest.mark.parametrize("held", [True, False])
def test_it_is_the_barrier_that_makes_it_one(
    pool: Path, engine: ManagedEngine, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """A snapshot that takes the LUNs one by one, slowly, is whole behind the barrier and only there."""
    with writing(engine, flush=False) as writer:

        def one_by_one(source: Path, path: Path, *, read_only: bool) -> None:
            assert read_only
            btrfs.create_subvolume(path)
            for lun in LUNS:
                name = image(pool, "db", lun).name
                with (source / name).open("rb") as old, (path / name).open("wb") as new:
                    fcntl.ioctl(new, _FICLONE, old.fileno())
                reached = writer.written
                for _ in range(50 if held else 5000):
                    writer.join(timeout=0.01)
                    if writer.written > reached + 5 or writer.failure:
                        break

        monkeypatch.setattr(btrfs, "snapshot", one_by_one)
        if not held:
            monkeypatch.setattr(
                backend_module, "while_held", lambda _, action: barrier.while_held(None, action)
            )
        engine.snapshot_group("db", "s")
    first, second = (newest_of(engine, "s", lun) for lun in LUNS)
    assert is_one_instant([first, second]) == held


def test_two_instants_are_told_apart(engine: ManagedEngine) -> None:
    """The check above can fail: LUNs of two snapshots with writes between are no one instant."""
    with writing(engine, flush=False) as writer:
        engine.snapshot_group("db", "early")
        reached = writer.written
        while writer.written < reached + 5 and writer.failure is None:
            writer.join(timeout=0.01)
        engine.snapshot_group("db", "late")
    early, late = newest_of(engine, "early", "first"), newest_of(engine, "late", "second")
    assert not is_one_instant([early, late])
