"""The overlay against a plain array of bytes, and after every death of the process or the machine."""

import errno
import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.errors import StorageConflictError
from atoll.model.extents import Extent
from atoll.recovery.overlay import BLOCK_BYTES, Overlay

SECTOR = 512
SIZE = 9 * BLOCK_BYTES + 3 * SECTOR  # the last block is not whole


class Below:
    """A point's disk."""

    def __init__(self, size: int = SIZE) -> None:
        self.size_bytes = size
        self.content = bytes((at * 7 + at // 251) % 255 + 1 for at in range(size))

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        raise NotImplementedError

    def holes(self) -> Iterable[Extent]:
        return ()

    def close(self) -> None:
        """Nothing is held."""


class Machine:
    """Files of which the machine's death leaves what was synced and any sectors of what was not."""

    def __init__(self) -> None:
        self.safe: dict[str, bytearray] = {}
        self.cached: dict[str, bytearray] = {}
        self.pending: dict[str, list[tuple[int, bytes]]] = {}
        self.calls = 0
        self.dies_at: int | None = None

    def open(self, path: Path, size: int) -> "_File":
        for content in (self.safe, self.cached):
            content.setdefault(path.name, bytearray(size))
        self.pending.setdefault(path.name, [])
        return _File(self, path.name)

    def call(self) -> None:
        self.calls += 1
        if self.dies_at is not None and self.calls >= self.dies_at:
            raise KeyboardInterrupt

    def restarted(self, chance: random.Random) -> "Machine":
        """After a power cut: of what was not synced each sector is there or not, whatever its order."""
        after = Machine()
        for name, content in self.safe.items():
            left = bytearray(content)
            for offset, data in self.pending[name]:
                at = 0
                while at < len(data):
                    part = min(len(data) - at, SECTOR - (offset + at) % SECTOR)
                    if chance.random() < 0.5:
                        left[offset + at : offset + at + part] = data[at : at + part]
                    at += part
            after.safe[name] = left
            after.cached[name] = bytearray(left)
            after.pending[name] = []
        return after

    def survived(self) -> "Machine":
        """After the death of the process alone: the kernel has all that it was given."""
        self.dies_at = None
        return self


class _File:
    def __init__(self, machine: Machine, name: str) -> None:
        self._machine = machine
        self._name = name

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._machine.cached[self._name][offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._machine.call()
        content = bytes(data)
        self._machine.cached[self._name][offset : offset + len(content)] = content
        self._machine.pending[self._name].append((offset, content))

    def sync(self) -> None:
        self._machine.call()
        self._machine.safe[self._name][:] = self._machine.cached[self._name]
        self._machine.pending[self._name].clear()

    def close(self) -> None:
        """Nothing is lost by it."""


def overlay(machine: Machine, below: Below, boot: str = "boot-1") -> Overlay:
    return Overlay(below, Path("/nowhere"), "point", machine.open, boot)


WRITES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK_BYTES), st.integers(0, 255)),
        st.just("flush"),
        st.just("again"),
    ),
    max_size=25,
)


@given(WRITES)
@settings(max_examples=60, deadline=None)
def test_it_reads_as_an_array_of_bytes_does(steps: list[tuple[int, int, int] | str]) -> None:
    machine, below = Machine(), Below()
    model = bytearray(below.content)
    disk = overlay(machine, below)
    for step in steps:
        if step == "flush":
            disk.flush()
        elif step == "again":
            disk = overlay(machine, below)  # the process died, its machine did not
        elif not isinstance(step, str):
            offset, length, value = step
            data = bytes([value]) * min(length, SIZE - offset)
            disk.write(offset, data)
            model[offset : offset + len(data)] = data
            assert disk.read(offset, length + 700) == model[offset : offset + length + 700]
    assert disk.read(0, SIZE + 1) == model
    assert disk.written_bytes() % BLOCK_BYTES == 0


