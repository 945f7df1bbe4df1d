"""Full disks, failing disks, limits and permissions: one clear sentence, nothing by half, and it goes on."""

import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.model.errors import AtollError, RepositoryUnreachableError
from atoll.model.points import Evidence
from atoll.repository import local
from atoll.repository.keys import KeyFile
from atoll.repository.local import LocalStore
from atoll.repository.repository import Repository
from repository_parts import CHUNK, MemoryDisk, image, noise, point

OLD = noise(1, 20 * CHUNK)
NEW = OLD[: 5 * CHUNK] + noise(2, 15 * CHUNK)
CONTENT = {"p1": OLD, "p2": NEW}
PACK = 6 * CHUNK
FULL = "No space left on device; free space there and run again."


def opened(place: Path, key: KeyFile) -> Repository:
    return Repository(LocalStore.open(place), key, pack_bytes=PACK)


def back_up(place: Path, key: KeyFile, name: str) -> None:
    with opened(place, key) as writer:
        disk = image(writer.copy_disk(MemoryDisk(CONTENT[name])))
        writer.commit([point(name, disk)])


def whole(place: Path, key: KeyFile) -> set[str]:
    """What is committed is whole, and there are no leftovers but packs; names the points."""
    with opened(place, key) as repository:
        assert repository.verify().damaged == ()
        points = repository.points()
        for made in points:
            reader = repository.open_disk(made.disks[0])
            assert reader.read(0, reader.size_bytes) == CONTENT[made.id]
            reader.close()
    return {made.id for made in points}


def finished(place: Path, key: KeyFile) -> None:
    """The next run works, and everything can be given back."""
    if "p2" not in whole(place, key):
        back_up(place, key, "p2")
    assert whole(place, key) >= {"p2"}
    with opened(place, key) as repository:
        repository.prune()
        assert repository.verify().damaged == ()
        repository.forget({"p2"})
        repository.prune()
    assert whole(place, key) <= {"p1"}
    assert not any((place / "tmp").iterdir())


@contextmanager
def small_file_system(size_kib: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        options = f"size={size_kib}k,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(top: Path, left_bytes: int) -> Path:
    ballast = top / "ballast"
    status = os.statvfs(top)
    ballast.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - left_bytes)))
    return ballast


@pytest.mark.needs_root
def test_a_disk_that_is_full_at_any_moment_of_a_backup(key: KeyFile) -> None:
    with small_file_system(2048) as top:
        place = top / "repository"
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        back_up(place, key, "p1")
        left, refused = -4096, 0
        while True:
            left += 4096
            ballast = fill(top, left)
            try:
                back_up(place, key, "p2")
            except RepositoryUnreachableError as error:
                assert FULL in str(error)
                refused += 1
            else:
                break
            finally:
                assert whole(place, key) >= {"p1"}
                assert list(LocalStore.open(place).list("tmp/")) == []
                ballast.unlink()
        assert refused > 10
        finished(place, key)


@pytest.mark.needs_root
def test_a_disk_that_is_full_at_any_moment_of_a_prune(key: KeyFile) -> None:
    with small_file_system(2048) as top:
        place = top / "repository"
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        left, refused = -4096, 0
        while True:
            left += 4096
            back_up(place, key, "p1")
            back_up(place, key, "p2")
            ballast = fill(top, left)
            try:
                with opened(place, key) as repository:
                    repository.forget({"p1"})
                    repository.prune()
            except RepositoryUnreachableError as error:
                assert FULL in str(error)
                refused += 1
            else:
                break
            finally:
                assert whole(place, key) >= {"p2"}
                ballast.unlink()
        assert refused
        finished(place, key)


@pytest.mark.needs_root
def test_the_room_that_a_refused_backup_leaves_is_enough_to_prune(key: KeyFile) -> None:
    with small_file_system(512) as top:
        place = top / "repository"
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        back_up(place, key, "p1")
        with (
            pytest.raises(RepositoryUnreachableError, match="No space left"),
            opened(place, key) as writer,
        ):
            for seed in range(10, 200):
                writer.copy_disk(MemoryDisk(noise(seed, 20 * CHUNK)))
        with opened(place, key) as repository:
            assert repository.prune().freed_bytes > 100_000
        assert whole(place, key) == {"p1"}
        finished(place, key)


@pytest.mark.needs_root
def test_a_directory_that_is_unmounted_is_not_written_beside(key: KeyFile) -> None:
    with small_file_system(4096) as top:
        place = top / "repository"
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        back_up(place, key, "p1")
        with tempfile.TemporaryDirectory() as other:
            subprocess.run(["mount", "--bind", str(top), other], check=True)
            try:
                elsewhere = Path(other) / "repository"
                writer = opened(elsewhere, key)
                disk = image(writer.copy_disk(MemoryDisk(NEW)))
                subprocess.run(["umount", "-l", other], check=True)
                writer.commit([point("p2", disk)])  # by its descriptor, into what it began in
                writer.close()
                assert list(Path(other).iterdir()) == []
                with pytest.raises(RepositoryUnreachableError, match="Could not open"):
                    opened(elsewhere, key)
            finally:
                subprocess.run(["umount", "-l", other], check=False, stderr=subprocess.DEVNULL)
        assert whole(place, key) == {"p1", "p2"}


