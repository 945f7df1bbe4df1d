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
from atoll.service.filelocks import lock_file


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
        return lock_file(self._path(group, snapshot), how)

    def _path(self, group: str, snapshot: str) -> Path:
        return self._directory / f"{group}@{snapshot}"
