"""A directory for the socket of one server, cleared by the next when its process was killed."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "atoll-export-"
SOCKET = "nbd.sock"


@contextmanager
def passing_socket() -> Iterator[Path]:
    """A path for a socket in a directory of its own that lasts as long as the block.

    The directory is locked meanwhile, so whoever finds one that is not knows that its process is
    gone, however it ended.
    """
    _clear(Path(tempfile.gettempdir()))
    directory, lock = _make()
    try:
        yield directory / SOCKET
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _make() -> tuple[Path, int]:
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # cleared by another, before it was locked
        fcntl.flock(lock, fcntl.LOCK_SH)
        if directory.exists():
            return directory, lock
        os.close(lock)


def _clear(parent: Path) -> None:
    """Take away those of this user that nobody holds; what cannot be taken away stays."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(lock).st_uid != os.geteuid():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                socket = directory / SOCKET
                if os.path.lexists(socket) and stat.S_ISSOCK(socket.lstat().st_mode):
                    socket.unlink()
                directory.rmdir()
            finally:
                os.close(lock)