@pytest.mark.needs_root
def test_a_directory_mounted_read_only_is_read_and_verified(key: KeyFile) -> None:
    with small_file_system(4096) as top:
        place = top / "repository"
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        back_up(place, key, "p1")
        subprocess.run(["mount", "-o", "remount,ro", str(top)], check=True)
        assert whole(place, key) == {"p1"}
        advice = "Read-only file system; mount it for writing"
        with opened(place, key) as repository:
            for work in (
                lambda: back_up(place, key, "p2"),
                repository.prune,
                lambda: repository.forget({"p1"}),
                lambda: repository.add_evidence("p1", Evidence(1.0, True, 1.0, "ok")),
            ):
                with pytest.raises(RepositoryUnreachableError, match=advice):
                    work()
        subprocess.run(["mount", "-o", "remount,rw", str(top)], check=True)
        finished(place, key)


def test_a_limit_on_the_size_of_files_cuts_writes_short(place: Path, key: KeyFile) -> None:
    Repository.create(place, key, chunk_bytes=CHUNK).close()
    back_up(place, key, "p1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 5000, 20000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(RepositoryUnreachableError, match="File too large; raise the limit"):
                back_up(place, key, "p2")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert whole(place, key) == {"p1"}
    finished(place, key)


@pytest.mark.needs_root
def test_another_user_is_told_so(key: KeyFile) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        place = Path(folder) / "repository"
        Repository.create(place, key, chunk_bytes=CHUNK).close()
        os.chmod(folder, 0o755)
        end, begin = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            try:
                LocalStore.open(place)
            except RepositoryUnreachableError as error:
                os.write(begin, str(error).encode())
            finally:
                os._exit(0)
        os.close(begin)
        os.waitpid(child, 0)
        with os.fdopen(end) as said:
            assert "Permission denied; have its files belong to the user" in said.read()


class FailingCalls:
    """The module `os`, of which one call fails, once or from then on."""

    def __init__(self, at: int, number: int, for_good: bool) -> None:
        self.calls = 0
        self.fired = False
        self._at, self._number, self._for_good = at, number, for_good

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in ("open", "mkdir", "writev", "fsync", "link", "rename", "unlink"):
            return real

        def call(*args: object, **more: object) -> object:
            self.calls += 1
            if self.calls == self._at or (self._for_good and self.calls > self._at):
                self.fired = True
                raise OSError(self._number, os.strerror(self._number))
            return real(*args, **more)

        return call


def _evidence_and_prune(place: Path, key: KeyFile) -> None:
    with opened(place, key) as repository:
        repository.add_evidence("p1", Evidence(1.0, True, 1.0, "ok"))
        repository.forget({"p1"})
        repository.prune()


WORK: dict[str, Callable[[Path, KeyFile], None]] = {
    "backup": lambda place, key: back_up(place, key, "p2"),
    "prune": _evidence_and_prune,
}
ERRORS = {
    errno.EIO: "look at the disk",
    errno.ESTALE: "mount it anew",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "belong to the user",
    errno.ENOSPC: "free space there",
}


@pytest.mark.parametrize("step", [25, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("number", ERRORS)
@pytest.mark.parametrize("what", WORK)
def test_any_call_fails(
    key: KeyFile, what: str, number: int, for_good: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an AtollError that names the cause, and whoever comes next goes on."""
    at = number % step  # so that the errors meet different calls
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        first = Path(folder) / "first"
        Repository.create(first, key, chunk_bytes=CHUNK).close()
        back_up(first, key, "p1")
        if what == "prune":
            back_up(first, key, "p2")
        while True:
            at += step
            place = Path(folder) / "repository"
            shutil.copytree(first, place)
            failing = FailingCalls(at, number, for_good)
            returned = False
            with monkeypatch.context() as patch:
                patch.setattr(local, "os", failing)
                try:
                    WORK[what](place, key)
                    returned = True
                except AtollError as error:
                    assert isinstance(error, RepositoryUnreachableError), error
                    assert os.strerror(number) in str(error)
                    assert ERRORS[number] in str(error)
            points = whole(place, key)
            if what == "backup":
                assert points >= ({"p1", "p2"} if returned else {"p1"})
            else:
                assert points >= {"p2"} and not (returned and "p1" in points)
            finished(place, key)
            shutil.rmtree(place)
            if not failing.fired:
                break
    assert at > 60
