"""The directory of an export, from its first file to the last that is taken away.

It is made, marked and locked before anything is put into it, and `catalog` and
`unmount.dat` are written last: whoever sees `unmount.dat` sees a whole export.
A directory with the marker is an export's and may be cleared with all that is
in it; without the marker nothing is touched.
"""

import fcntl
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.fuse import device
from atoll.model.errors import MountError, RestoreTargetError

MARKER = ".atoll-vcb"
TREE = ".tree"
CATALOG = "catalog"
UNMOUNT = "unmount.dat"


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Make the directory, or take an empty one, and hold it while the block lasts.

    When the block fails it is cleared again. RestoreTargetError when it is not
    empty, cannot be made, or something cannot be written in the block.
    """
    try:
        _make(directory)
        marker = os.open(
            directory / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise RestoreTargetError(
            f"{directory} cannot be used for an export ({error.strerror}); name one that does not "
            "exist, in a directory that does."
        ) from error
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        except OSError as error:
            _clear_held(directory)
            if isinstance(error, BrokenPipeError):
                raise  # of our own output, not of a file
            raise RestoreTargetError(
                f"Writing to {directory} failed ({error.strerror}) and nothing was left there; make "
                "room or name another place, and export again."
            ) from error
        except BaseException:
            _clear_held(directory)
            raise
    finally:
        os.close(marker)


def finish(directory: Path, unmount: str, catalog: str | None = None) -> None:
    """Write what says that the export is whole. OSError."""
    _sync(directory)
    for name, text in ((CATALOG, catalog), (UNMOUNT, unmount)):
        if text is None:
            continue
        passing = directory / f".{name}"
        with passing.open("xb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        passing.rename(directory / name)
        _sync(directory)


def clear(directory: Path) -> bool:
    """Unmount and delete an export, whole or not; False when there is none.

    MountError when it is still written, something in it is in use, or the
    directory is no export; RestoreTargetError when it cannot be deleted.
    """
    try:
        if not os.path.lexists(directory):
            return False
        marker = _marker(directory)
        if marker is None:
            directory.rmdir()  # empty: where a clearing was cut off, or a claim
            return True
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MountError(
                f"{directory} is being exported to at the moment; end that first."
            ) from error
        else:
            _clear_held(directory)
        finally:
            os.close(marker)
    except OSError as error:
        raise RestoreTargetError(
            f"{directory} could not be cleared ({error.strerror}); see to it and unmount again."
        ) from error
    return True


def mounts_below(directory: Path) -> list[Path]:
    """Where Atoll's trees are mounted in it, the one that the others are views of last."""
    real = directory.resolve()
    found = [place for place in device.mounts() if real in place.parents]
    return sorted(found, key=lambda place: place.name == TREE)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        # NotADirectoryError says what it is.
        names = [entry.name for entry in directory.iterdir()]
        if MARKER in names:
            whole = "an" if UNMOUNT in names else "an unfinished"
            raise RestoreTargetError(
                f"{directory} holds {whole} export; take it away with `vcbMounter -U {directory}` "
                "first."
            ) from None
        if names:
            raise RestoreTargetError(
                f"{directory} exists and is not empty; name one that does not exist."
            ) from None


def _marker(directory: Path) -> int | None:
    """The marker, opened; None in an empty directory."""
    try:
        marker = os.open(directory / MARKER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if any(directory.iterdir()):
            raise MountError(
                f"{directory} is no export of vcbMounter; nothing in it was touched."
            ) from None
        return None
    if not stat.S_ISREG(os.fstat(marker).st_mode):
        os.close(marker)
        raise MountError(f"{directory} is no export of vcbMounter; nothing in it was touched.")
    return marker


def _clear_held(directory: Path) -> None:
    """Take everything away, the marker last, so that a clearing cut off can be done again."""
    for place in mounts_below(directory):
        _unmount(place)
    for name in (UNMOUNT, CATALOG):
        (directory / name).unlink(missing_ok=True)
    _delete_below(directory, directory.stat().st_dev)
    (directory / MARKER).unlink()
    # Somebody's mount point stays as an empty directory.
    with suppress(OSError):
        directory.rmdir()


def _delete_below(directory: Path, device_number: int) -> None:
    for entry in list(directory.iterdir()):
        if entry.name == MARKER:
            continue
        kind = entry.lstat()
        if not stat.S_ISDIR(kind.st_mode):
            entry.unlink()
        elif kind.st_dev != device_number:
            raise MountError(f"Something is mounted on {entry}; unmount that first.")
        else:
            _delete_below(entry, device_number)
            entry.rmdir()


def _unmount(place: Path) -> None:
    if place.name == TREE:
        device.unmount(place)
        return
    # A view of the tree, which fusermount3 knows nothing of. A dead one is nobody's any more.
    lazily = ["-l"] if device.is_dead(place) else []
    done = subprocess.run(
        ["umount", *lazily, "--", place], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise MountError(
            f"{place} is still in use ({done.stderr.strip()}); end what reads it and unmount again."
        )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
