"""Which storage snapshots somebody reads, so that no run deletes them underneath.

One file for each snapshot that was ever read, locked shared by its readers and
exclusively by who deletes it. The kernel drops a lock when its process dies,
however it dies, so a killed reader keeps nothing.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from atoll.model.errors import ConfigurationError, RunConflictError


class Pins:
    """The readers of snapshots, recorded in one state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "readers"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigurationError(
                f"Cannot write the state directory {directory}: {error.strerror}."
            ) from error

    @contextmanager
    def reading(self, snapshots: Sequence[tuple[str, str]]) -> Iterator[None]:
        """Keep these (group, snapshot) from being deleted while the block lasts.

        Look whether they exist inside the block. RunConflictError when one is being deleted now.
        """
        with ExitStack() as stack:
            for group, snapshot in snapshots:
                descriptor = self._lock(group, snapshot, fcntl.LOCK_SH)
                if descriptor is None:
                    raise RunConflictError(
                        f"Snapshot {snapshot} of {group} is being deleted; use a newer run."
                    )
                stack.callback(os.close, descriptor)
            yield

    @contextmanager
    def deleting(self, group: str, snapshot: str) -> Iterator[bool]:
        """Whether nobody reads the snapshot; then nobody begins to while the block lasts."""
        descriptor = self._lock(group, snapshot, fcntl.LOCK_EX)
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            self._path(group, snapshot).unlink(missing_ok=True)
            os.close(descriptor)

    def _lock(self, group: str, snapshot: str, how: int) -> int | None:
        """A locked descriptor; None while others hold a lock that excludes this one."""
        path = self._path(group, snapshot)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                return descriptor
            os.close(descriptor)  # who deleted the snapshot took the file away meanwhile

    def _path(self, group: str, snapshot: str) -> Path:
        return self._directory / f"{group}@{snapshot}"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
