"""What is damaged is made whole from a copy, or by the next backup of the same data; the rest is kept."""

import random
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from atoll.model.errors import (
    ConfigurationError,
    RepositoryDamagedError,
    RepositoryUnreachableError,
)
from atoll.model.extents import Extent
from atoll.model.points import Evidence, RestorePoint
from atoll.repository.images import DiskRecord
from atoll.repository.keys import KeyFile, create_key_file
from atoll.repository.local import LocalStore
from atoll.repository.packs import object_name
from atoll.repository.pages import ChunkTable
from atoll.repository.repository import Repository
from repository_parts import CHUNK, CountingStore, MemoryDisk, image, noise, point

CHUNKS = 300
"""More than a page of the table names."""
DATA = {"p1": noise(1, CHUNKS * CHUNK), "p2": noise(1, 20 * CHUNK) + noise(2, 30 * CHUNK)}
PACK = 256 << 10


@pytest.fixture
def opened(place: Path, key: KeyFile, repository: Repository) -> Callable[[], Repository]:
    return lambda: Repository(LocalStore.open(place), key, pack_bytes=PACK)


@pytest.fixture
def made(opened: Callable[[], Repository]) -> dict[str, RestorePoint]:
    points = {}
    for name, data in DATA.items():
        with opened() as writer:
            disk = writer.copy_disk(MemoryDisk(data))
            points[name] = point(name, image(disk, writer.put_blob(noise(9, 100))))
            writer.commit([points[name]])
            writer.add_evidence(name, Evidence(1.0, True, 1.0, "ok"))
    return points


@pytest.fixture
def copy(place: Path, key: KeyFile, made: dict[str, RestorePoint], tmp_path: Path) -> Path:
    shutil.copytree(place, tmp_path / "copy")
    return tmp_path / "copy"


