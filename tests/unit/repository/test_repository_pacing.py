"""Limits on speed, by a clock that only sleeping moves."""

import threading
from pathlib import Path

from atoll.model.extents import Extent
from atoll.repository.local import LocalStore
from atoll.repository.pacing import Bucket, Pace, paced_reader, paced_store
from repository_parts import MemoryDisk, noise

MIB = 1 << 20


class Clock:
    """Time passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def passed(self) -> float:
        return round(self.now - 100.0, 6)


def pace(clock: Clock, mib: float = 0, operations: float = 0) -> Pace:
    return Pace(mib, operations, clock, clock.sleep)


def test_a_second_s_worth_is_free_and_the_rest_takes_its_time() -> None:
    clock = Clock()
    bucket = Bucket(10, clock, clock.sleep)
    bucket.take(10)
    assert clock.passed == 0
    for _ in range(30):
        bucket.take(1)
    assert clock.passed == 3


def test_what_was_not_used_for_long_gives_no_more_than_a_second_s_worth() -> None:
    clock = Clock()
    bucket = Bucket(10, clock, clock.sleep)
    clock.now += 1000
    bucket.take(30)
    assert clock.passed == 1002


def test_more_than_a_second_s_worth_at_once_passes_and_is_paid_for() -> None:
    clock = Clock()
    bucket = Bucket(8, clock, clock.sleep)
    bucket.take(32)
    bucket.take(8)
    assert clock.passed == 4


def test_threads_share_the_bucket() -> None:
    slept: list[float] = []
    bucket = Bucket(10, lambda: 0.0, slept.append)  # no time passes: all of the debt is seen
    threads = [threading.Thread(target=bucket.take, args=(10,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slept) == [1, 2, 3, 4]


def test_reading_waits_for_bytes() -> None:
    clock = Clock()
    disk = MemoryDisk(noise(1, 6 * MIB))
    reader = paced_reader(disk, pace(clock, mib=1))
    assert reader.read(0, 2 * MIB) == disk.data[: 2 * MIB]
    assert clock.passed == 1
    pieces = list(reader.read_many([Extent(MIB, 3 * MIB), Extent(5 * MIB, 9 * MIB)]))
    assert b"".join(data for _, data in pieces) == disk.data[MIB : 4 * MIB] + disk.data[5 * MIB :]
    assert [offset for offset, _ in pieces] == [MIB, 2 * MIB, 3 * MIB, 5 * MIB]
    assert clock.passed == 5


def test_reading_waits_for_operations() -> None:
    clock = Clock()
    reader = paced_reader(MemoryDisk(noise(1, 64 << 10)), pace(clock, operations=4))
    for at in range(12):
        assert len(reader.read(at * 4096, 512)) == 512
    assert clock.passed == 2


def test_past_the_end_nothing_is_waited_for() -> None:
    clock = Clock()
    reader = paced_reader(MemoryDisk(b"x" * 100), pace(clock, mib=1))
    assert reader.read(100, 50 * MIB) == b""
    assert reader.read(90, 50 * MIB) == b"x" * 10
    assert clock.passed == 0


def test_the_rest_of_a_reader_is_as_it_was() -> None:
    disk = MemoryDisk(b"\0" * 100, [Extent(0, 100)])
    reader = paced_reader(disk, pace(Clock(), mib=1))
    assert (reader.size_bytes, list(reader.holes())) == (100, [Extent(0, 100)])
    reader.close()


def test_writing_waits_and_all_else_passes(tmp_path: Path) -> None:
    clock = Clock()
    store = paced_store(LocalStore.create(tmp_path / "r"), pace(clock, mib=1))
    store.put("packs/aa", [bytes(MIB), bytes(MIB)])
    assert clock.passed == 1
    store.replace("packs/aa", [bytes(MIB)])
    assert clock.passed == 2
    assert store.get("packs/aa") == bytes(MIB)
    assert [info.name for info in store.list("packs/")] == ["packs/aa"]
    assert store.location == str(tmp_path / "r")
    store.delete("packs/aa")
    store.close()
    assert clock.passed == 2


def test_no_limit_is_no_wrapper(tmp_path: Path) -> None:
    disk = MemoryDisk(b"")
    store = LocalStore.create(tmp_path / "r")
    assert paced_reader(disk, Pace()) is disk
    assert paced_store(store, Pace()) is store
    store.close()
