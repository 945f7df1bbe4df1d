"""Each field of each kind of object flipped, cut, extended, swapped: found, named, never believed."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.model.errors import AtollError, RepositoryDamagedError, RunConflictError
from atoll.model.extents import Extent
from atoll.model.points import Evidence
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.marks import put_mark
from atoll.repository.packs import HEADER_BYTES, footer_bytes, object_name
from atoll.repository.repository import Repository
from atoll.repository.verify import Damage
from repository_parts import CHUNK, MemoryDisk, image, noise, point

CHUNKS = 5
DATA = {name: noise(seed, CHUNKS * CHUNK) for seed, name in enumerate(("p1", "p2"), 1)}
TOUCHES_ALL = ("config", "keys")
KINDS = (*TOUCHES_ALL, "packs", "index", "points", "evidence", "holds")


@pytest.fixture
def place(key: KeyFile) -> Iterator[Path]:
    """p1 and p2 share nothing; each has one object of every kind of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # it is opened a thousand times
        yield _two_points(Path(folder) / "two", key)


def _two_points(made: Path, key: KeyFile) -> Path:
    Repository.create(made, key, chunk_bytes=CHUNK).close()
    with Repository.open(made, key) as repository:
        for number, (name, data) in enumerate(DATA.items(), 1):
            disk = image(repository.copy_disk(MemoryDisk(data)))
            repository.commit([point(name, disk, at=float(number))])
            repository.add_evidence(name, Evidence(float(number), True, 1.0, "ok"))
            repository.hold(name, "the law")
    return made


def objects(place: Path, kind: str) -> list[Path]:
    top = place / kind
    return [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())


