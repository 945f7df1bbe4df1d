"""A group snapshot is one instant for whoever writes to several LUNs over iSCSI."""

import fcntl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from atoll.storage.drivers.embedded import EmbeddedEngine, barrier, btrfs
from atoll.storage.drivers.embedded import engine as engine_module
from atoll_lab.iscsi import IscsiLun

pytestmark = pytest.mark.needs_root

HOST = "iqn.1998-01.com.vmware:esx1"
MIB = 1 << 20
BLOCK = 4096
_FICLONE = 0x40049409
LUNS = ("first", "second")


class Writer(threading.Thread):
    """Writes 1, 2, 3… to the first LUN and then the second, each after the other is acknowledged."""

    def __init__(self, sessions: list[IscsiLun], *, flush: bool) -> None:
        super().__init__(daemon=True)
        self._sessions = sessions
        self._flush = flush
        self._ending = threading.Event()
        self.written = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                number = self.written + 1
                for session in self._sessions:
                    # Spread over the LUN, so that what a snapshot must flush is not one page.
                    session.write(number % 64 * BLOCK, struct.pack("<Q", number) * (BLOCK // 8))
                    if self._flush:
                        session.flush()
                self.written = number
        except Exception as error:  # noqa: BLE001 - handed to the test, which fails on it
            self.failure = error

    def end(self) -> None:
        self._ending.set()
        self.join()
        assert self.failure is None, self.failure


@contextmanager
def writing(engine: EmbeddedEngine, *, flush: bool) -> Iterator[Writer]:
    engine.create_group("db")
    sessions = []
    for lun in LUNS:
        engine.create_lun("db", lun, 16 * MIB)
        portal = engine.present("db", lun, [HOST]).portals[0]
        sessions.append(IscsiLun(f"{portal.address}:{portal.port}", portal.target, 1, HOST))
    writer = Writer(sessions, flush=flush)
    writer.start()
    try:
        yield writer
    finally:
        writer.end()
        for session in sessions:
            session.close()


def newest(engine: EmbeddedEngine, snapshot: str, lun: str) -> int:
    """The last number a snapshot holds of a LUN; every earlier one must be there too."""
    reader = engine.open_snapshot("db", lun, snapshot)
    numbers = [struct.unpack("<512Q", reader.read(slot * BLOCK, BLOCK)) for slot in range(64)]
    reader.close()
    assert all(len(set(block)) == 1 for block in numbers), "a block is torn"
    highest = max(block[0] for block in numbers)
    for slot, block in enumerate(numbers):
        assert block[0] == max(0, highest - (highest - slot) % 64), "an earlier write is missing"
    return highest


def is_one_instant(first: int, second: int) -> bool:
    """The second LUN holds what the first did, or is one write behind it."""
    return first in (second, second + 1)


@pytest.mark.parametrize(
    ("durability", "flush", "snapshots"),
    [
        ("cache", False, 20),
        ("cache", True, 20),
        ("disk", False, 20),
        pytest.param("cache", False, 100, marks=pytest.mark.soak),
        pytest.param("cache", True, 100, marks=pytest.mark.soak),
        pytest.param("disk", False, 100, marks=pytest.mark.soak),
    ],
)
def test_every_snapshot_is_one_instant(
    pool: Path, durability: Literal["cache", "disk"], flush: bool, snapshots: int
) -> None:
    engine = EmbeddedEngine("test", pool, reserve_bytes=MIB, durability=durability)
    seen = []
    with writing(engine, flush=flush) as writer:
        for number in range(snapshots):
            before = writer.written
            taken = engine.snapshot_group("db", f"s{number}")
            after = writer.written
            assert taken.pause_seconds > 0
            first, second = (newest(engine, taken.name, lun) for lun in LUNS)
            assert is_one_instant(first, second), f"snapshot {number} holds {first} and {second}"
            assert before <= second <= after + 1, "the snapshot is not of its time"
            seen.append(first)
    assert seen == sorted(seen)
    assert seen[-1] - seen[0] >= snapshots, "the writer hardly wrote, so nothing was tested"


@pytest.mark.parametrize("held", [True, False])
def test_it_is_the_barrier_that_makes_it_one(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """A snapshot that takes the LUNs one by one, slowly, is whole behind the barrier and only there."""
    with writing(engine, flush=False) as writer:

        def one_by_one(source: Path, path: Path, *, read_only: bool) -> None:
            assert read_only
            btrfs.create_subvolume(path)
            for lun in LUNS:
                with (
                    (source / f"{lun}.img").open("rb") as old,
                    (path / f"{lun}.img").open("wb") as new,
                ):
                    fcntl.ioctl(new, _FICLONE, old.fileno())
                reached = writer.written
                for _ in range(50 if held else 5000):
                    writer.join(timeout=0.01)
                    if writer.written > reached + 5 or writer.failure:
                        break

        monkeypatch.setattr(btrfs, "snapshot", one_by_one)
        if not held:
            monkeypatch.setattr(
                engine_module, "while_held", lambda _, action: barrier.while_held(None, action)
            )
        engine.snapshot_group("db", "s")
    first, second = (newest(engine, "s", lun) for lun in LUNS)
    assert is_one_instant(first, second) == held


def test_two_instants_are_told_apart(engine: EmbeddedEngine) -> None:
    """The check above can fail: LUNs of two snapshots with writes between are no one instant."""
    with writing(engine, flush=False) as writer:
        engine.snapshot_group("db", "early")
        reached = writer.written
        while writer.written < reached + 5 and writer.failure is None:
            writer.join(timeout=0.01)
        engine.snapshot_group("db", "late")
    early, late = newest(engine, "early", "first"), newest(engine, "late", "second")
    assert not is_one_instant(early, late)
