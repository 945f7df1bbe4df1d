"""The directory store: atomic, never overwriting, explaining what went wrong."""

import fcntl
import os
import signal
from pathlib import Path

import pytest

from atoll.model.errors import (
    RepositoryDamagedError,
    RepositoryUnreachableError,
    RunConflictError,
    StorageConflictError,
)
from atoll.repository.local import LocalStore
from atoll.repository.store import MissingObjectError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "store")


def test_what_was_put_is_got_in_whole_and_in_part(store: LocalStore) -> None:
    parts = [bytes([n % 251]) * 3 for n in range(1500)]  # more parts than one writev takes
    store.put("packs/ab/abcd", parts)
    whole = b"".join(parts)
    assert store.get("packs/ab/abcd") == whole
    assert store.get_range("packs/ab/abcd", 100, 50) == whole[100:150]
    assert store.get_range("packs/ab/abcd", len(whole) - 5, 50) == whole[-5:]
    assert [(info.name, info.size_bytes) for info in store.list("packs/")] == [
        ("packs/ab/abcd", len(whole))
    ]
    assert store.temporaries() == []


def test_short_writes_are_finished(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_byte_short(handle: int, parts: list[bytes]) -> int:
        return os.write(handle, b"".join(parts)[:-1])

    monkeypatch.setattr(os, "writev", one_byte_short)
    store.put("x/y", [b"hello", b"world"])
    assert store.get("x/y") == b"helloworld"


def test_an_object_is_never_overwritten(store: LocalStore) -> None:
    store.put("config", [b"first"])
    with pytest.raises(StorageConflictError, match="exists already"):
        store.put("config", [b"second"])
    assert store.get("config") == b"first"
    assert store.temporaries() == []


def test_without_hard_links_an_object_is_never_overwritten_either(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store.put("config", [b"first"])
    with pytest.raises(StorageConflictError):
        store.put("config", [b"second"])
    assert store.get("config") == b"first"


def test_deleting_twice_and_deleting_the_absent_succeed(store: LocalStore) -> None:
    store.put("a/b", [b"x"])
    store.delete("a/b")
    store.delete("a/b")
    store.delete("nowhere/at-all")
    assert list(store.list("a/")) == []
    assert list(store.list("nowhere/")) == []


def test_a_missing_object_is_damage_and_a_missing_directory_is_not(
    store: LocalStore, tmp_path: Path
) -> None:
    with pytest.raises(MissingObjectError):
        store.get("packs/aa/aabb")
    assert issubclass(MissingObjectError, RepositoryDamagedError)
    with pytest.raises(RepositoryUnreachableError):
        LocalStore.open(tmp_path / "elsewhere")


def test_a_full_disk_is_explained_and_leaves_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(RepositoryUnreachableError, match=r"No space left.*free space"):
        store.put("packs/ab/abcd", [b"x"])
    assert list(store.list("packs/")) == []
    assert store.temporaries() == []


def test_a_failed_fsync_means_the_object_does_not_appear(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("packs/ab/first", [b"x"])
    calls = []

    def failing(handle: int) -> None:
        calls.append(handle)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RepositoryUnreachableError, match="Input/output error"):
        store.put("packs/ab/second", [b"x"])
    assert len(calls) == 1
    assert [info.name for info in store.list("packs/")] == ["packs/ab/first"]


def test_the_file_is_durable_before_it_has_its_name(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("packs/ab/first", [b"x"])  # so that the folders exist
    order: list[str] = []
    for call in ("writev", "fsync", "link"):
        real = getattr(os, call)

        def noted(*args: object, real: object = real, call: str = call, **more: object) -> object:
            order.append(call)
            return real(*args, **more)  # type: ignore[operator]

        monkeypatch.setattr(os, call, noted)
    store.put("packs/ab/second", [b"x"])
    assert order == ["writev", "fsync", "link", "fsync"]


def test_one_maintains_at_a_time(store: LocalStore) -> None:
    first = store.maintain()
    with pytest.raises(RunConflictError, match="tidied by another"):
        store.maintain()
    first.release()
    first.release()
    store.maintain().release()


def test_sessions_are_seen_until_they_end(store: LocalStore) -> None:
    one, two = store.join(b"one"), store.join(b"two")
    one.say(b"one, later")
    assert {(seen.name, seen.said) for seen in store.sessions()} == {
        (one.name, b"one, later"),
        (two.name, b"two"),
    }
    one.end()
    one.end()
    assert [seen.name for seen in store.sessions()] == [two.name]
    two.confirm()
    two.end()
    with pytest.raises(RunConflictError):
        one.say(b"more")


def test_the_session_of_a_killed_process_is_ended(store: LocalStore) -> None:
    child = os.fork()
    if child == 0:
        session = store.join(b"doomed")
        os.write(1, b"")
        os.kill(os.getpid(), signal.SIGKILL)
        session.end()
    os.waitpid(child, 0)
    assert len(list(store.list("sessions/"))) == 1
    assert store.sessions() == []
    assert list(store.list("sessions/")) == []


def test_who_was_taken_for_dead_learns_it(store: LocalStore) -> None:
    session = store.join(b"slow")
    store.delete(f"sessions/{session.name}")
    with pytest.raises(RunConflictError, match="taken for dead"):
        session.confirm()
    with pytest.raises(RunConflictError, match="taken for dead"):
        session.say(b"still here")
    session.end()


def test_a_temporary_in_use_is_no_leftover(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(store.location) / "tmp").mkdir()
    (Path(store.location) / "tmp" / "ab").write_bytes(b"half a pack")
    seen: list[list[str]] = []
    real = os.fsync

    def looking(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        seen.append([info.name for info in store.temporaries()])
        real(handle)

    monkeypatch.setattr(os, "fsync", looking)
    store.put("packs/ab/first", [b"x"])
    assert seen == [["tmp/ab"]]


def test_names_cannot_leave_the_directory(store: LocalStore) -> None:
    for name in ("../x", "/etc/passwd", "a/../b", "", "a//b", "A"):
        with pytest.raises(ValueError, match="no object name"):
            store.get(name)


def _failing_after(monkeypatch: pytest.MonkeyPatch, call: str, good: int, number: int = 5) -> None:
    """The call fails from the time it has succeeded so often."""
    real, done = getattr(os, call), []

    def failing(*args: object, **more: object) -> object:
        done.append(1)
        if len(done) > good:
            raise OSError(number, os.strerror(number))
        return real(*args, **more)

    monkeypatch.setattr(os, call, failing)


def test_a_name_that_could_not_be_made_durable_is_taken_back(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder's next fsync would succeed, and say nothing of what the failed one had lost."""
    store.put("points/first", [b"x"])
    with monkeypatch.context() as patch:
        _failing_after(patch, "fsync", 1)
        with pytest.raises(RepositoryUnreachableError, match=r"Input/output error; look at"):
            store.put("points/second", [b"x"])
    assert [info.name for info in store.list("points/")] == ["points/first"]
    store.put("points/second", [b"y"])
    assert store.get("points/second") == b"y"


def test_an_object_that_is_replaced_stays_though_an_fsync_fails(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("config", [b"old"])
    with monkeypatch.context() as patch:
        _failing_after(patch, "fsync", 1)
        with pytest.raises(RepositoryUnreachableError):
            store.replace("config", [b"new"])
    assert store.get("config") in (b"old", b"new")


def test_a_temporary_that_cannot_be_removed_is_a_leftover_at_once(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in (lambda: store.put("points/first", [b"x"]), lambda: store.join(b"text")):
        with monkeypatch.context() as patch:
            _failing_after(patch, "writev", 0)
            _failing_after(patch, "unlink", 0)
            with pytest.raises(RepositoryUnreachableError):
                work()
        (left,) = store.temporaries()
        store.delete_temporary(left.name)
        assert store.temporaries() == []


def test_a_temporary_that_somebody_has_locked_since_stays(store: LocalStore) -> None:
    """A writer may make its file before the look for leftovers, and lock it after."""
    path = Path(store.location) / "tmp" / "ab"
    path.parent.mkdir()
    path.write_bytes(b"a pack that is being written")
    (seen,) = store.temporaries()
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.delete_temporary(seen.name)
        assert path.exists()
    store.delete_temporary(seen.name)
    assert not path.exists()


def test_settling_reaches_the_folders_below(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("packs/ab/abcd", [b"x"])
    store.put("packs/cd/cdef", [b"x"])
    settled = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (settled.append(os.fstat(handle).st_ino), real(handle))[1]
    )
    store.settle("packs/")
    root = Path(store.location) / "packs"
    assert settled == [path.stat().st_ino for path in (root, root / "ab", root / "cd")]
    store.settle("nowhere/")


def test_a_session_that_speaks_while_it_is_looked_at_stays(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the open and the lock its file loses its name to a new one, and its own lock."""
    session = store.join(b"one")
    real = fcntl.flock

    def speak_first(handle: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        session.say(b"two")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", speak_first)
    assert [seen.said for seen in store.sessions()] == [b"two"]
    session.confirm()
    session.end()
