"""Objects as files of a directory, durable when `put` returns."""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from atoll.model.errors import (
    RepositoryUnreachableError,
    RunConflictError,
    StorageConflictError,
)
from atoll.repository.store import (
    Buffer,
    MissingObjectError,
    ObjectInfo,
    SessionSeen,
    own_objects,
)

SESSIONS = "sessions/"
_TEMPORARIES = "tmp"
_ENDED = (
    "This process was taken for dead by another that tidies the repository, so nothing of it is "
    "committed; run it again."
)
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*(/[a-z0-9][a-z0-9.-]*)*")
_PARTS_PER_WRITE = 512  # IOV_MAX is 1024 on Linux
_ADVICE = {
    errno.ENOSPC: "free space there and run again",
    errno.EDQUOT: "free space there, or raise the quota, and run again",
    errno.EFBIG: "raise the limit on the size of files there and run again",
    errno.EROFS: "mount it for writing, after finding out why it is not, and run again",
    errno.EACCES: "have its files belong to the user that Atoll runs as and run again",
    errno.EPERM: "have its files belong to the user that Atoll runs as and run again",
    errno.ESTALE: "mount it anew and run again",
    errno.EIO: "look at the disk and its file system before running again",
    errno.ENOLCK: "mount it with locks that reach the server and run again",
}
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class LocalLock:
    """An flock(2), which the kernel drops when the process ends."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def confirm(self) -> None:
        """Nobody takes it from a process that lives."""

    def release(self) -> None:
        """Let go."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.release()


class LocalSession:
    """A file that is locked for as long as its session goes on."""

    def __init__(self, store: "LocalStore", name: str, handle: int) -> None:
        self._store = store
        self._name = name
        self._handle: int | None = handle

    @property
    def name(self) -> str:
        """The file's name."""
        return self._name

    def say(self, text: bytes) -> None:
        """A new file takes the old one's place, so that nobody reads half of either."""
        old = self._handle
        if old is None:
            raise RunConflictError(_ENDED)
        self.confirm()
        self._handle = self._store.place_session(self._name, text)
        os.close(old)

    def confirm(self) -> None:
        """Whoever takes a session for dead removes its file."""
        with _explained(f"look after this process's session in {self._store.location}"):
            if self._handle is None or os.fstat(self._handle).st_nlink == 0:
                raise RunConflictError(_ENDED)

    def end(self) -> None:
        """Remove the file, then drop the lock."""
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                self._store.delete(f"{SESSIONS}{self._name}")
            finally:
                os.close(handle)

    def __del__(self) -> None:
        # Without `end` the file stays, unlocked, like that of a process that was killed.
        if self._handle is not None:
            os.close(self._handle)