def objects(place: Path, kind: str) -> list[Path]:
    top = place / kind
    return [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def content(repository: Repository, made: RestorePoint) -> bytes:
    reader = repository.open_disk(made.disks[0])
    try:
        return reader.read(0, reader.size_bytes)
    finally:
        reader.close()


def whole(opened: Callable[[], Repository]) -> None:
    with opened() as repository:
        assert repository.verify().damaged == ()
        for each in repository.points():
            assert content(repository, each) == DATA[each.id]
            assert [item.passed for item in repository.evidence(each.id)] == [True]


@pytest.mark.parametrize("kind", ["config", "keys", "points", "evidence", "index"])
def test_what_is_kept_twice_or_known_otherwise_needs_no_copy(
    kind: str, made: dict[str, RestorePoint], place: Path, opened: Callable[[], Repository]
) -> None:
    damaged = objects(place, kind)
    for path in damaged:
        flip(path, path.stat().st_size // 3)
    with opened() as repository:
        report = repository.repair()
    assert sorted(report.healed) == [str(path.relative_to(place)) for path in damaged]
    assert (report.left, report.lost_chunks, report.remaining.damaged) == ((), 0, ())
    whole(opened)


@pytest.mark.parametrize("how", ["flipped", "missing", "cut", "footer"])
@pytest.mark.parametrize("index", ["whole", "gone"])
def test_packs_come_back_from_a_copy(
    how: str,
    index: str,
    made: dict[str, RestorePoint],
    copy: Path,
    key: KeyFile,
    place: Path,
    opened: Callable[[], Repository],
) -> None:
    for path in objects(place, "packs"):
        if how == "flipped":
            flip(path, path.stat().st_size // 2)
        elif how == "footer":
            flip(path, path.stat().st_size - 40)
        elif how == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-100])
    if index == "gone":
        shutil.rmtree(place / "index")
    with opened() as repository, Repository.open(copy, key) as other:
        report = repository.repair(other)
    assert (report.left, report.lost_chunks, report.remaining.damaged) == ((), 0, ())
    whole(opened)


def test_chunks_come_from_a_copy_that_keeps_them_in_other_packs(
    made: dict[str, RestorePoint],
    copy: Path,
    key: KeyFile,
    place: Path,
    opened: Callable[[], Repository],
) -> None:
    with Repository(LocalStore.open(copy), key, pack_bytes=PACK) as other:
        other.forget({"p1"})
        assert other.prune().moved_bytes > 0
    for path in objects(place, "packs"):
        if not (copy / path.relative_to(place)).exists():
            for at in range(100, path.stat().st_size, CHUNK // 2):
                flip(path, at)
    with opened() as repository, Repository.open(copy, key) as other:
        report = repository.repair(other)
        assert report.fetched_chunks > 0
        assert content(repository, made["p2"]) == DATA["p2"]


def test_without_a_copy_what_is_whole_is_kept_and_the_next_increment_brings_back_the_rest(
    made: dict[str, RestorePoint], place: Path, opened: Callable[[], Repository]
) -> None:
    # The first pack holds the first chunks of both points' disks.
    with opened() as repository:
        (first, *_) = [
            path for path in objects(place, "packs") if _holds_first(repository, made["p1"], path)
        ]
    flip(first, 24 + 3 * (CHUNK + 16) + 5)
    with opened() as repository:
        report = repository.repair()
        assert report.lost_chunks == 1
        assert len(report.rewritten) == 1
        assert {point for each in report.remaining.damaged for point in each.points} == {"p1", "p2"}
        with pytest.raises(RepositoryDamagedError):
            content(repository, made["p1"])
    with opened() as writer:
        disk = MemoryDisk(DATA["p1"])
        copied = writer.copy_disk(
            disk, extents=[Extent(200 * CHUNK, CHUNK)], parent=made["p1"].disks[0]
        )
        assert copied.read_bytes == 2 * CHUNK, "what changed, and what was lost"
        writer.commit([point("p3", image(copied))])
        assert copied.root == made["p1"].disks[0].root
    with opened() as repository:
        assert repository.verify().damaged == ()
        assert content(repository, made["p1"]) == DATA["p1"]
        assert content(repository, made["p2"]) == DATA["p2"]
        repository.prune()
    assert objects(place, "lost") == []
    with opened() as writer:
        again = writer.copy_disk(MemoryDisk(DATA["p1"]), extents=[], parent=made["p1"].disks[0])
        assert again.read_bytes == 0


def test_lost_chunks_of_any_cut_get_their_old_names_again(tmp_path: Path, key: KeyFile) -> None:
    place, unit = tmp_path / "cut", 16 << 10
    data = bytearray(noise(3, 200 * unit))
    disk = MemoryDisk(bytes(data))
    with Repository.create(place, key, chunk_bytes=4 * unit) as repository:
        older = image(repository.copy_disk(disk))
        kept = {"p0": bytes(data)}
        repository.commit([point("p0", older)])
        rnd = random.Random(4)
        for step in range(1, 5):
            extents = []
            for _ in range(6):
                at, length = rnd.randrange(195 * unit), rnd.randrange(1, 3 * unit)
                data[at : at + length] = noise(rnd.randrange(1 << 30), length)
                extents.append(Extent(at, length))
            disk = MemoryDisk(bytes(data))
            older = image(repository.copy_disk(disk, extents=extents, parent=older))
            kept[f"p{step}"] = bytes(data)
            repository.commit([point(f"p{step}", older)])
    # Of every second chunk of the last state a byte is flipped.
    last = _pieces(place, key, "p4")[::2]
    for pack, offset in last:
        flip(pack, offset + 5)
    with Repository.open(place, key) as repository:
        assert repository.repair().lost_chunks == len(last)
    with Repository.open(place, key) as repository:
        unchanged = repository.copy_disk(disk, extents=[], parent=older)
        assert unchanged.new_chunks == len(last)
        assert unchanged.root == older.root
        repository.commit([point("p5", image(unchanged))])
        for name in ("p4", "p5"):
            assert content(repository, repository.find(f"db1@{name}")) == kept["p4"]
        assert all(each.points != ("p4",) for each in repository.verify().damaged)


def _pieces(place: Path, key: KeyFile, name: str) -> list[tuple[Path, int]]:
    """Where the whole chunks of a point's disk lie, in the disk's order."""
    with Repository.open(place, key) as repository:
        source = repository._source
        record = DiskRecord.from_bytes(
            source.get(bytes.fromhex(repository.find(f"db1@{name}").disks[0].root))
        )
        found = []
        for piece in ChunkTable(record, source.get).pieces(0, record.size_bytes):
            [where] = source.places(piece.name)
            if piece.length == where.entry.plain_bytes:
                found.append((place / object_name(where.pack), where.entry.offset))
        return found


def _holds_first(repository: Repository, made: RestorePoint, path: Path) -> bool:
    """Whether damage at the fourth chunk of a pack touches the beginning of a point's disk."""
    good = path.read_bytes()
    flip(path, 24 + 3 * (CHUNK + 16) + 5)
    try:
        ranges = [each for damage in repository.verify().damaged for each in damage.ranges]
        return any(each.point == made.id and each.extent.offset < 20 * CHUNK for each in ranges)
    finally:
        path.write_bytes(good)


def test_a_lost_page_has_the_next_backup_read_everything(
    made: dict[str, RestorePoint], place: Path, opened: Callable[[], Repository]
) -> None:
    for path in objects(place, "packs"):
        path.unlink()
    with opened() as repository:
        report = repository.repair()
        assert report.lost_chunks > CHUNKS
    data = noise(5, CHUNK) + DATA["p1"][CHUNK:]
    with opened() as writer:
        copied = writer.copy_disk(
            MemoryDisk(data), extents=[Extent(0, CHUNK)], parent=made["p1"].disks[0]
        )
        assert copied.read_bytes == len(data)
        made_now = point("p3", image(copied, writer.put_blob(noise(9, 100))))
        writer.commit([made_now])
    with opened() as repository:
        assert content(repository, made_now) == data


def test_points_lost_in_both_copies_come_from_a_copy_or_are_told(
    made: dict[str, RestorePoint],
    copy: Path,
    key: KeyFile,
    place: Path,
    opened: Callable[[], Repository],
) -> None:
    path = objects(place, "points")[0]
    path.write_bytes(bytes(path.stat().st_size))
    with opened() as repository:
        report = repository.repair()
        assert report.left == (str(path.relative_to(place)),)
        assert report.remaining.damaged
    with opened() as repository, Repository.open(copy, key) as other:
        assert repository.repair(other).remaining.damaged == ()
    whole(opened)


def test_another_repository_is_no_copy(
    made: dict[str, RestorePoint], tmp_path: Path, opened: Callable[[], Repository]
) -> None:
    foreign = Repository.create(tmp_path / "foreign", create_key_file(tmp_path / "foreign.key"))
    with opened() as repository, foreign, pytest.raises(ConfigurationError, match="is no copy of"):
        repository.repair(foreign)


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.soak), 4])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_repair_cut_short_anywhere_loses_nothing_more(
    when: str,
    stride: int,
    made: dict[str, RestorePoint],
    copy: Path,
    key: KeyFile,
    place: Path,
    opened: Callable[[], Repository],
) -> None:
    good = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for at in count(1, stride):
        for path in list(place.rglob("*")):
            if path.is_file() and path not in good:
                path.unlink()
        for path, data in good.items():
            path.write_bytes(data)
        packs = objects(place, "packs")
        flip(packs[0], 3000)
        flip(packs[1], packs[1].stat().st_size - 40)
        packs[2].unlink()
        flip(objects(place, "index")[0], 50)
        flip(objects(place, "points")[0], 50)
        flip(place / "config", 50)
        store = CountingStore(LocalStore.open(place), at, when)
        try:
            with Repository(store, key, pack_bytes=PACK) as cut:
                cut.repair()
        except RepositoryUnreachableError:
            assert store.fired
        with opened() as repository, Repository.open(copy, key) as other:
            assert repository.repair(other).remaining.damaged == ()
        whole(opened)
        if not store.fired:
            break
    assert at > 6
