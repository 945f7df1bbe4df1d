"""Space comes back, and nothing that anybody relies on goes: whoever writes, reads or prunes beside."""

import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from atoll.model.errors import (
    RepositoryDamagedError,
    RepositoryUnreachableError,
    RunConflictError,
    UnknownPointError,
)
from atoll.model.extents import Extent
from atoll.model.points import RestorePoint
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, CountingStore, Interposed, MemoryDisk, image, noise, point

STRIDES = [pytest.param(1, marks=pytest.mark.soak), 5]
"""Every moment, or each fifth of them."""
COMMON = noise(1, 20 * CHUNK)
PACK = 64 << 10
"""Small, so that a few chunks fill one."""


@pytest.fixture
def opened(place: Path, key: KeyFile, repository: Repository) -> Callable[[], Repository]:
    return lambda: Repository(LocalStore.open(place), key, pack_bytes=PACK)


def commit(repository: Repository, name: str, data: bytes) -> RestorePoint:
    made = point(name, image(repository.copy_disk(MemoryDisk(data))))
    repository.commit([made])
    return made


def content(repository: Repository, made: RestorePoint) -> bytes:
    reader = repository.open_disk(made.disks[0])
    try:
        return reader.read(0, reader.size_bytes)
    finally:
        reader.close()


def packs(place: Path) -> int:
    return sum(path.is_file() for path in (place / "packs").rglob("*"))


def whole(repository: Repository, **points: bytes) -> None:
    """These are the restore points, each has its content, and nothing is damaged."""
    found = {made.id: made for made in repository.points()}
    assert found.keys() == points.keys()
    for name, data in points.items():
        assert content(repository, found[name]) == data
    assert repository.verify().damaged == ()


def test_what_a_killed_writer_left_goes_and_points_stay(
    repository: Repository, place: Path, opened: Callable[[], Repository]
) -> None:
    commit(repository, "p1", COMMON)
    before = repository.stats().stored_bytes
    child = os.fork()
    if child == 0:
        dying = opened()
        dying.copy_disk(MemoryDisk(COMMON + noise(2, 50 * CHUNK)))
        dying.get_blob(dying.put_blob(b"blob"))  # makes the packs durable and indexed
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (place / "tmp" / "ab").write_bytes(b"half a pack")

    plan = repository.prune_plan()
    assert plan.unused_packs >= 3
    report = repository.prune()
    assert report.removed_packs == plan.unused_packs
    assert report.freed_bytes == plan.unused_bytes + len(b"half a pack")
    assert report.waiting_for == ()
    assert repository.stats().stored_bytes == before
    whole(repository, p1=COMMON)
    # What was pruned is not taken for stored.
    commit(repository, "p2", COMMON + noise(2, 50 * CHUNK))
    whole(repository, p1=COMMON, p2=COMMON + noise(2, 50 * CHUNK))


def test_a_writer_that_was_open_before_does_not_rely_on_what_went(
    repository: Repository, opened: Callable[[], Repository]
) -> None:
    data = noise(3, 30 * CHUNK)
    with opened() as dying:
        dying.copy_disk(MemoryDisk(data))
        dying.get_blob(dying.put_blob(b"flush"))
    early = opened()
    assert early.stats().chunks > 30  # its index knows the doomed chunks
    assert repository.prune().removed_packs >= 1
    assert early.copy_disk(MemoryDisk(data)).new_chunks == 30
    early.abandon()
    commit(early, "p1", data)
    whole(repository, p1=data)


def test_a_forgotten_point_gives_its_space_back_and_no_other(
    repository: Repository, place: Path, opened: Callable[[], Repository]
) -> None:
    only_first, only_second = noise(2, 40 * CHUNK), noise(3, 40 * CHUNK)
    with opened() as writer:
        commit(writer, "p1", COMMON + only_first)
        commit(writer, "p2", COMMON + only_second)
    before = repository.stats().stored_bytes
    assert [made.id for made in repository.forget({"p1", "never-was"})] == ["p1"]
    assert repository.stats().stored_bytes > before - PACK, "points are small; packs still there"
    report = opened().prune()
    assert report.freed_bytes >= len(only_first)
    whole(repository, p2=COMMON + only_second)
    assert opened().prune().removed_packs == 0, "nothing is left to do"


def test_points_of_one_commit_are_forgotten_one_by_one(repository: Repository) -> None:
    disk = image(repository.copy_disk(MemoryDisk(COMMON)))
    repository.commit([point("p1", disk), point("p2", disk), point("p3", disk)])
    repository.forget({"p2"})
    whole(repository, p1=COMMON, p3=COMMON)
    repository.forget({"p1", "p3"})
    repository.prune()
    assert repository.stats().packs == 0