class LocalStore:
    """A directory, held by its descriptor.

    Going through the descriptor means that when the file system is unmounted
    under a running process, writes fail instead of landing on the empty mount
    point, and listings fail instead of showing an empty repository.
    """

    def __init__(self, root: Path, handle: int) -> None:
        self._root = root
        self._handle: int | None = handle
        self._settled: set[str] = set()
        """Folders whose names this process has made durable."""

    @classmethod
    def create(cls, root: Path) -> Self:
        """Open a directory, made if it is absent (its parent must exist)."""
        with _explained(f"make the repository directory {root}"):
            root.mkdir(mode=0o700, exist_ok=True)
            parent = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open a directory that exists; RepositoryUnreachableError if it does not."""
        with _explained(f"open the repository directory {root}"):
            return cls(root, os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    @property
    def location(self) -> str:
        """The directory's path."""
        return str(self._root)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Temporary, fsync, link to its name, fsync of the directory."""
        self._place(name, parts, _name)

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        """The same, with a rename."""
        self._place(name, parts, _rename)

    def _place(self, name: str, parts: Sequence[Buffer], to_name: "_ToName") -> None:
        _check(name)
        folder, _, file = name.rpartition("/")
        with _explained(f"write {name} to {self._root}"):
            scratch = self._folder(_TEMPORARIES, create=True)
            try:
                target = self._folder(folder, create=True)
                try:
                    _put_file(scratch, target, file, parts, f"{self._root}/{name}", to_name)
                finally:
                    os.close(target)
            finally:
                os.close(scratch)

    def get(self, name: str) -> bytes:
        """The whole file."""
        handle = self._open(name)
        try:
            with _explained(f"read {name} of {self._root}"):
                return _read(handle, 0, os.fstat(handle).st_size)
        finally:
            os.close(handle)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Part of the file."""
        handle = self._open(name)
        try:
            with _explained(f"read {name} of {self._root}"):
                return _read(handle, offset, length)
        finally:
            os.close(handle)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Walks the folder the prefix names."""
        folder = prefix.rstrip("/")
        _check(folder)
        with _explained(f"list {prefix} of {self._root}"):
            yield from self._walk(folder)

    def delete(self, name: str) -> None:
        """Unlink and fsync of the directory."""
        _check(name)
        folder, _, file = name.rpartition("/")
        with _explained(f"delete {name} of {self._root}"):
            try:
                handle = self._folder(folder, create=False)
            except FileNotFoundError:
                return
            try:
                _unlink(handle, file)
                os.fsync(handle)
            finally:
                os.close(handle)

    def renew(self, names: Iterable[str]) -> None:
        """A directory locks nothing."""

    def temporaries(self) -> Sequence[ObjectInfo]:
        """Files of the scratch folder that nobody has locked."""
        with _explained(f"list the temporaries of {self._root}"):
            found = sorted(self._walk(_TEMPORARIES), key=lambda info: info.name)
            return [info for info in found if self._unlocked(info.name)]

    def delete_temporary(self, name: str) -> None:
        """Unlink one, unless it is somebody's by now."""
        with _explained(f"delete {name} of {self._root}"):
            self._unlocked(name, remove=True)

    def settle(self, prefix: str) -> None:
        """fsync of the folder, and of those below it."""
        folder = prefix.rstrip("/")
        _check(folder)
        with _explained(f"make {prefix} of {self._root} durable"):
            self._settle(folder)

    def _settle(self, folder: str) -> None:
        try:
            handle = self._folder(folder, create=False)
        except FileNotFoundError:
            return
        try:
            os.fsync(handle)
            for name in sorted(os.listdir(handle)):  # noqa: PTH208 - pathlib takes no descriptor
                with suppress(FileNotFoundError):  # deleted since it was listed
                    if stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                        self._settle(f"{folder}/{name}")
        finally:
            os.close(handle)

    def join(self, text: bytes) -> LocalSession:
        """A file in `sessions/`, locked before it has its name."""
        name = secrets.token_hex(16)
        return LocalSession(self, name, self.place_session(name, text))

    def place_session(self, name: str, text: bytes) -> int:
        """Put a session's file in its place and return the locked descriptor."""
        with _explained(f"write to {self._root}"):
            scratch = self._folder(_TEMPORARIES, create=True)
            try:
                target = self._folder(SESSIONS.rstrip("/"), create=True)
                try:
                    temporary, handle = _locked_temporary(scratch)
                    try:
                        _write(handle, [text])
                        os.fsync(handle)
                        os.rename(temporary, name, src_dir_fd=scratch, dst_dir_fd=target)
                        os.fsync(target)
                    except BaseException:
                        os.close(handle)
                        _unlink(scratch, temporary)
                        raise
                    return handle
                finally:
                    os.close(target)
            finally:
                os.close(scratch)

    def sessions(self) -> Sequence[SessionSeen]:
        """Those whose file is locked; the others' files are removed."""
        alive = []
        with _explained(f"look who is at work in {self._root}"):
            for info in own_objects(self, SESSIONS):
                with suppress(MissingObjectError):
                    if self._unlocked(info.name, remove=True):
                        continue
                    alive.append(SessionSeen(info.name.rpartition("/")[2], self.get(info.name)))
        return alive

    def _unlocked(self, name: str, *, remove: bool = False) -> bool:
        """Whether no process has a file locked; `remove` then takes it away while it is ours."""
        while True:
            try:
                # For writing: NFS turns flock(2) into a lock that asks for it.
                handle = self._open(name, os.O_RDWR)
            except MissingObjectError:
                return True
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_nlink == 0:
                    continue  # another file has its place by now
                if remove:
                    self.delete(name)
            except BlockingIOError:
                return False
            finally:
                os.close(handle)
            return True

    def maintain(self) -> LocalLock:
        """flock(2) on the file `lock`."""
        with _explained(f"lock {self._root}"):
            handle = os.open(
                "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self._descriptor
            )
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise RunConflictError(
                    f"The repository {self._root} is being tidied by another; run again when that "
                    "is done."
                ) from None
            except BaseException:
                os.close(handle)
                raise
        return LocalLock(handle)

    def close(self) -> None:
        """Close the directory."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.close()

    @property
    def _descriptor(self) -> int:
        if self._handle is None:
            raise RepositoryUnreachableError(
                f"The repository {self._root} was closed; open it again."
            )
        return self._handle

    def _open(self, name: str, access: int = os.O_RDONLY) -> int:
        _check(name)
        with _explained(f"open {name} of {self._root}"):
            try:
                return os.open(name, access | os.O_CLOEXEC, dir_fd=self._descriptor)
            except FileNotFoundError:
                raise MissingObjectError(
                    f"{name} is missing from the repository {self._root}; "
                    "verify it to learn what that touches."
                ) from None

    def _folder(self, folder: str, *, create: bool) -> int:
        """A descriptor of a folder; with `create` each level is made if it is absent, and is durable.

        A folder that was there may have been made by another who has not come to the fsync yet, or
        was killed before it, so that is done once for each, whoever made it.
        """
        handle = os.dup(self._descriptor)
        path = ""
        try:
            for part in folder.split("/") if folder else ():
                path += f"{part}/"
                if create and path not in self._settled:
                    with suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=handle)
                    os.fsync(handle)
                    self._settled.add(path)
                try:
                    below = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
                except FileNotFoundError:
                    self._settled.discard(path)  # somebody tidies away empty folders
                    raise
                os.close(handle)
                handle = below
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _walk(self, folder: str) -> Iterator[ObjectInfo]:
        try:
            handle = self._folder(folder, create=False)
        except FileNotFoundError:
            return
        try:
            for name in sorted(os.listdir(handle)):  # noqa: PTH208 - pathlib takes no descriptor
                try:
                    status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # deleted since it was listed
                if stat.S_ISDIR(status.st_mode):
                    yield from self._walk(f"{folder}/{name}")
                else:
                    yield ObjectInfo(f"{folder}/{name}", status.st_size)
        finally:
            os.close(handle)


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no object name")


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "make it reachable and run again")
        raise RepositoryUnreachableError(
            f"Could not {doing}: {error.strerror or error}; {advice}."
        ) from error


def _put_file(
    scratch: int,
    target: int,
    file: str,
    parts: Sequence[Buffer],
    described: str,
    to_name: "_ToName",
) -> None:
    temporary, handle = _locked_temporary(scratch)
    try:
        _write(handle, parts)
        os.fsync(handle)
        to_name(scratch, temporary, target, file, described)
        try:
            os.fsync(target)
        except BaseException:
            # Nobody may rely on a name that could be gone tomorrow, and the next fsync would succeed.
            if to_name is _name:
                _unlink(target, file)
            raise
    finally:
        # Closed whatever happens: it is locked, and would pass for a file in use.
        try:
            _unlink(scratch, temporary)
        finally:
            os.close(handle)


def _locked_temporary(scratch: int) -> tuple[str, int]:
    """A new file's name and descriptor, locked so that nobody takes it for a leftover."""
    while True:
        temporary = secrets.token_hex(16)
        handle = os.open(
            temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=scratch
        )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:
                return temporary, handle
        except BlockingIOError:
            pass  # somebody who tidies came between the two calls, and is removing it
        except BaseException:
            os.close(handle)
            _unlink(scratch, temporary)
            raise
        os.close(handle)
        _unlink(scratch, temporary)


