"""Locks on files, which the kernel drops when their process dies, however it dies."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.model.errors import RunConflictError

_POLL_SECONDS = 0.1


def lock_file(path: Path, how: int, *, create: bool = True) -> int | None:
    """A locked descriptor to close; None while others hold a lock that excludes this one.

    `how` is LOCK_SH or LOCK_EX. Without `create`, None also when there is no such file.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # whoever had it took the file away meanwhile


@contextmanager
def locked(
    path: Path,
    how: int,
    said: str,
    patience_seconds: float,
    waits: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Wait for a lock and have it while the block lasts; RunConflictError(`said`) if in vain.

    `waits` is called once when it is not to be had at once.
    """
    deadline = time.monotonic() + patience_seconds
    while (descriptor := lock_file(path, how)) is None:
        if waits is not None:
            waits()
            waits = None
        if time.monotonic() > deadline:
            raise RunConflictError(said)
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