def play(disk: Overlay, seed: int, acknowledged: bytearray, flushed: list[bytes]) -> list[int]:
    """Sector writes and flushes; what was acknowledged, each flushed state, sectors ever written."""
    chance = random.Random(seed)
    touched: list[int] = []
    for _ in range(12):
        if chance.random() < 0.25:
            disk.flush()
            flushed.append(bytes(acknowledged))
            touched.clear()
            continue
        first = chance.randrange(SIZE // SECTOR)
        count = min(chance.choice((1, 2, 8, 16)), SIZE // SECTOR - first)
        data = bytes([chance.randrange(256)]) * (count * SECTOR)
        touched += range(first, first + count)
        disk.write(first * SECTOR, data)
        acknowledged[first * SECTOR : (first + count) * SECTOR] = data
    return touched


@pytest.mark.parametrize("seed", range(6))
def test_a_power_cut_at_any_call_loses_nothing_that_was_flushed(seed: int) -> None:
    below = Below()
    whole = Machine()
    play(overlay(whole, below), seed, bytearray(below.content), [])
    for dies_at in range(1, whole.calls + 1):
        machine = Machine()
        machine.dies_at = dies_at
        acknowledged, flushed = bytearray(below.content), [bytes(below.content)]
        written: list[tuple[int, bytes]] = []
        with pytest.raises(KeyboardInterrupt):
            disk = overlay(machine, below)
            _recording(disk, written, flushed)
            play(disk, seed, acknowledged, flushed)
            raise KeyboardInterrupt
        for look in range(3):
            after = machine.restarted(random.Random(f"{seed}/{dies_at}/{look}"))
            found = overlay(after, below, "boot-2").read(0, SIZE)
            _assert_possible(found, flushed[-1], written)


def _recording(disk: Overlay, written: list[tuple[int, bytes]], flushed: list[bytes]) -> None:
    """Note writes as they begin: from then on either may be there."""
    write, flush = disk.write, disk.flush

    def noted(offset: int, data: bytes | memoryview) -> None:
        written.append((offset, bytes(data)))
        write(offset, data)

    def done() -> None:
        flush()
        written.clear()

    disk.write, disk.flush = noted, done  # type: ignore[method-assign]


def _assert_possible(found: bytes, flushed: bytes, since: list[tuple[int, bytes]]) -> None:
    """Each sector is as it was flushed, or as a write since then left it."""
    for at in range(0, SIZE, SECTOR):
        allowed = {flushed[at : at + SECTOR]}
        for offset, data in since:
            if offset <= at < offset + len(data):
                allowed.add(data[at - offset : at - offset + SECTOR])
        assert found[at : at + SECTOR] in allowed, f"sector at {at}"


@pytest.mark.parametrize("seed", range(6))
def test_the_death_of_the_process_at_any_call_loses_nothing_that_was_acknowledged(
    seed: int,
) -> None:
    below = Below()
    whole = Machine()
    play(overlay(whole, below), seed, bytearray(below.content), [])
    for dies_at in range(1, whole.calls + 1):
        machine = Machine()
        machine.dies_at = dies_at
        acknowledged, written = bytearray(below.content), []
        with pytest.raises(KeyboardInterrupt):
            disk = overlay(machine, below)
            _recording(disk, written, [])
            play(disk, seed, acknowledged, [])
            raise KeyboardInterrupt
        found = overlay(machine.survived(), below).read(0, SIZE)
        # Only the write that it died in may be there in part.
        _assert_possible(found, bytes(acknowledged), written[-1:])


def test_what_recent_says_counts_in_its_own_boot_alone() -> None:
    machine, below = Machine(), Below()
    disk = overlay(machine, below)
    disk.write(0, b"x" * BLOCK_BYTES)
    assert overlay(machine, below, "boot-1").read(0, 1) == b"x"
    assert overlay(machine, below, "boot-2").read(0, 1) == below.content[:1]


def test_a_flush_that_failed_is_never_forgotten() -> None:
    machine, below = Machine(), Below()
    disk = overlay(machine, below)
    disk.write(0, b"x")

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    disk._data.sync = fail  # type: ignore[method-assign]
    for attempt in (disk.flush, disk.flush, lambda: disk.write(0, b"y")):
        with pytest.raises(OSError, match=r"Input/output error|an earlier flush failed"):
            attempt()


def test_another_point_is_not_taken_for_the_one_below(tmp_path: Path) -> None:
    Overlay(Below(), tmp_path, "point").close()
    with pytest.raises(StorageConflictError, match="another disk"):
        Overlay(Below(), tmp_path, "other point")
    with pytest.raises(StorageConflictError, match="another disk"):
        Overlay(Below(SIZE + SECTOR), tmp_path, "point")


def test_its_files_are_sparse_and_go_on_where_they_were(tmp_path: Path) -> None:
    below = Below()
    disk = Overlay(below, tmp_path, "point")
    disk.write(5 * BLOCK_BYTES + 100, b"written")
    disk.close()
    assert (tmp_path / "data").stat().st_blocks * 512 <= 2 * BLOCK_BYTES
    again = Overlay(below, tmp_path, "point")
    expected = bytearray(below.content)
    expected[5 * BLOCK_BYTES + 100 : 5 * BLOCK_BYTES + 107] = b"written"
    assert again.read(0, SIZE) == expected
    assert again.written_bytes() == BLOCK_BYTES
    again.close()


def test_beyond_the_end_there_is_no_room(tmp_path: Path) -> None:
    disk = Overlay(Below(), tmp_path, "point")
    with pytest.raises(OSError, match="beyond the end"):
        disk.write(SIZE - 1, b"xx")
    assert disk.read(SIZE, 10) == b""
    disk.close()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_parts_of_one_block_written_at_once_are_all_there(seed: int) -> None:
    machine, below = Machine(), Below()
    disk = overlay(machine, below)
    places = [(seed + each) % 8 for each in range(8)]
    gate = threading.Barrier(len(places))

    def write(place: int) -> None:
        gate.wait()
        disk.write(place * SECTOR, bytes([place + 1]) * SECTOR)
        disk.flush()

    threads = [threading.Thread(target=write, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert disk.read(0, BLOCK_BYTES) == b"".join(bytes([n + 1]) * SECTOR for n in range(8))
    assert overlay(machine.restarted(random.Random(seed)), below, "boot-2").read(0, SECTOR) == (
        b"\1" * SECTOR
    )