def _name(scratch: int, temporary: str, target: int, file: str, described: str) -> None:
    """A hard link never replaces what is there, which rename(2) would."""
    taken = StorageConflictError(
        f"{described} exists already and was left as it is; open it instead of making it anew."
    )
    try:
        os.link(temporary, file, src_dir_fd=scratch, dst_dir_fd=target)
    except FileExistsError:
        raise taken from None
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Some network file systems have no hard links. All names but `config` are
        # random, so only two `create` calls at the same instant could meet here.
        try:
            os.stat(file, dir_fd=target)
        except FileNotFoundError:
            os.rename(temporary, file, src_dir_fd=scratch, dst_dir_fd=target)
        else:
            raise taken from None


def _rename(scratch: int, temporary: str, target: int, file: str, _described: str) -> None:
    os.rename(temporary, file, src_dir_fd=scratch, dst_dir_fd=target)


_ToName = Callable[[int, str, int, str, str], None]
"""Gives a durable temporary (folder, file) its name (folder, file), which the last describes."""


def _write(handle: int, parts: Sequence[Buffer]) -> None:
    for first in range(0, len(parts), _PARTS_PER_WRITE):
        batch = parts[first : first + _PARTS_PER_WRITE]
        written = os.writev(handle, batch)
        if written < sum(len(part) for part in batch):
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                rest = rest[os.write(handle, rest) :]


def _read(handle: int, offset: int, length: int) -> bytes:
    data = os.pread(handle, length, offset)
    if len(data) == length:
        return data
    pieces = [data]
    got = len(data)
    while data and got < length:  # one pread gives at most 2 GiB, and fewer near the end
        data = os.pread(handle, length - got, offset + got)
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)


def _unlink(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
