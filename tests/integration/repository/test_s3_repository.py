"""A whole repository in a bucket: what is committed is there for others, whatever the server does."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.model.errors import (
    AtollError,
    RepositoryDamagedError,
    RepositoryUnreachableError,
    RunConflictError,
    StorageConflictError,
)
from atoll.model.extents import Extent
from atoll.repository.config import create_config
from atoll.repository.inspection import by_form
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.mirror import mirror
from atoll.repository.repository import Repository
from atoll.repository.s3_access import S3Location
from atoll.repository.store import ObjectStore
from atoll.repository.wrapping import WrappedStore
from repository_parts import CHUNK, MemoryDisk, image, noise, point
from s3_proxy import Act, Answer, Cut, First, ResetAfter, ResetBefore, Rewrite
from s3_site import S3Site, an_hour_later

PACK_BYTES = 16 * CHUNK
"""Small packs, so that a few chunks make several."""


@pytest.fixture
def where(s3: S3Site) -> S3Location:
    return s3.location()


def made(store: ObjectStore, key: KeyFile) -> Repository:
    """A new repository in a store."""
    create_config(store, key, CHUNK)
    return Repository(store, key, pack_bytes=PACK_BYTES)


def opened(store: ObjectStore, key: KeyFile) -> Repository:
    return Repository(store, key, pack_bytes=PACK_BYTES)


def test_what_was_committed_is_read_by_another_process(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    access = s3.access()
    first = noise(1, 40 * CHUNK)
    changed = first[: 5 * CHUNK] + noise(2, CHUNK) + first[6 * CHUNK :]
    with Repository.create(str(where), key, chunk_bytes=CHUNK, access=access) as repository:
        full = image(repository.copy_disk(MemoryDisk(first)))
        blob = repository.put_blob(b"the extent map")
        repository.commit([point("p1", full)])
    with pytest.raises(StorageConflictError):
        Repository.create(str(where), key, access=access)
    with Repository.open(str(where), key, access=access) as repository:
        assert repository.stats().location == str(where)
        copied = repository.copy_disk(
            MemoryDisk(changed), extents=[Extent(5 * CHUNK, CHUNK)], parent=full
        )
        assert copied.read_bytes == CHUNK
        repository.commit([point("p2", image(copied), at=2000.0)])
    with Repository.open(str(where), key, access=access) as repository:
        assert [found.id for found in repository.points()] == ["p1", "p2"]
        for found, data in zip(repository.points(), (first, changed), strict=True):
            reader = repository.open_disk(found.disks[0])
            assert reader.read(0, len(data)) == data
            reader.close()
        assert repository.get_blob(blob) == b"the extent map"
        assert repository.verify().damaged == ()
    assert [
        name for name in listed(s3, where) if re.match("sessions|maintenance|probes", name)
    ] == []


def test_two_writers_at_once_and_a_prune_beside_them(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    made(s3.store(where), key).close()
    start = threading.Barrier(3)
    disks = {name: noise(seed, 60 * CHUNK) for seed, name in enumerate(("a", "b"), 1)}
    shared = noise(9, 20 * CHUNK)
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            with opened(s3.store(where), key) as repository:
                start.wait()
                copied = image(repository.copy_disk(MemoryDisk(disks[name] + shared)))
                repository.commit([point(f"point-{name}", copied, vm=name)])
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(name,)) for name in disks]
    for thread in threads:
        thread.start()
    with opened(s3.store(where), key) as pruning:
        start.wait()
        pruning.prune()
    for thread in threads:
        thread.join()
    assert failures == []
    with opened(s3.store(where), key) as repository:
        repository.prune()
        assert {found.vm for found in repository.points()} == {"a", "b"}
        for found in repository.points():
            reader = repository.open_disk(found.disks[0])
            assert reader.read(0, reader.size_bytes) == disks[found.vm] + shared
            reader.close()
        assert repository.verify().damaged == ()


def test_forgotten_points_give_their_space_back(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    with made(s3.store(where), key) as repository:
        kept = image(repository.copy_disk(MemoryDisk(noise(1, 30 * CHUNK))))
        gone = image(repository.copy_disk(MemoryDisk(noise(2, 30 * CHUNK))))
        repository.commit([point("keep", kept), point("drop", gone)])
        before = repository.stats().stored_bytes
        assert [found.id for found in repository.forget({"drop"})] == ["drop"]
        repository.prune()
        assert repository.stats().stored_bytes < before - 25 * CHUNK
        reader = repository.open_disk(kept)
        assert reader.read(0, reader.size_bytes) == noise(1, 30 * CHUNK)
        reader.close()
        assert repository.verify().damaged == ()


def test_a_writer_that_was_taken_for_dead_commits_nothing(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    with made(s3.store(where), key) as slow:
        copied = image(slow.copy_disk(MemoryDisk(noise(1, 30 * CHUNK))))
        with s3.proxy() as proxy:
            proxy.on("GET", "list-type", Rewrite(an_hour_later), always=True)
            with opened(s3.store(where, proxy.endpoint), key) as pruning:
                pruning.prune()
        with pytest.raises(RunConflictError, match="taken for dead"):
            slow.commit([point("p1", copied)])
    with opened(s3.store(where), key) as repository:
        assert repository.points() == []
        assert repository.verify().damaged == ()


FAULTS: list[tuple[str, Callable[[], list[Act]]]] = [
    ("throttled", lambda: [Answer(503, "SlowDown")]),
    ("broken server", lambda: [Answer(500, "InternalError")]),
    ("cut before", lambda: [ResetBefore()]),
    ("cut after", lambda: [ResetAfter()]),
]


@pytest.mark.parametrize("fault", [fault for _, fault in FAULTS], ids=[name for name, _ in FAULTS])
def test_faults_at_every_kind_of_request_cost_nothing_but_time(
    s3: S3Site, where: S3Location, key: KeyFile, fault: Callable[[], list[Act]]
) -> None:
    data = noise(1, 40 * CHUNK)
    with s3.proxy() as proxy:
        for part in ("/config", "/keys/", "/packs/", "/index/", "/points/", "/sessions/"):
            proxy.on("PUT", part, *fault())
        for part in ("prefix=", "/config", "/packs/", "/index/", "/points/"):
            proxy.on("GET", part, *fault())
        proxy.on("DELETE", "/sessions/", *fault())
        with made(s3.store(where, proxy.endpoint), key) as repository:
            copied = image(repository.copy_disk(MemoryDisk(data)))
            repository.commit([point("p1", copied)])
        with opened(s3.store(where, proxy.endpoint), key) as repository:
            (found,) = repository.points()
            reader = repository.open_disk(found.disks[0])
            assert reader.read(0, len(data)) == data
            reader.close()
        assert proxy.left == 0
    with opened(s3.store(where), key) as repository:
        assert repository.verify().damaged == ()


def test_a_commit_that_failed_is_no_commit(s3: S3Site, where: S3Location, key: KeyFile) -> None:
    for part, act in (
        ("/packs/", Answer(503, "SlowDown")),
        ("/packs/", ResetBefore()),
        ("/index/", Answer(500, "InternalError")),
        ("/points/", Answer(503, "SlowDown")),
    ):
        if not listed(s3, where):
            made(s3.store(where), key).close()
        with s3.proxy() as proxy:
            proxy.on("PUT", part, act, always=True)
            repository = opened(s3.store(where, proxy.endpoint), key)
            with pytest.raises(RepositoryUnreachableError):
                copied = image(repository.copy_disk(MemoryDisk(noise(3, 40 * CHUNK))))
                repository.commit([point("p1", copied)])
            repository.close()
        with opened(s3.store(where), key) as repository:
            assert repository.points() == []
            assert repository.verify().damaged == ()


def test_bytes_that_were_changed_or_cut_on_the_way_are_never_given(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    data = noise(1, 40 * CHUNK)
    with made(s3.store(where), key) as repository:
        copied = image(repository.copy_disk(MemoryDisk(data)))
        repository.commit([point("p1", copied)])

    def flipped(body: bytes) -> bytes:
        return body[:-100] + bytes([body[-100] ^ 1]) + body[-99:]

    with s3.proxy() as proxy, opened(s3.store(where, proxy.endpoint), key) as repository:
        reader = repository.open_disk(copied)
        proxy.on("GET", "/packs/", Cut(77), Cut(0), ResetAfter())
        assert reader.read(0, len(data)) == data
        assert proxy.left == 0
        reader.close()
    with s3.proxy() as proxy, opened(s3.store(where, proxy.endpoint), key) as repository:
        reader = repository.open_disk(copied)
        proxy.on("GET", "/packs/", Rewrite(flipped), always=True)
        with pytest.raises(RepositoryDamagedError):
            reader.read(0, len(data))
        proxy.clear()
        assert reader.read(0, len(data)) == data
        reader.close()


def test_a_listing_that_misses_what_is_new_hides_it_and_invents_nothing(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    data = noise(1, 40 * CHUNK)
    with made(s3.store(where), key) as repository:
        old = image(repository.copy_disk(MemoryDisk(data)))
        repository.commit([point("old", old)])
    known = {name for name in listed(s3, where) if not name.startswith("sessions/")}

    def lagging(listing: bytes) -> bytes:
        """What was written since, but for sessions, is not listed yet."""

        def kept(found: re.Match[bytes]) -> bytes:
            name = found[1].decode().removeprefix(where.key(""))
            return found[0] if name in known or name.startswith(("sessions/", "mai")) else b""

        return re.sub(
            rb"<Contents>.*?<Key>(.*?)</Key>.*?</Contents>", kept, listing, flags=re.DOTALL
        )

    with s3.proxy() as proxy:
        proxy.on("GET", "list-type", Rewrite(lagging), always=True)
        with opened(s3.store(where, proxy.endpoint), key) as repository:
            # Deduplicated against nothing that cannot be seen, and committed for those who can see it.
            copied = image(repository.copy_disk(MemoryDisk(noise(2, 40 * CHUNK))))
            repository.commit([point("new", copied, at=2000.0)])
            assert [found.id for found in repository.points()] == ["old"]
            with pytest.raises(AtollError):
                repository.open_disk(copied)
            # Nobody who sees too little removes anything of it.
            repository.prune()
    with opened(s3.store(where), key) as repository:
        assert [found.id for found in repository.points()] == ["old", "new"]
        for found, content in zip(repository.points(), (data, noise(2, 40 * CHUNK)), strict=True):
            reader = repository.open_disk(found.disks[0])
            assert reader.read(0, len(content)) == content
            reader.close()
        assert repository.verify().damaged == ()


def test_reading_needs_no_write_access(s3: S3Site, where: S3Location, key: KeyFile) -> None:
    data = noise(1, 40 * CHUNK)
    with made(s3.store(where), key) as repository:
        copied = image(repository.copy_disk(MemoryDisk(data)))
        repository.commit([point("p1", copied)])
    with s3.proxy() as proxy:
        proxy.on("PUT", "", Answer(403, "AccessDenied"), always=True)
        proxy.on("DELETE", "", Answer(403, "AccessDenied"), always=True)
        with opened(s3.store(where, proxy.endpoint), key) as repository:
            reader = repository.open_disk(copied)
            assert reader.read(0, len(data)) == data
            reader.close()
            with pytest.raises(RepositoryUnreachableError, match="403 AccessDenied"):
                repository.begin()


def test_a_reader_that_meets_a_prune_finds_what_was_moved(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    """A pack goes between two reads of somebody who could not tell others that he reads."""
    data = noise(1, 12 * CHUNK)
    with made(s3.store(where), key) as repository:
        kept = image(repository.copy_disk(MemoryDisk(data[: 6 * CHUNK])))
        gone = image(repository.copy_disk(MemoryDisk(data[6 * CHUNK :])))
        repository.commit([point("keep", kept), point("drop", gone)])

    def prune() -> None:
        with opened(s3.store(where), key) as other:
            other.forget({"drop"})
            other.prune()

    with s3.proxy() as proxy:
        proxy.on("PUT", "", Answer(403, "AccessDenied"), always=True)
        with opened(s3.store(where, proxy.endpoint), key) as repository:
            reader = repository.open_disk(kept)
            proxy.on("GET", "/packs/", First(prune))
            assert reader.read(0, 6 * CHUNK) == data[: 6 * CHUNK]
            assert proxy.left == 0
            reader.close()


@pytest.mark.parametrize("before", ["points/", "config"])
def test_a_mirror_that_was_taken_for_dead_puts_no_point(
    s3: S3Site, where: S3Location, key: KeyFile, tmp_path: Path, before: str
) -> None:
    """Another has the right to tidy by now, and may have removed what the points would rely on."""
    with Repository.create(tmp_path / "here", key, chunk_bytes=CHUNK) as repository:
        for name in ("p1", "p2"):
            copied = image(repository.copy_disk(MemoryDisk(noise(1, 4 * CHUNK))))
            repository.commit([point(name, copied)])
    taken = []

    class Slow(WrappedStore):
        def get(self, name: str) -> bytes:
            there = listed(s3, where)
            if name.startswith(before) and (
                before == "points/" or any("points/" in n for n in there)
            ):
                for claim in [each for each in there if each.startswith("maintenance/")]:
                    s3.client.delete_object(Bucket=where.bucket, Key=where.key(claim))
                taken.append(s3.store(where).maintain())
            return super().get(name)

    with pytest.raises(RunConflictError, match="taken for dead"):
        mirror(Slow(LocalStore.open(tmp_path / "here")), s3.store(where), by_form, in_flight=1)
    assert len(taken) == 1
    there = [name.partition("/")[0] for name in listed(s3, where)]
    assert there.count("packs") == 1
    assert (there.count("points"), "config" in there) == (2 if before == "config" else 0, False)
    taken[0].release()
    mirror(LocalStore.open(tmp_path / "here"), s3.store(where), by_form)
    with opened(s3.store(where), key) as repository:
        assert len(repository.points()) == 2
        assert repository.verify().damaged == ()


def listed(s3: S3Site, where: S3Location) -> list[str]:
    """All objects of a repository."""
    page = s3.client.list_objects_v2(Bucket=where.bucket, Prefix=where.key(""))
    return [each["Key"].removeprefix(where.key("")) for each in page.get("Contents", ())]
