"""One flipped byte anywhere is found, and the points it touches are named."""

import shutil
from pathlib import Path

import pytest

from atoll.model.errors import AtollError, RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.model.points import Evidence
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.packs import object_name
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

KINDS = ("config", "keys", "packs", "index", "points", "evidence")


@pytest.fixture
def two_points(repository: Repository) -> Repository:
    """p1 and p2 share nothing."""
    for number in (1, 2):
        disk = repository.copy_disk(MemoryDisk(noise(number, 6 * CHUNK)))
        blob = repository.put_blob(noise(number + 10, 100))
        repository.commit([point(f"p{number}", image(disk, blob), at=float(number))])
        repository.add_evidence(f"p{number}", Evidence(1.0, True, 1.0, "ok"))
    return repository


def _objects(place: Path, kind: str) -> list[Path]:
    top = place / kind
    return [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_in_every_kind_of_object(
    two_points: Repository, place: Path, key: KeyFile, kind: str
) -> None:
    for path in _objects(place, kind):
        good = path.read_bytes()
        name = str(path.relative_to(place))
        touched: set[tuple[str, ...]] = set()
        step = max(1, len(good) // 60)
        for at in sorted({*range(0, len(good), step), *range(8), len(good) - 1}):
            broken = bytearray(good)
            broken[at] ^= 0x20
            path.write_bytes(broken)
            # One copy of the settings is broken, so it opens by the other.
            with Repository.open(place, key) as opened:
                (damage,) = opened.verify().damaged
            assert damage.object == name
            assert damage.detail
            touched.add(damage.points)
        path.write_bytes(good)
        expected = {("p1", "p2")} if kind in ("config", "keys") else {("p1",), ("p2",)}
        assert touched <= expected
        assert len(touched) == 1
    with Repository.open(place, key) as opened:
        assert opened.verify().damaged == ()


def test_a_damaged_chunk_names_the_range_and_is_never_given_out(
    two_points: Repository, place: Path, key: KeyFile
) -> None:
    disk = two_points.find("p2").disks[0]
    content = noise(2, 6 * CHUNK)
    pack, offset = _place_of(two_points, content[3 * CHUNK : 4 * CHUNK])
    path = place / object_name(pack)
    broken = bytearray(path.read_bytes())
    broken[offset + 5] ^= 1
    path.write_bytes(broken)
    with Repository.open(place, key) as opened:
        (damage,) = opened.verify().damaged
        assert damage.points == ("p2",)
        (lost,) = damage.ranges
        assert (lost.point, lost.disk) == ("p2", "Hard disk 1")
        assert lost.extent == Extent(3 * CHUNK, CHUNK)
        reader = opened.open_disk(disk)
        assert reader.read(0, 3 * CHUNK) == content[: 3 * CHUNK]
        assert reader.read(4 * CHUNK, 2 * CHUNK) == content[4 * CHUNK :]
        with pytest.raises(RepositoryDamagedError, match="is damaged; verify"):
            reader.read(3 * CHUNK + 10, 1)
        with pytest.raises(RepositoryDamagedError):
            list(reader.read_many([Extent(0, 6 * CHUNK)]))


def _place_of(repository: Repository, chunk: bytes) -> tuple[str, int]:
    name = repository._codec.name(chunk)
    (place,) = repository._source.index.locations(name)
    return place.pack, place.entry.offset


def test_missing_objects_are_named(two_points: Repository, place: Path, key: KeyFile) -> None:
    for kind, lost_range in (("packs", True), ("index", False)):
        for path in _objects(place, kind):
            aside = path.rename(place.parent / "aside")
            with Repository.open(place, key) as opened:
                (damage,) = opened.verify().damaged
                expected = str(path.relative_to(place)) if kind == "packs" else "index/"
                assert damage.object == expected
                assert damage.points in (("p1",), ("p2",))
                assert bool(damage.ranges) == lost_range
                if lost_range:
                    assert damage.ranges[0].extent == Extent(0, 6 * CHUNK)
                    with pytest.raises(RepositoryDamagedError, match="is missing"):
                        opened.open_disk(opened.find(damage.points[0]).disks[0])
            aside.rename(path)


def test_pack_and_segment_gone_together_are_noticed(
    repository: Repository, place: Path, key: KeyFile
) -> None:
    disk = repository.copy_disk(MemoryDisk(noise(1, 6 * CHUNK)))
    repository.commit([point("p1", image(disk))])
    shutil.rmtree(place / "index")
    shutil.rmtree(place / "packs")
    with Repository.open(place, key) as opened:
        (damage,) = opened.verify().damaged
        assert damage.points == ("p1",)
        assert damage.ranges[0].extent == Extent(0, 6 * CHUNK)
        with pytest.raises(RepositoryDamagedError, match="in no pack"):
            opened.open_disk(image(disk))


def test_truncated_objects_are_found(two_points: Repository, place: Path, key: KeyFile) -> None:
    for kind in KINDS:
        path = _objects(place, kind)[0]
        good = path.read_bytes()
        for length in (0, 1, len(good) // 2, len(good) - 1):
            path.write_bytes(good[:length])
            try:
                with Repository.open(place, key) as opened:
                    found = {damage.object for damage in opened.verify().damaged}
            except AtollError as error:  # without settings or key there is nothing to open
                assert isinstance(error, RepositoryDamagedError)
                assert kind in ("config", "keys")
            else:
                assert str(path.relative_to(place)) in found
        path.write_bytes(good)


def test_a_lost_commit_is_told_and_leaves_the_other_points_usable(
    two_points: Repository, place: Path, key: KeyFile
) -> None:
    before = {each.id for each in two_points.points()}
    path = _objects(place, "points")[0]
    path.write_bytes(bytes(path.stat().st_size))
    with Repository.open(place, key) as opened:
        (left,) = opened.points()
        assert opened.lost_points == (str(path.relative_to(place)),)
        opened.open_disk(opened.find(left.id).disks[0]).read(0, 1)
        (gone,) = before - {left.id}
        with pytest.raises(RepositoryDamagedError, match="damaged; run `atoll verify`"):
            opened.find(gone)
        assert opened.stats().points == 1
        assert opened.verify().damaged[0].object == str(path.relative_to(place))
        with pytest.raises(RepositoryDamagedError):
            opened.prune()


def test_what_a_lost_pack_held_is_stored_again_by_the_next_full_backup(
    place: Path, key: KeyFile, repository: Repository
) -> None:
    data = noise(7, 6 * CHUNK)
    repository.commit([point("p1", image(repository.copy_disk(MemoryDisk(data))))])
    for pack in _objects(place, "packs"):
        pack.unlink()
    with Repository.open(place, key) as opened:
        again = image(opened.copy_disk(MemoryDisk(data)))
        opened.commit([point("p2", again)])
        assert opened.open_disk(again).read(0, len(data)) == data


def test_what_a_file_server_leaves_among_the_files_is_passed_over(
    two_points: Repository, place: Path, key: KeyFile
) -> None:
    for folder in ("points", "index", "packs", "evidence"):
        (place / folder).mkdir(exist_ok=True)
        for name in (".DS_Store", "note.txt", "@eaDir"):
            (place / folder / name).write_text("not ours")
    with Repository.open(place, key) as opened:
        assert len(opened.points()) == 2
        assert opened.verify().damaged == ()
        opened.prune()
        opened.commit([point("p3", image(opened.copy_disk(MemoryDisk(noise(8, CHUNK)))))])


def test_a_second_copy_of_a_chunk_serves_when_the_first_is_damaged(
    place: Path, key: KeyFile, repository: Repository
) -> None:
    data = noise(5, 4 * CHUNK)
    writers = [Repository.open(place, key) for _ in range(2)]
    copies = [image(writer.copy_disk(MemoryDisk(data))) for writer in writers]
    for number, writer in enumerate(writers):
        writer.commit([point(f"p{number}", copies[number])])
    store = LocalStore.open(place)
    packs = [info.name for info in store.list("packs/")]
    assert len(packs) == 2
    for pack in packs:
        path = place / pack
        good = path.read_bytes()
        path.write_bytes(good[:24] + bytes(len(good) - 24))
        with Repository.open(place, key) as opened:
            assert opened.open_disk(copies[0]).read(0, len(data)) == data
        path.write_bytes(good)
