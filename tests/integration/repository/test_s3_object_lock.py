"""S3 Object Lock, on a bucket that really locks."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from atoll.model.errors import ConfigurationError, RepositoryUnreachableError, RunConflictError
from atoll.repository.keys import KeyFile
from atoll.repository.repository import Repository
from atoll.repository.s3 import S3Store
from atoll.repository.s3_access import S3Location
from atoll.repository.store import MissingObjectError, ObjectLockedError
from repository_parts import CHUNK, MemoryDisk, image, noise, point
from s3_proxy import Answer, ResetAfter
from s3_site import S3Site

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def locking(s3: S3Site) -> str:
    return s3.bucket(locks=True)


@pytest.fixture
def where(s3: S3Site, locking: str) -> S3Location:
    return s3.location(locking)


@pytest.fixture
def store(s3: S3Site, where: S3Location) -> S3Store:
    return s3.store(where, lock_days=3)


def versions(s3: S3Site, where: S3Location, name: str) -> list[Any]:
    """Versions and markers of an object and what lies below it."""
    page = s3.client.list_object_versions(Bucket=where.bucket, Prefix=where.key(name))
    return [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]


def unlock(s3: S3Site, where: S3Location, name: str, *, version: str = "") -> None:
    """Have a lock of governance mode end now; servers take no time that has passed."""
    wait_past(end_soon(s3, where, name, version=version))


def end_soon(s3: S3Site, where: S3Location, name: str, *, version: str = "") -> datetime:
    """Have it end at a time that has almost come, which is returned."""
    which = {"VersionId": version} if version else {}
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    s3.client.put_object_retention(
        Bucket=where.bucket,
        Key=where.key(name),
        Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until},
        BypassGovernanceRetention=True,
        **which,
    )
    return until


def wait_past(until: datetime) -> None:
    while datetime.now(UTC) <= until:
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["compliance", "governance"])
def test_what_is_put_is_locked_by_the_server_itself(
    s3: S3Site, where: S3Location, mode: str
) -> None:
    store = s3.store(where, lock_days=3, lock_mode=mode)
    for name in ("config", "keys/one", "packs/ab/one", "index/one", "points/one", "evidence/f/one"):
        store.put(name, [b"data of ", name.encode()])
        assert store.get(name) == b"data of " + name.encode()
        head = s3.client.head_object(Bucket=where.bucket, Key=where.key(name))
        assert head["ObjectLockMode"] == mode.upper()
        left = head["ObjectLockRetainUntilDate"] - datetime.now(UTC)
        assert 2 * DAY < left < 4 * DAY
        assert store.locked_until(name) == head["ObjectLockRetainUntilDate"]
        with pytest.raises(s3.client.exceptions.ClientError, match="forbidden by object lock"):
            s3.client.delete_object(
                Bucket=where.bucket, Key=where.key(name), VersionId=head["VersionId"]
            )
    with pytest.raises(MissingObjectError):
        store.locked_until("packs/ab/two")


def test_a_locked_object_stays_and_the_error_says_until_when(
    s3: S3Site, where: S3Location, store: S3Store
) -> None:
    for name in ("config", "packs/ab/one"):
        store.put(name, [b"x"])
        until = store.locked_until(name)
        assert until is not None
        with pytest.raises(
            ObjectLockedError, match=f"is locked until {until.astimezone():%Y-%m-%d %H:%M}"
        ) as caught:
            store.delete(name)
        assert caught.value.until == until
        assert isinstance(caught.value, RunConflictError)
        assert store.get(name) == b"x"
        assert len(versions(s3, where, name)) == 1


def test_what_is_not_locked_any_more_is_removed_for_good(s3: S3Site, where: S3Location) -> None:
    store = s3.store(where, lock_days=3, lock_mode="governance")
    store.put("packs/ab/one", [b"x" * 1000])
    unlock(s3, where, "packs/ab/one")
    assert store.locked_until("packs/ab/one") is None
    store.delete("packs/ab/one")
    store.delete("packs/ab/one")
    assert versions(s3, where, "packs/") == []


def test_an_older_version_does_not_come_to_light_while_an_object_is_removed(
    s3: S3Site, where: S3Location
) -> None:
    with s3.proxy() as proxy:
        store = s3.store(where, proxy.endpoint, lock_days=3, lock_mode="governance")
        store.put("packs/ab/one", [b"damaged"])
        store.replace("packs/ab/one", [b"whole"])
        ids = {each["IsLatest"]: each["VersionId"] for each in versions(s3, where, "packs/")}
        ends = [end_soon(s3, where, "packs/ab/one", version=each) for each in ids.values()]
        wait_past(max(ends))
        proxy.seen.clear()
        store.delete("packs/ab/one")
        deleted = [each.target for each in proxy.seen if each.method == "DELETE"]
    assert [ids[False] in deleted[0], ids[True] in deleted[1], len(deleted)] == [True, True, 2]
    assert versions(s3, where, "packs/") == []


def test_index_and_evidence_are_hidden_at_once_and_removed_when_they_may_be(
    s3: S3Site, where: S3Location
) -> None:
    store = s3.store(where, lock_days=3, lock_mode="governance")
    for name in ("index/one", "evidence/f/one", "index/two"):
        store.put(name, [b"x" * 500])
    for name in ("index/one", "evidence/f/one"):
        store.delete(name)
        store.delete(name)
        assert len(versions(s3, where, name)) == 2
        with pytest.raises(MissingObjectError):
            store.get(name)
    assert [info.name for info in store.list("index/")] == ["index/two"]
    assert list(store.temporaries()) == []  # all locked
    hidden = next(each for each in versions(s3, where, "index/one") if "Size" in each)
    unlock(s3, where, "index/one", version=hidden["VersionId"])
    free = store.temporaries()
    assert [info.size_bytes for info in free] == [500, 0]
    assert {info.name.split()[0] for info in free} == {"index/one"}
    store.delete_temporary(free[0].name)
    with pytest.raises(MissingObjectError):
        store.get("index/one")  # at no time does it come back
    for info in store.temporaries():
        store.delete_temporary(info.name)
        store.delete_temporary(info.name)
    assert versions(s3, where, "index/one") == []
    assert store.get("index/two") == b"x" * 500
    assert len(versions(s3, where, "evidence/")) == 2


def test_what_an_intruder_hides_is_not_purged(s3: S3Site, where: S3Location) -> None:
    store = s3.store(where, lock_days=3, lock_mode="governance")
    for name in ("packs/ab/one", "points/one", "keys/one"):
        store.put(name, [b"x"])
    unlock(s3, where, "packs/ab/one")
    for name in ("packs/ab/one", "points/one", "keys/one"):
        marker = s3.client.delete_object(Bucket=where.bucket, Key=where.key(name))
        store.delete(name)
        assert list(store.temporaries()) == []
        s3.client.delete_object(
            Bucket=where.bucket, Key=where.key(name), VersionId=marker["VersionId"]
        )
        assert store.get(name) == b"x"


def test_nothing_of_presence_is_locked_or_left(
    s3: S3Site, where: S3Location, store: S3Store
) -> None:
    session, lock = store.join(b"one"), store.maintain()
    store.put("marks/one", [b"mark"])
    for text in (b"two", b"three"):
        session.say(text)
        session.beat()
    assert [seen.said for seen in store.sessions()] == [b"three"]
    assert len(versions(s3, where, "sessions/")) == 1
    for name in (f"sessions/{session.name}", "marks/one"):
        assert store.locked_until(name) is None
    session.end()
    lock.release()
    store.delete("marks/one")
    assert versions(s3, where, "") == []


def test_locks_that_end_soon_are_extended_and_never_shortened(
    s3: S3Site, where: S3Location, store: S3Store
) -> None:
    names = [f"packs/ab/{number}" for number in range(12)]
    for name in names:
        store.put(name, [b"x"])
    until = (datetime.now(UTC) + 10 * DAY).replace(microsecond=0)
    assert store.extend_locks(names[:10], until) == 10
    assert store.extend_locks(names, until) == 2
    assert store.extend_locks(names, until - 5 * DAY) == 0
    assert {store.locked_until(name) for name in names} == {until}
    with pytest.raises(MissingObjectError, match="to lock is missing"):
        store.extend_locks(["packs/ab/none"], until)
    with pytest.raises(ConfigurationError, match="lock_days"):
        s3.store(where).extend_locks(names, until)


def test_a_prune_renews_the_locks_of_what_points_need_and_of_nothing_else(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    access = s3.access(lock_days=3)
    with Repository.create(str(where), key, chunk_bytes=CHUNK, access=access) as repository:
        kept = image(repository.copy_disk(MemoryDisk(noise(1, 20 * CHUNK))))
        repository.commit([point("keep", kept)])
        gone = image(repository.copy_disk(MemoryDisk(noise(2, 20 * CHUNK))))
        repository.commit([point("drop", gone)])
        repository.forget({"drop"})
    store = s3.store(where, lock_days=3)
    names = [info.name for each in ("keys/", "packs/", "points/") for info in store.list(each)]
    before = {name: store.locked_until(name) for name in ("config", *names)}
    # As a repository sees it whose locks are longer: these are within the last half of them.
    with Repository.open(str(where), key, access=s3.access(lock_days=20)) as repository:
        repository.prune()
    after = {name: store.locked_until(name) for name in before}
    same = [name for name in before if after[name] == before[name]]
    assert [name.partition("/")[0] for name in same] == ["packs"]
    in_20_days = datetime.now(UTC) + 20 * DAY
    for name in before.keys() - same:
        ends = after[name]
        assert ends is not None
        assert abs(ends - in_20_days) < DAY
    with Repository.open(str(where), key, access=s3.access(lock_days=20)) as repository:
        repository.prune()
    assert {name: store.locked_until(name) for name in before} == after


def test_locked_writes_survive_lost_answers(s3: S3Site, where: S3Location) -> None:
    with s3.proxy() as proxy:
        store = s3.store(where, proxy.endpoint, lock_days=3)
        proxy.on("PUT", "/packs/", Answer(503, "SlowDown"), ResetAfter())
        store.put("packs/ab/one", [b"data"])
        assert proxy.left == 0
        proxy.on("PUT", "/packs/", Answer(403, "AccessDenied"))
        with pytest.raises(RepositoryUnreachableError, match="403 AccessDenied") as caught:
            store.put("packs/ab/two", [b"data"])
        assert "AKIA" not in str(caught.value)
        until = datetime.now(UTC) + 10 * DAY
        proxy.on("PUT", "retention", Answer(500, "InternalError"), ResetAfter())
        assert store.extend_locks(["packs/ab/one"], until) == 1
        assert proxy.left == 0
    assert len(versions(s3, where, "packs/")) == 1
    assert store.location == str(where)


def test_a_refusal_that_no_lock_explains_is_not_called_a_lock(
    s3: S3Site, where: S3Location
) -> None:
    with s3.proxy() as proxy:
        store = s3.store(where, proxy.endpoint, lock_days=3, lock_mode="governance")
        store.put("packs/ab/one", [b"data"])
        unlock(s3, where, "packs/ab/one")
        proxy.on("DELETE", "/packs/", Answer(403, "AccessDenied"))
        with pytest.raises(RepositoryUnreachableError, match="check the keys"):
            store.delete("packs/ab/one")
        assert proxy.left == 0


@pytest.mark.parametrize("versioned", [False, True], ids=["plain", "versions"])
def test_a_bucket_without_locks_is_refused_before_anything_is_written(
    s3: S3Site, key: KeyFile, versioned: bool
) -> None:
    bucket = s3.bucket(versions=versioned)
    with pytest.raises(ConfigurationError, match="has no Object Lock, so nothing was written"):
        Repository.create(f"s3://{bucket}/r", key, access=s3.access(lock_days=3))
    assert s3.client.list_object_versions(Bucket=bucket).get("Versions", []) == []


def test_a_bucket_that_locks_by_itself_is_refused(s3: S3Site, key: KeyFile) -> None:
    bucket = s3.bucket(locks=True)
    s3.client.put_object_lock_configuration(
        Bucket=bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
        },
    )
    with pytest.raises(ConfigurationError, match="remove the bucket's default retention"):
        Repository.create(f"s3://{bucket}/r", key, access=s3.access(lock_days=3))


def test_a_repository_lives_in_a_bucket_that_locks(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    access = s3.access(lock_days=3, lock_mode="governance")
    data = noise(1, 20 * CHUNK)
    with Repository.create(str(where), key, chunk_bytes=CHUNK, access=access) as repository:
        kept = image(repository.copy_disk(MemoryDisk(data)))
        repository.commit([point("keep", kept)])
        gone = image(repository.copy_disk(MemoryDisk(noise(2, 20 * CHUNK))))
        repository.commit([point("drop", gone)])
        assert [found.id for found in repository.forget({"drop"})] == ["drop"]
        for _ in range(2):
            report = repository.prune()
            assert (report.removed_packs, report.marked_packs) == (0, 1)
            assert report.marked_bytes > 20 * CHUNK
            (reason,) = report.waiting_for
            assert reason.startswith("locks of the store on 1 packs, the last until 20")
    names = [pack["Key"].removeprefix(where.key("")) for pack in versions(s3, where, "packs/")]
    wait_past(max([end_soon(s3, where, name) for name in names]))
    with Repository.open(str(where), key, access=access) as repository:
        report = repository.prune()
        assert (report.removed_packs, report.marked_packs, report.waiting_for) == (1, 0, ())
        assert len(versions(s3, where, "packs/")) == 1
    # Reading needs to know nothing of locks.
    with Repository.open(str(where), key, access=s3.access()) as repository:
        assert [found.id for found in repository.points()] == ["keep"]
        reader = repository.open_disk(kept)
        assert reader.read(0, len(data)) == data
        reader.close()
        assert not repository.verify().damaged


def test_a_point_that_was_forgotten_can_be_brought_back_while_it_is_locked(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    access = s3.access(lock_days=3)
    data = noise(1, 20 * CHUNK)
    with Repository.create(str(where), key, chunk_bytes=CHUNK, access=access) as repository:
        copied = image(repository.copy_disk(MemoryDisk(data)))
        repository.commit([point("p1", copied)])
        repository.forget({"p1"})
        repository.prune()
        assert repository.points() == []
    for each in versions(
        s3, where, "points/"
    ):  # what docs/operations/repository-s3.md tells an admin
        if "Size" not in each:
            s3.client.delete_object(
                Bucket=where.bucket, Key=each["Key"], VersionId=each["VersionId"]
            )
    with Repository.open(str(where), key, access=access) as repository:
        repository.rebuild_index()
        (found,) = repository.points()
        reader = repository.open_disk(found.disks[0])
        assert reader.read(0, len(data)) == data
        reader.close()
        assert not repository.verify().damaged


def test_a_forget_that_is_refused_again_and_again_locks_what_stays_once(
    s3: S3Site, where: S3Location, key: KeyFile
) -> None:
    """Each copy would stay, and cost, until its lock ends."""
    with Repository.create(
        str(where), key, chunk_bytes=CHUNK, access=s3.access(lock_days=3)
    ) as repository:
        disk = image(repository.copy_disk(MemoryDisk(noise(1, 4 * CHUNK))))
        repository.commit([point("p1", disk), point("p2", disk)])
    with s3.proxy() as proxy:
        for _ in range(3):
            store = s3.store(where, proxy.endpoint, lock_days=3)
            proxy.on("DELETE", "/points/", Answer(403, "AccessDenied"), always=True)
            with Repository(store, key) as repository, pytest.raises(RepositoryUnreachableError):
                repository.forget({"p1"})
            proxy.clear()
    assert len(versions(s3, where, "points/")) == 2
    for _ in range(2):
        with Repository(s3.store(where, lock_days=3), key) as repository:
            repository.forget({"p1"})
            assert [found.id for found in repository.points()] == ["p2"]
    assert sorted("Size" in each for each in versions(s3, where, "points/")) == [False, True, True]


@pytest.fixture(autouse=True)
def _no_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test passes is what counts."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield
