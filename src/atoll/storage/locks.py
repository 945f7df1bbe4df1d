"""Locks between all processes of one machine that work on the same storage system."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from atoll.model.errors import StorageUnreachableError


class Locks:
    """Files in the directory `run`. A lock ends with the process that has it, however that ends."""

    def __init__(self, run: Path) -> None:
        self._run = run

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Wait for all of these and keep everyone else from them."""
        with ExitStack() as stack:
            for name in sorted(set(names)):  # one order for all, or two could wait for ever
                descriptor = self._open(name)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    @contextmanager
    def held_if_free(self, name: str) -> Iterator[bool]:
        """Take a lock unless somebody has it; yields whether it is ours."""
        descriptor = self._open(name)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> int:
        try:
            self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(self._run / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageUnreachableError(
                f"Cannot lock {name} in {self._run}: {error.strerror}; check that directory."
            ) from error