def fields(kind: str, data: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of each field, by docs/formats/repository.md."""
    if kind == "packs":
        footer = footer_bytes(data)
        yield "magic", 0, 8
        yield "name", 8, HEADER_BYTES
        yield "first chunk", HEADER_BYTES, HEADER_BYTES + CHUNK
        yield "its tag", HEADER_BYTES + CHUNK, HEADER_BYTES + CHUNK + 16
        yield "last chunk's tag", len(data) - 8 - footer - 16, len(data) - 8 - footer
        yield "footer", len(data) - 8 - footer, len(data) - 24
        yield "footer's tag", len(data) - 24, len(data) - 8
        yield "footer's length", len(data) - 8, len(data) - 4
        yield "end", len(data) - 4, len(data)
        return
    copies = 1 if kind == "index" else 2
    size = len(data) // copies
    for copy in range(copies):
        at = copy * size
        if kind in TOUCHES_ALL:
            line = data.index(b"\n", at) + 1
            yield f"line {copy}", at, line - 1
            yield f"its end {copy}", line - 1, line
            yield f"check {copy}", line, at + size - 1
            yield f"last byte {copy}", at + size - 1, at + size
        else:
            yield f"magic {copy}", at, at + 8
            yield f"body {copy}", at + 8, at + size - 16
            yield f"tag {copy}", at + size - 16, at + size


def believed(repository: Repository) -> None:
    """Whatever can be read is what was written."""
    for made in repository.points():
        assert made.id in DATA
        assert made.vm == "db1"
        assert all(item.proven_at == float(made.id[1:]) for item in repository.evidence(made.id))
        try:
            reader = repository.open_disk(made.disks[0])
        except RepositoryDamagedError:
            continue
        for at in range(CHUNKS):
            try:
                found = reader.read(at * CHUNK, CHUNK)
            except RepositoryDamagedError:
                continue
            assert found == DATA[made.id][at * CHUNK :][:CHUNK]
        reader.close()


def damage_of(place: Path, key: KeyFile) -> tuple[Damage, ...]:
    with Repository.open(place, key) as repository:
        believed(repository)
        return repository.verify().damaged


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_flipped(place: Path, key: KeyFile, kind: str) -> None:
    owners = []
    for path in objects(place, kind):
        name = str(path.relative_to(place))
        good = path.read_bytes()
        told = {}
        for field, begin, end in fields(kind, good):
            for at in sorted({begin, (begin + end) // 2, end - 1}):
                for bit in (0x01, 0x80):
                    broken = bytearray(good)
                    broken[at] ^= bit
                    path.write_bytes(broken)
                    (damage,) = damage_of(place, key)
                    assert damage.object == name, (field, at)
                    told[field] = damage
        path.write_bytes(good)
        touched = {damage.points for damage in told.values()}
        assert len(touched) == 1, touched
        owners += touched
        for field, damage in told.items():
            lost = field in ("first chunk", "its tag", "last chunk's tag")
            assert bool(damage.ranges) == lost, field
        if kind == "packs":
            ranges = {each.extent for each in told["first chunk"].ranges}
            assert ranges == {Extent(0, CHUNK)}
            # The record of the image is the last chunk: all of the disk is below it.
            ranges = {each.extent for each in told["last chunk's tag"].ranges}
            assert ranges == {Extent(0, CHUNKS * CHUNK)}
    everyone = [("p1", "p2")] if kind in TOUCHES_ALL else [("p1",), ("p2",)]
    assert sorted(owners) == everyone
    assert damage_of(place, key) == ()


def cut(data: bytes) -> bytes:
    return data[:-1]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def extended(data: bytes) -> bytes:
    return data + b"\0"


def doubled(data: bytes) -> bytes:
    return data + data


def emptied(_: bytes) -> bytes:
    return b""


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize(
    "how",
    [
        cut,
        zeroed,
        *(
            pytest.param(each, marks=pytest.mark.soak)
            for each in (half, extended, doubled, emptied)
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_each_object_of_another_length_or_without_content(
    place: Path, key: KeyFile, kind: str, how: Callable[[bytes], bytes]
) -> None:
    for path in objects(place, kind):
        name = str(path.relative_to(place))
        good = path.read_bytes()
        path.write_bytes(how(good))
        try:
            found = damage_of(place, key)
        except AtollError as error:  # without settings or a key nothing is opened
            assert isinstance(error, RepositoryDamagedError)
            assert kind in TOUCHES_ALL
        else:
            assert [damage.object for damage in found] == [name]
            if kind == "packs":
                (point_id,) = found[0].points
                lost = {each.extent for each in found[0].ranges}
                whole_disk = {Extent(0, CHUNKS * CHUNK)}
                assert lost == (set() if how in (cut, extended, doubled) else whole_disk), point_id
        path.write_bytes(good)
    assert damage_of(place, key) == ()


@pytest.mark.parametrize("kind", ["packs", "index", "points", "evidence", "holds"])
def test_two_objects_of_a_kind_swapped(place: Path, key: KeyFile, kind: str) -> None:
    first, second = objects(place, kind)
    names = {str(path.relative_to(place)) for path in (first, second)}
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    found = damage_of(place, key)
    assert {damage.object for damage in found} == names
    if kind == "packs":
        assert sorted(damage.points for damage in found) == [("p1",), ("p2",)]
        for damage in found:
            assert [each.extent for each in damage.ranges] == [Extent(0, CHUNKS * CHUNK)]
    first.write_bytes(one)
    assert {damage.object for damage in damage_of(place, key)} == {str(second.relative_to(place))}


@pytest.mark.parametrize("kind", ["config", "keys"])
def test_settings_of_another_repository_are_not_taken(
    place: Path, key: KeyFile, kind: str, tmp_path: Path
) -> None:
    """Made with the same key file, which opens both."""
    Repository.create(tmp_path / "other", key, chunk_bytes=CHUNK).close()
    (mine,), (theirs,) = objects(place, kind), objects(tmp_path / "other", kind)
    mine.write_bytes(theirs.read_bytes())
    with pytest.raises(AtollError):
        Repository.open(place, key)


@pytest.mark.parametrize("kind", ["packs", "index", "points", "evidence", "holds"])
def test_an_object_of_another_repository_under_the_same_name(
    place: Path, key: KeyFile, kind: str, tmp_path: Path
) -> None:
    """As if it were an older one: names are used once, so that an object has no older state."""
    strange = tmp_path / "strange"
    Repository.create(strange, key, chunk_bytes=CHUNK).close()
    with Repository.open(strange, key) as repository:
        repository.commit([point("p1", image(repository.copy_disk(MemoryDisk(DATA["p1"]))))])
        repository.add_evidence("p1", Evidence(77.0, False, 1.0, "no"))
        repository.hold("p1", "no law")
    path = objects(place, kind)[0]
    path.write_bytes(objects(strange, kind)[0].read_bytes())
    (damage,) = damage_of(place, key)
    assert damage.object == str(path.relative_to(place))


def test_a_mark_that_is_not_as_written_marks_nothing(place: Path, key: KeyFile) -> None:
    with Repository.open(place, key) as repository:
        packs = {path.name for path in objects(place, "packs")}
        name = put_mark(LocalStore.open(place), repository._master, packs)
        good = (place / "marks" / name).read_bytes()
    for at in (0, 8, 9, len(good) // 2, len(good) - 1):
        broken = bytearray(good)
        broken[at] ^= 1
        for data in (bytes(broken), good[:at], good + b"\0", b""):
            (place / "marks" / name).write_bytes(data)
            with Repository.open(place, key) as repository:
                # Its packs count as any others: what is stored again is found in them.
                assert repository.copy_disk(MemoryDisk(DATA["p1"])).new_chunks == 0
                repository.abandon()
                assert repository.prune().removed_packs == 0
            assert objects(place, "marks") == []
    assert damage_of(place, key) == ()


def test_a_mark_of_packs_that_points_need_removes_none(place: Path, key: KeyFile) -> None:
    with Repository.open(place, key) as repository:
        put_mark(
            LocalStore.open(place), repository._master, {p.name for p in objects(place, "packs")}
        )
        assert repository.prune().removed_packs == 0
    assert damage_of(place, key) == ()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"writes": false}', b"\xff" * 100])
def test_a_session_that_cannot_be_understood_is_waited_for(
    place: Path, key: KeyFile, text: bytes
) -> None:
    with Repository.open(place, key) as repository:
        repository.commit(
            [point("p3", image(repository.copy_disk(MemoryDisk(noise(9, CHUNK)))), at=3.0)]
        )
        repository.forget({"p3"})
        (path,) = [
            place / object_name(pack.name)
            for pack in repository._source.refresh().packs
            if pack.name not in needed(place, key)
        ]
        session = LocalStore.open(place).join(text)
        report = repository.prune()
        assert (report.removed_packs, report.waiting_for) == (0, (f"session {session.name}",))
        assert path.exists()
        session.end()
        assert repository.prune().removed_packs == 1
    assert damage_of(place, key) == ()


def needed(place: Path, key: KeyFile) -> set[str]:
    """Packs that hold something of p1 or p2."""
    with Repository.open(place, key) as repository:
        codec, index = repository._codec, repository._source.refresh()
        return {
            where.pack
            for data in DATA.values()
            for at in range(CHUNKS)
            for where in index.locations(codec.name(data[at * CHUNK :][:CHUNK]))
        }


def test_a_writer_whose_session_was_removed_commits_nothing(place: Path, key: KeyFile) -> None:
    with Repository.open(place, key) as repository:
        disk = image(repository.copy_disk(MemoryDisk(DATA["p1"])))
        for path in objects(place, "sessions"):
            path.unlink()
        with pytest.raises(RunConflictError):
            repository.commit([point("p3", disk)])
    assert damage_of(place, key) == ()
