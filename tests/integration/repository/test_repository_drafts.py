"""A copy that is cut off is gone on with: only what was missing is read, and nothing of it is pruned."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from atoll.model.errors import RepositoryDamagedError, StorageUnreachableError
from atoll.model.extents import Extent, total_bytes
from atoll.model.points import DiskImage
from atoll.repository import copying, drafts
from atoll.repository.copying import CopiedDisk
from atoll.repository.drafts import DRAFTS, DraftDisk, DraftLog
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.pages import TableWriter
from atoll.repository.repository import Repository
from atoll.repository.store import ObjectStore
from repository_parts import Interposed, MemoryDisk, image, noise, point

CHUNK = 16384
UNIT = 256 << 10
PACK = UNIT
SIZE = 24 * UNIT
CUT = 18 * UNIT
"""Where reading breaks off; some of what is before it has been taken by then."""
KEEP = 3600.0
STRIDES = [pytest.param(1, marks=pytest.mark.soak), 101]
"""Every moment, or a few of them."""

Opened = Callable[..., Repository]


class CutDisk(MemoryDisk):
    """A disk whose storage goes away when reading comes to an offset."""

    def __init__(self, data: bytes, cut: int = CUT, holes: Sequence[Extent] = ()) -> None:
        super().__init__(data, holes)
        self._cut = cut

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        for offset, data in super().read_many(extents):
            if offset + len(data) > self._cut:
                raise StorageUnreachableError("The disk is gone on purpose; run again.")
            yield offset, data


@pytest.fixture(autouse=True)
def _small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small disks are copied in many steps, and each may be drafted."""
    monkeypatch.setattr(drafts, "_MOST_OF_THE_TIME", 0)
    monkeypatch.setattr(copying, "_READ_BYTES", UNIT)
    monkeypatch.setattr(copying, "_PACK_BYTES", UNIT // 2)


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory: each draft is durable, and there are many."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder) / "repository"


@pytest.fixture
def repository(place: Path, key: KeyFile) -> Repository:
    return Repository.create(place, key, chunk_bytes=CHUNK)


@pytest.fixture
def opened(place: Path, key: KeyFile, repository: Repository) -> Opened:
    def opened(wrap: Callable[[ObjectStore], ObjectStore] = lambda store: store) -> Repository:
        return Repository(wrap(LocalStore.open(place)), key, pack_bytes=PACK)

    return opened


def copy(
    repository: Repository,
    disk: MemoryDisk,
    extents: Sequence[Extent] | None = None,
    parent: DiskImage | None = None,
    run: str = "r1",
    every: float = 0.0,
) -> CopiedDisk:
    draft = repository.draft(run, KEEP, every)
    return repository.copy_disk(
        disk, extents=extents, parent=parent, threads=1, draft=draft.disk("u1", 2000)
    )


def cut_off(
    opened: Opened,
    data: bytes,
    extents: Sequence[Extent] | None = None,
    parent: DiskImage | None = None,
    holes: Sequence[Extent] = (),
) -> DraftDisk:
    """A copy that ends in the middle as a killed one does, and what it left."""
    writer = opened()
    with pytest.raises(StorageUnreachableError):
        copy(writer, CutDisk(data, holes=holes), extents, parent)
    writer.close()
    return part_of(opened)


def part_of(opened: Opened) -> DraftDisk:
    """What the draft says of its only disk."""
    with opened() as repository:
        (disk,) = repository.drafts()["r1"].disks
        return disk


def content(repository: Repository, root: str, size: int) -> bytes:
    disk = DiskImage(2000, "", "", size, root, "", (), 0, 0, 0)
    reader = repository.open_disk(disk)
    try:
        return reader.read(0, size)
    finally:
        reader.close()


def committed(repository: Repository, copied: CopiedDisk, data: bytes, run: str = "r1") -> None:
    """The copy becomes a point that is whole."""
    repository.commit([point(run, image(copied))])
    repository.drop_draft(run)
    assert content(repository, copied.root, copied.size_bytes) == data
    assert repository.verify().damaged == ()


def objects(place: Path) -> list[Path]:
    return sorted((place / "drafts").glob("*"))


def test_only_what_is_missing_is_read_again(opened: Opened, place: Path) -> None:
    data = noise(1, 5 * UNIT) + bytes(2 * UNIT) + noise(2, SIZE - 7 * UNIT)
    holes = [Extent(5 * UNIT, UNIT)]
    part = cut_off(opened, data, holes=holes)
    assert 2 * UNIT < part.copied_to < CUT
    assert len(objects(place)) == 1, "each takes the place of the one before"
    disk = MemoryDisk(data, holes)
    with opened() as writer:
        seen: list[int] = []
        draft = writer.draft("r1", KEEP, 0.0)
        copied = writer.copy_disk(disk, draft=draft.disk("u1", 2000), progress=seen.append)
        wanted = total_bytes([Extent(0, 5 * UNIT), Extent(6 * UNIT, SIZE - 6 * UNIT)])
        assert total_bytes(disk.reads) == wanted - part.read_bytes
        assert min(extent.offset for extent in disk.reads) >= part.copied_to
        assert sum(seen) == copied.read_bytes == wanted
        assert copied.stored_bytes >= wanted - 2 * UNIT > part.stored_bytes > 0
        committed(writer, copied, data)
        assert objects(place) == []


def test_it_can_be_cut_off_again_and_again(opened: Opened) -> None:
    data = noise(3, 40 * UNIT)
    cut_off(opened, data)
    before = 0
    for cut in (28 * UNIT, 38 * UNIT):
        disk = CutDisk(data, cut)
        writer = opened()
        with pytest.raises(StorageUnreachableError):
            copy(writer, disk)
        writer.close()
        part = part_of(opened)
        assert before < part.copied_to <= cut
        before = part.copied_to
    disk = MemoryDisk(data)
    with opened() as writer:
        copied = copy(writer, disk)
        assert total_bytes(disk.reads) == len(data) - before
        committed(writer, copied, data)


@pytest.mark.parametrize("size", [SIZE, SIZE + 3 * UNIT + 100])
def test_an_increment_goes_on_upon_its_parent(opened: Opened, size: int) -> None:
    """Also where the disk has become larger, so that what was its end is read anew."""
    old = noise(4, SIZE)
    data = bytearray((old + noise(5, 4 * UNIT))[:size])
    changes = [Extent(at, 225_000) for at in range(UNIT // 2, SIZE - 2 * UNIT, UNIT)]
    for each in changes:
        data[each.offset : each.end] = noise(each.offset, each.length)
    extents = [*changes, Extent(SIZE, size - SIZE)] if size > SIZE else changes
    with opened() as writer:
        parent = image(writer.copy_disk(MemoryDisk(old)))
        writer.commit([point("r0", parent)])
    part = cut_off(opened, bytes(data), extents, parent)
    assert part.parent == parent.root
    disk = MemoryDisk(bytes(data))
    with opened() as writer:
        copied = copy(writer, disk, extents, parent)
        assert total_bytes(disk.reads) == copied.read_bytes - part.read_bytes
        assert min(extent.offset for extent in disk.reads) >= part.copied_to
        committed(writer, copied, bytes(data))


@pytest.mark.parametrize("cut", [CUT // 2, CUT])
def test_a_disk_that_became_smaller_comes_out_right(opened: Opened, cut: int) -> None:
    """There need be no draft: its end cuts a chunk of the parent in two, until that is copied."""
    old = noise(4, SIZE)
    data = noise(5, SIZE - 3 * CHUNK) + old[SIZE - 3 * CHUNK : -700]
    with opened() as writer:
        parent = image(writer.copy_disk(MemoryDisk(old)))
        writer.commit([point("r0", parent)])
    extents = [Extent(0, SIZE - 3 * CHUNK)]
    writer = opened()
    with pytest.raises(StorageUnreachableError):
        copy(writer, CutDisk(data, cut), extents, parent)
    writer.close()
    with opened() as writer:
        committed(writer, copy(writer, MemoryDisk(data), extents, parent), data)


def test_a_part_never_stands_on_a_chunk_that_was_only_promised(opened: Opened, place: Path) -> None:
    """A job that is further on may have met the chunk first, and not have stored it yet."""
    data = noise(6, CHUNK)
    with opened() as writer:
        session, codec = writer._begin(), writer._codec
        name = codec.name(data)
        assert session.promise(name), "by the other job"
        table = TableWriter(None, 2 * CHUNK, CHUNK, lambda page: session.put(page).name)
        table.set(0, CHUNK, name)
        disk = writer.draft("r1", KEEP, 0.0).disk("u1", 2000)
        assert disk.begin(session, 2 * CHUNK, "") is None

        def so_far() -> str:
            return session.put(table.as_it_stands().to_bytes()).name.hex()

        disk.reached(CHUNK, so_far)
        assert objects(place) == []
        session.store(name, codec.pack(data))
        disk.reached(2 * CHUNK, so_far)
    with opened() as writer:
        part = writer.draft("r1", KEEP).known("u1", 2000)
        assert part is not None
        assert part.copied_to == CHUNK, "what it was when it was looked at"
        assert content(writer, part.root, CHUNK) == data


def test_a_disk_that_was_copied_whole_is_not_read_again(opened: Opened) -> None:
    first, second = noise(7, UNIT), noise(8, SIZE)
    writer = opened()
    draft = writer.draft("r1", KEEP, 0.0)
    writer.copy_disk(MemoryDisk(first), draft=draft.disk("u1", 2000))
    with pytest.raises(StorageUnreachableError):
        writer.copy_disk(CutDisk(second), threads=1, draft=draft.disk("u1", 2001))
    writer.close()
    with opened() as writer:
        draft = writer.draft("r1", KEEP)
        assert draft.copied_bytes > len(first)
        disk = MemoryDisk(first)
        whole = writer.copy_disk(disk, draft=draft.disk("u1", 2000))
        other = writer.copy_disk(MemoryDisk(second), draft=draft.disk("u1", 2001))
        assert (disk.reads, whole.read_bytes) == ([], len(first))
        writer.commit([point("r1", image(whole), image(other))])
        assert content(writer, whole.root, len(first)) == first
        assert content(writer, other.root, len(second)) == second
        assert writer.verify().damaged == ()


def test_a_short_copy_leaves_no_draft(opened: Opened, place: Path) -> None:
    with opened() as writer:
        copy(writer, MemoryDisk(noise(9, SIZE)), every=3600.0)
        assert objects(place) == []


def test_another_parent_or_size_is_begun_anew(opened: Opened) -> None:
    data = noise(10, SIZE)
    cut_off(opened, data)
    disk = MemoryDisk(data[:-CHUNK])
    with opened() as writer:
        copied = copy(writer, disk)
        assert total_bytes(disk.reads) == copied.read_bytes == len(disk.data)


def test_a_prune_leaves_what_a_draft_needs_until_it_is_dropped(
    opened: Opened, repository: Repository, place: Path
) -> None:
    data = noise(11, SIZE)
    part = cut_off(opened, data)
    repository.prune()
    assert repository.prune().removed_packs == 0
    with opened() as reader:
        reader.draft("r1", KEEP)
        assert content(reader, part.root, SIZE)[: part.copied_to] == data[: part.copied_to]
    repository.drop_draft("r1")
    repository.prune()
    assert not [path for path in (place / "packs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("why", ["committed", "over", "damaged"])
def test_a_draft_that_nobody_goes_on_with_goes_with_a_prune(
    opened: Opened, repository: Repository, place: Path, why: str
) -> None:
    cut_off(opened, noise(12, SIZE))
    repository.commit([point("r1" if why == "committed" else "other")])
    (path,) = objects(place)
    if why == "damaged":
        path.write_bytes(b"damaged")
    if why == "over":
        master = repository._master
        log = DraftLog(LocalStore.open(place), master, lambda: time.time() + KEEP + 1)
        assert log.going_on(frozenset()) == {}
        assert log.drop_stale(frozenset()) > 0
    repository.prune()
    assert objects(place) == []
    assert repository.stats().packs == 0


def test_the_newer_of_two_drafts_counts(
    opened: Opened, repository: Repository, place: Path
) -> None:
    """As they are when the process was killed before it removed the older one."""
    older = cut_off(opened, noise(13, SIZE))
    draft = repository.drafts()["r1"]
    log = DraftLog(LocalStore.open(place), repository._master)
    log.put(type(draft)("r1", draft.written_at - 60, draft.until, ()))
    assert repository.drafts()["r1"].disks == (older,)
    repository.prune()
    assert len(objects(place)) == 1


def test_a_draft_that_lost_something_counts_for_nothing(
    opened: Opened, repository: Repository, place: Path
) -> None:
    """An Atoll that knows no drafts may have pruned."""
    data = noise(14, SIZE)
    cut_off(opened, data)
    kept = {path: path.read_bytes() for path in objects(place)}
    repository.drop_draft("r1")
    repository.prune()
    for path, raw in kept.items():
        path.write_bytes(raw)
    repository.prune()  # is not kept from working by it
    with opened() as writer:
        disk = MemoryDisk(data)
        copied = copy(writer, disk)
        assert total_bytes(disk.reads) == SIZE
        committed(writer, copied, data)


def test_a_damaged_draft_is_named_and_mended(
    opened: Opened, repository: Repository, place: Path
) -> None:
    cut_off(opened, noise(15, SIZE))
    (path,) = objects(place)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (damage,) = repository.verify().damaged
    assert damage.object == DRAFTS + path.name
    assert "r1" in repository.drafts()
    assert repository.repair().healed == (damage.object,)
    assert path.read_bytes() == whole


def test_a_parent_that_only_a_marked_pack_holds_stays_though_it_is_forgotten(
    opened: Opened, repository: Repository
) -> None:
    """A writer who saw a mark may carry over what another, who did not see it, had rested on its packs."""
    data = noise(16, UNIT)
    with opened() as writer:
        writer.commit([point("p1", image(writer.copy_disk(MemoryDisk(data))))])
    early = opened()
    early.begin()
    repository.forget({"p1"})
    repository.prune()  # marks, and waits for the early one
    parent = image(early.copy_disk(MemoryDisk(data)))
    early.commit([point("p2", parent)])
    late = opened()  # sees the mark
    changed = noise(17, CHUNK) + data[CHUNK:]
    copied = late.copy_disk(MemoryDisk(changed), extents=[Extent(0, CHUNK)], parent=parent)
    repository.forget({"p2"})
    repository.prune()
    late.commit([point("p3", image(copied))])
    assert content(late, copied.root, UNIT) == changed
    assert late.verify().damaged == ()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stride", STRIDES)
def test_a_prune_at_any_moment_of_one_who_goes_on(opened: Opened, place: Path, stride: int) -> None:
    """Its draft is dropped by another meanwhile, as one whose time is over."""
    data = noise(18, 13 * UNIT)
    for at in count(1, stride):
        writer = opened()
        with pytest.raises(StorageUnreachableError):
            copy(writer, CutDisk(data, 12 * UNIT))
        writer.close()
        assert len(objects(place)) == 1

        def drop_and_prune() -> None:
            with opened() as pruner:
                pruner.drop_draft("r1")
                pruner.prune()
                pruner.prune()

        stores: list[Interposed] = []

        def interposed(inner: ObjectStore) -> ObjectStore:
            stores.append(Interposed(inner, at, drop_and_prune))  # noqa: B023 - called in this round
            return stores[0]  # type: ignore[return-value]  # noqa: B023

        with opened(interposed) as writer:
            copied = copy(writer, MemoryDisk(data))
            writer.commit([point("r1", image(copied))])
        with opened() as keeper:
            keeper.prune()
            assert content(keeper, copied.root, len(data)) == data
            assert keeper.verify().damaged == ()
            keeper.forget({"r1"})
            keeper.prune()
            keeper.prune()
        assert not [path for path in (place / "packs").rglob("*") if path.is_file()]
        assert objects(place) == []
        if not stores[0].fired:
            break
    assert at > 20


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stride", STRIDES)
def test_one_who_goes_on_at_any_moment_of_a_prune(opened: Opened, place: Path, stride: int) -> None:
    data, other = noise(19, 13 * UNIT), noise(20, UNIT)
    for at in count(1, stride):
        with opened() as keeper:
            keeper.commit([point("gone", image(keeper.copy_disk(MemoryDisk(other))))])
        writer = opened()
        with pytest.raises(StorageUnreachableError):
            copy(writer, CutDisk(data, 12 * UNIT))
        writer.close()
        assert len(objects(place)) == 1

        def go_on() -> None:
            with opened() as late:
                copied = copy(late, MemoryDisk(data))
                late.commit([point("r1", image(copied))])
                late.drop_draft("r1")

        store = Interposed(LocalStore.open(place), at, go_on)
        with opened() as forgetful:
            forgetful.forget({"gone"})
        with opened(lambda inner: store) as pruner:  # type: ignore[arg-type,return-value]  # noqa: B023
            pruner.prune()
        if not store.fired:
            go_on()
        with opened() as keeper:
            keeper.prune()
            (made,) = keeper.points()
            assert content(keeper, made.disks[0].root, len(data)) == data
            assert keeper.verify().damaged == ()
            keeper.forget({"r1"})
            keeper.prune()
            keeper.prune()
        if not store.fired:
            break
    assert at > 20


def test_a_damaged_parent_stays_an_error(opened: Opened) -> None:
    with opened() as writer, pytest.raises(RepositoryDamagedError):
        copy(
            writer,
            MemoryDisk(bytes(CHUNK)),
            [],
            DiskImage(1, "", "", CHUNK, "ab" * 32, "", (), 0, 0, 0),
        )
