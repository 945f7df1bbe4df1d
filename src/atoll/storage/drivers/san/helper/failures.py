"""Tells the system's errors as Atoll's."""

import errno
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from atoll.model.errors import PoolFullError, StorageConflictError, StorageUnreachableError


@contextmanager
def system_errors(action: str) -> Iterator[None]:
    """Turn OSError into what a caller can act on; `action` reads like "create a volume"."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PoolFullError(
                f"Could not {action}: the thin pool is full; delete snapshots or add a disk."
            ) from error
        if error.errno == errno.EBUSY:
            raise StorageConflictError(
                f"Could not {action}: it is in use on the SAN server; end what uses it and try "
                "again."
            ) from error
        raise StorageUnreachableError(
            f"Could not {action}: {error.strerror}"
            f"{f' ({error.filename})' if error.filename else ''}; see the SAN server's kernel log."
        ) from error


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """What a program prints; StorageUnreachableError with its last words when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except FileNotFoundError as error:
        raise StorageUnreachableError(
            f"The SAN server has no program {command[0]}; install what docs/drivers/san.md names."
        ) from error
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise StorageUnreachableError(
            f"`{' '.join(command[:2])}` failed on the SAN server: "
            f"{' / '.join(said[-3:]) or f'status {done.returncode}'}."
        )
    return done.stdout


def warn(sentence: str) -> None:
    """Say something that does not stop the call, on standard error, where Atoll's log picks it up."""
    sys.stderr.write(f"{sentence}\n")