def test_what_is_needed_of_wasteful_packs_is_moved_under_an_open_reader(
    place: Path, key: KeyFile, repository: Repository
) -> None:
    waste = noise(2, 60 * CHUNK)
    first = commit(repository, "p1", COMMON + waste)
    commit(repository, "p2", COMMON)
    reading = Repository.open(place, key)
    reader = reading.open_disk(repository.find("p2").disks[0])
    assert reader.read(0, CHUNK) == COMMON[:CHUNK]
    repository.forget({first.id})
    plan = repository.prune_plan()
    assert (plan.unused_packs, plan.repacked_packs) == (0, 1)
    assert plan.wasted_bytes >= len(waste)
    report = repository.prune()
    assert report.moved_bytes == plan.repacked_bytes
    assert report.freed_bytes > len(waste)
    # Its index still names the old pack.
    assert reader.read(0, len(COMMON)) == COMMON
    assert list(reader.read_many([Extent(0, len(COMMON))]))[-1][1] == COMMON[-CHUNK:]
    whole(repository, p2=COMMON)
    assert repository.prune().moved_bytes == 0, "moved once"


def test_moving_has_a_bound(repository: Repository, opened: Callable[[], Repository]) -> None:
    parts = [noise(seed, 8 * CHUNK) for seed in range(2, 8)]
    with opened() as writer:
        commit(
            writer, "p1", b"".join(noise(90 + n, 8 * CHUNK) + part for n, part in enumerate(parts))
        )
        commit(writer, "p2", b"".join(parts))
    repository.forget({"p1"})
    pruner = opened()
    plan = pruner.prune_plan()
    assert plan.repacked_packs > 2
    report = pruner.prune(repack_bytes=plan.repacked_bytes // 2)
    assert 0 < report.moved_bytes <= plan.repacked_bytes // 2
    assert pruner.prune().moved_bytes > 0
    whole(repository, p2=b"".join(parts))


def test_what_stays_wasted_is_told(repository: Repository) -> None:
    waste = 4 * CHUNK
    first = commit(repository, "p1", COMMON + noise(2, waste))
    commit(repository, "p2", COMMON)
    assert repository.prune().kept_bytes == 0
    repository.forget({first.id})
    plan = repository.prune_plan()
    report = repository.prune()
    assert (report.freed_bytes, report.moved_bytes) == (0, 0)
    assert waste < plan.kept_bytes < waste + 3 * CHUNK, "that, and what a disk's image takes"
    assert report.kept_bytes == plan.kept_bytes
    whole(repository, p2=COMMON)


def test_small_packs_are_joined_when_they_make_a_whole_one(
    repository: Repository, place: Path, opened: Callable[[], Repository]
) -> None:
    with opened() as writer:
        for number in range(40):
            commit(writer, f"p{number}", noise(number, CHUNK // 2))
        assert packs(place) == 40
        writer.prune()
        assert packs(place) <= 2
        assert writer.prune().moved_bytes == 0
    assert {made.id for made in repository.points()} == {f"p{number}" for number in range(40)}
    assert repository.verify().damaged == ()


def test_many_small_segments_become_few(repository: Repository, place: Path) -> None:
    for number in range(70):
        commit(repository, f"p{number}", noise(number, CHUNK // 2))
    assert len(list((place / "index").iterdir())) == 70
    repository.prune()
    assert len(list((place / "index").iterdir())) <= 2
    assert len(repository.points()) == 70
    assert repository.verify().damaged == ()


def test_a_writer_that_relies_on_unneeded_chunks_is_waited_for(
    repository: Repository, opened: Callable[[], Repository]
) -> None:
    data = noise(4, 30 * CHUNK)
    commit(repository, "p1", data)
    writer = opened()
    copied = writer.copy_disk(MemoryDisk(data))
    assert copied.new_chunks == 0
    repository.forget({"p1"})
    report = repository.prune()
    assert report.removed_packs == 0
    assert report.marked_packs >= 1
    assert "which writes since" in report.waiting_for[0]
    writer.commit([point("p2", image(copied))])
    assert repository.prune().removed_packs == 0
    whole(repository, p2=data)


def test_a_writer_that_saw_the_mark_stores_anew(
    repository: Repository, opened: Callable[[], Repository]
) -> None:
    data = noise(4, 30 * CHUNK)
    commit(repository, "p1", data)
    early = opened()
    early.begin()
    repository.forget({"p1"})
    assert repository.prune().marked_packs >= 1
    late = opened()
    copied = late.copy_disk(MemoryDisk(data))
    assert copied.new_chunks == 30, "marked packs count for nothing"
    early.close()
    assert repository.prune().removed_packs >= 1, "who saw the mark is not waited for"
    late.commit([point("p2", image(copied))])
    whole(repository, p2=data)


def test_an_image_that_is_carried_over_stays_though_its_point_goes(
    repository: Repository, opened: Callable[[], Repository]
) -> None:
    data = bytearray(noise(5, 60 * CHUNK))
    parent = commit(repository, "p1", bytes(data))
    writer = opened()
    data[:CHUNK] = noise(6, CHUNK)
    copied = writer.copy_disk(
        MemoryDisk(bytes(data)), extents=[Extent(0, CHUNK)], parent=parent.disks[0]
    )
    repository.forget({"p1"})
    repository.prune()
    writer.commit([point("p2", image(copied))])
    repository.prune()
    whole(repository, p2=bytes(data))


def test_a_forgotten_image_is_not_carried_over(
    repository: Repository, opened: Callable[[], Repository]
) -> None:
    parent = commit(repository, "p1", COMMON)
    repository.forget({"p1"})
    with opened() as writer, pytest.raises(RepositoryDamagedError, match="nothing was committed"):
        writer.copy_disk(MemoryDisk(COMMON), extents=[], parent=parent.disks[0])
    assert repository.prune().removed_packs == 1


def test_what_somebody_reads_stays_until_he_is_done(
    repository: Repository, opened: Callable[[], Repository]
) -> None:
    made = commit(repository, "p1", COMMON)
    with opened() as reading:
        reader = reading.open_disk(made.disks[0])
        repository.forget({"p1"})
        assert repository.prune().removed_packs == 0
        assert reader.read(0, len(COMMON)) == COMMON
    assert repository.prune().removed_packs == 1
    with opened() as reading, pytest.raises(UnknownPointError, match="forgotten"):
        reading.open_disk(made.disks[0])


def test_one_prunes_at_a_time(
    repository: Repository, place: Path, opened: Callable[[], Repository]
) -> None:
    commit(repository, "p1", COMMON)
    lock = LocalStore.open(place).maintain()
    for work in (repository.prune, repository.rebuild_index, lambda: repository.forget({"p1"})):
        with pytest.raises(RunConflictError, match="tidied by another"):
            work()
    lock.release()
    whole(repository, p1=COMMON)


def test_a_writer_taken_for_dead_commits_nothing(
    repository: Repository, place: Path, opened: Callable[[], Repository]
) -> None:
    writer = opened()
    copied = image(writer.copy_disk(MemoryDisk(COMMON)))
    for path in (place / "sessions").iterdir():
        path.unlink()
    with pytest.raises(RunConflictError, match="taken for dead"):
        writer.commit([point("p1", copied)])
    assert repository.points() == []
    repository.prune()
    assert repository.stats().packs == 0


def test_nothing_is_pruned_while_a_point_cannot_be_read(
    repository: Repository, place: Path
) -> None:
    commit(repository, "p1", COMMON)
    commit(repository, "p2", noise(2, CHUNK))
    repository.forget({"p2"})
    (path,) = (place / "points").iterdir()
    path.write_bytes(b"damaged")
    with pytest.raises(RepositoryDamagedError, match="which restore points it names"):
        repository.prune()
    assert repository.stats().packs == 2


def test_an_unreadable_mark_is_dropped(repository: Repository, place: Path) -> None:
    commit(repository, "p1", COMMON)
    (place / "marks").mkdir()
    (place / "marks" / ("0" * 32)).write_bytes(b"damaged")
    repository.prune()
    assert list((place / "marks").iterdir()) == []
    whole(repository, p1=COMMON)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_prune_cut_short_anywhere_harms_nothing_and_is_finished_by_the_next(
    repository: Repository,
    place: Path,
    key: KeyFile,
    when: str,
    stride: int,
    opened: Callable[[], Repository],
) -> None:
    waste, kept, more = noise(2, 30 * CHUNK), noise(3, 9 * CHUNK), noise(4, 30 * CHUNK)
    for number in count(1, stride):
        with opened() as writer:
            commit(writer, "p1", waste + kept)
            disk = image(writer.copy_disk(MemoryDisk(more)))
            writer.commit([point("p3", disk), point("p4", disk)])
            commit(writer, "p2", kept)
        store = CountingStore(LocalStore.open(place), number, when)
        try:
            with Repository(store, key, pack_bytes=PACK) as pruner:
                pruner.forget({"p1", "p3", "p4"})
                pruner.prune()
        except RepositoryUnreachableError:
            assert store.fired
        with opened() as after:
            for made in after.points():
                expected = {"p1": waste + kept, "p2": kept}.get(made.id, more)
                assert content(after, made) == expected
            assert after.verify().damaged == ()
            after.forget({"p1", "p3", "p4"})
            after.prune()
            whole(after, p2=kept)
            plan = after.prune_plan()
            assert (plan.unused_packs, plan.repacked_packs) == (0, 0)
            after.forget({"p2"})
            after.prune()
            assert packs(place) == 0
        if not store.fired:
            break
    assert number > 12, "every change was cut off, and the last time none was left to be"


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("increment", [False, True])
def test_a_prune_at_any_moment_of_a_writer(
    place: Path, key: KeyFile, opened: Callable[[], Repository], increment: bool, stride: int
) -> None:
    old = noise(5, 30 * CHUNK)
    new = noise(6, CHUNK) + old[CHUNK:]
    for at in count(1, stride):
        with opened() as keeper:
            parent = commit(keeper, "p1", old)

            def forget_and_prune() -> None:
                with opened() as pruner:
                    pruner.forget({"p1"})
                    pruner.prune()
                    pruner.prune()

            store = Interposed(LocalStore.open(place), at, forget_and_prune)
            writer = Repository(store, key, pack_bytes=PACK)  # type: ignore[arg-type]
            try:
                copied = writer.copy_disk(
                    MemoryDisk(new),
                    extents=[Extent(0, CHUNK)] if increment else None,
                    parent=parent.disks[0] if increment else None,
                )
                writer.commit([point("p2", image(copied))])
            except RepositoryDamagedError as error:
                # The point it should be based on was forgotten before it had it in its hands.
                assert increment and "copy it again" in str(error)
                writer.close()
                commit(keeper, "p2", new)
            else:
                writer.close()
            keeper.forget({"p1"})
            keeper.prune()
            whole(keeper, p2=new)
            keeper.forget({"p2"})
            keeper.prune()
            assert packs(place) == 0
        if not store.fired:
            break
    assert at > 15


@pytest.mark.parametrize("stride", STRIDES)
def test_a_writer_at_any_moment_of_a_prune(
    place: Path, key: KeyFile, opened: Callable[[], Repository], stride: int
) -> None:
    old, other = noise(5, 30 * CHUNK), noise(7, 20 * CHUNK)
    for at in count(1, stride):
        with opened() as keeper:
            commit(keeper, "p1", old + other)
            commit(keeper, "p2", other)
            early = opened()
            carried = early.copy_disk(MemoryDisk(old[: 20 * CHUNK]))

            def write() -> None:
                early.commit([point("p3", image(carried))])  # noqa: B023 - called in this round
                early.close()  # noqa: B023
                with opened() as late:
                    commit(late, "p4", old)

            with opened() as forgetful:
                forgetful.forget({"p1"})
            store = Interposed(LocalStore.open(place), at, write)
            with Repository(store, key, pack_bytes=PACK) as pruner:  # type: ignore[arg-type]
                pruner.prune()
            if not store.fired:
                write()
            expected = {"p2": other, "p3": old[: 20 * CHUNK], "p4": old}
            whole(keeper, **expected)
            keeper.prune()
            whole(keeper, **expected)
            keeper.forget({"p2", "p3", "p4"})
            keeper.prune()
            assert packs(place) == 0
        if not store.fired:
            break
    assert at > 20


@pytest.mark.parametrize("stride", STRIDES)
def test_a_verify_beside_a_prune_finds_no_damage(
    place: Path, key: KeyFile, opened: Callable[[], Repository], stride: int
) -> None:
    waste, kept = noise(2, 30 * CHUNK), noise(3, 9 * CHUNK)
    for at in count(1, stride):
        with opened() as keeper:
            commit(keeper, "p1", waste + kept)
            commit(keeper, "p2", kept)

            def forget_and_prune() -> None:
                with opened() as pruner:
                    pruner.forget({"p1"})
                    pruner.prune()

            store = Interposed(LocalStore.open(place), at, forget_and_prune)
            with Repository(store, key, pack_bytes=PACK) as verifier:  # type: ignore[arg-type]
                assert verifier.verify().damaged == ()
            keeper.forget({"p1", "p2"})
            keeper.prune()
            assert packs(place) == 0
        if not store.fired:
            break
    assert at > 20
