"""The lock that every change on the SAN server holds, so that helpers take turns.

Ends with the process that has it, however that ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATH = Path("/run/atoll-san.lock")
DISKS = Path("/run/atoll-san-disks.lock")
"""Held while a disk is emptied, which takes hours and must not keep snapshots waiting."""


@contextmanager
def held(path: Path = PATH) -> Iterator[None]:
    """Wait for it and keep all others from it."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_if_free() -> Iterator[bool]:
    """Take it unless somebody has it; yields whether it is ours."""
    descriptor = _open(PATH)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
