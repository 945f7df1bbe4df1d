"""Files that appear under their names only when whole and on disk, and leave nothing when they fail."""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.model.errors import RestoreTargetError
from atoll.recovery.placing import place_new


def write_file(target: Path, fill: Callable[[int], object]) -> None:
    """Let `fill` write a file by its descriptor; it appears as `target` when it is whole.

    The target must not exist. RestoreTargetError, and what `fill` raises; then nothing is left.
    What a killed restore to the same target left is removed first.
    """
    refuse_existing(target)
    with parent_of(target) as directory:
        clear_leftovers(directory, target.name)
        write_whole(directory, target.name, target, fill)


def refuse_existing(path: Path) -> None:
    """RestoreTargetError when something has that name, be it a symlink that leads nowhere."""
    if os.path.lexists(path):
        raise RestoreTargetError(f"{path} exists already; choose another name or move it away.")


@contextmanager
def parent_of(target: Path) -> Iterator[int]:
    """A descriptor of the directory that a target is to be in; RestoreTargetError."""
    try:
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise broken(target, error) from error
    try:
        yield directory
    finally:
        os.close(directory)


def pwrite(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of it at a place; OSError."""
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def broken(target: Path, error: OSError) -> RestoreTargetError:
    """What is raised when the machine itself fails."""
    return RestoreTargetError(
        f"Restoring to {target} failed ({error.strerror}) and nothing was left there; make room or"
        " choose another place, and restore again."
    )


def write_whole(directory: int, name: str, target: Path, fill: Callable[[int], object]) -> None:
    """Create a file under a passing name, fill it, sync it and give it its name.

    `target` is named in messages. RestoreTargetError, and what `fill` raises.
    """
    try:
        passing, descriptor = _create_held(directory, name)
        try:
            fill(descriptor)
            os.fsync(descriptor)
            place_new(passing, directory, name, directory)
        except BaseException:
            with suppress(FileNotFoundError):  # renamed, and only the directory's sync failed
                os.unlink(passing, dir_fd=directory)
            raise
        finally:
            os.close(descriptor)
    except FileExistsError as error:
        raise RestoreTargetError(
            f"{target.parent / name} appeared while it was restored; move it away and"
            " restore again."
        ) from error
    except OSError as error:
        raise broken(target, error) from error


def _create_held(directory: int, name: str) -> tuple[str, int]:
    """A new file under a passing name, locked for as long as its descriptor is open."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        passing = f"{_passing(name)}{secrets.token_hex(6)}"
        descriptor = os.open(passing, flags, 0o600, dir_fd=directory)
        try:
            _hold(descriptor)
            if os.fstat(descriptor).st_nlink:
                return passing, descriptor
        except BaseException:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(passing, dir_fd=directory)
            raise
        os.close(descriptor)  # it was taken for a leftover before it was locked


def _hold(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        # Without locks nobody can lock it to remove it either, so leftovers stay there.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def clear_leftovers(directory: int, name: str) -> None:
    """Remove passing files of that name whose process was killed: their lock is free."""
    leftover = re.compile(re.escape(_passing(name)) + "[0-9a-f]{12}")
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for found in os.listdir(directory):
        if not leftover.fullmatch(found):
            continue
        # Whatever cannot be opened, locked or removed is left: it does not stop this restore.
        with suppress(OSError):
            descriptor = os.open(found, flags, dir_fd=directory)
            try:
                info = os.fstat(descriptor)
                if stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # It may have got its final name since it was listed; then this fails.
                    os.unlink(found, dir_fd=directory)
            finally:
                os.close(descriptor)


def _passing(name: str) -> str:
    """What passing names for it begin with; file systems take names of 255 bytes."""
    return f".{os.fsdecode(os.fsencode(name)[:200])}."
