"""Keeps two helpers from changing one volume at once, though they have different callers.

A caller that was killed leaves a helper that still carries out its call. The next caller's waits
for it here; and a call that was not begun yet is not begun any more, or it would make what the
next caller has just cleared.
"""

import fcntl
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


class VolumeLocks:
    """A file for each volume in a directory. Locks end with the process that has them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def held(self, volumes: Iterable[str]) -> Iterator[None]:
        """Wait for these volumes and keep everyone else from them.

        BrokenPipeError, which ends the helper, when its caller is gone.
        """
        with ExitStack() as stack:
            for volume in sorted(set(volumes)):  # one order for all, or two could wait for ever
                stack.callback(os.close, self._lock(volume))
            if _caller_is_gone():
                raise BrokenPipeError
            yield

    def forget(self, volume: str) -> None:
        """Remove the file of a volume that is gone; its lock is held."""
        self._path(volume).unlink(missing_ok=True)

    def _lock(self, volume: str) -> int:
        while True:
            descriptor = os.open(self._path(volume), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # whoever had it removed it, and others lock a new one

    def _path(self, volume: str) -> Path:
        return self._directory / f"volume-{volume}.lock"


def _caller_is_gone() -> bool:
    """Whether the other end of standard input, which waits for an answer, hung up."""
    with socket.socket(fileno=os.dup(0)) as channel:
        try:
            return channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
