"""Writing a whole disk out as a raw image or as a VMDK that ESX and QEMU take.

The VMDK is a descriptor beside a flat extent, createType `vmfs`, as ESX keeps
disks on a datastore. Source: VMware, "Virtual Disk Format 5.0".
"""

import errno
import fcntl
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Literal

from atoll.blocks.vmdk import descriptor_text
from atoll.model.errors import RepositoryDamagedError, RestoreTargetError
from atoll.model.extents import Extent, merge
from atoll.model.readers import BlockReader
from atoll.recovery.placing import place_new

_PIECE_BYTES = 4 << 20
_HOLE_BYTES = 64 << 10
_READERS = 4
_SECTOR = 512
_ZEROS = bytes(_HOLE_BYTES)


def restore_disk(
    reader: BlockReader,
    target: Path,
    form: Literal["raw", "vmdk"] = "raw",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write every byte of `reader` to `target`, zeros as holes; the target must not exist.

    `form` "vmdk" writes the descriptor to `target` (`NAME.vmdk`) and the data
    to `NAME-flat.vmdk` beside it. Both appear under their names only when
    whole and on disk, the descriptor last. `progress` receives the bytes done
    since the last call, holes included, from this thread. Raises
    RestoreTargetError, and what the reader raises; then nothing is left. What
    a killed restore to the same target left is removed first.
    """
    data = target if form == "raw" else _flat_name(target)
    for path in {target, data}:
        if os.path.lexists(path):
            raise RestoreTargetError(f"{path} exists already; choose another name or move it away.")
    size = reader.size_bytes
    if form == "vmdk" and size % _SECTOR:
        raise RestoreTargetError(
            f"The disk has {size} bytes, not a whole number of sectors, which no VMDK can have;"
            " restore it as a raw image."
        )
    try:
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _broken(target, error) from error
    try:
        for path in {target, data}:
            _clear_leftovers(directory, path.name)
        _write_whole(directory, data.name, target, lambda fd: _copy(reader, fd, target, progress))
        if form == "vmdk":
            extent = f'RW {size // _SECTOR} VMFS "{data.name}"'
            text = descriptor_text(size, "vmfs", [extent], hardware_version=14)
            try:
                _write_whole(directory, target.name, target, lambda fd: _pwrite(fd, text, 0))
            except BaseException:
                os.unlink(data.name, dir_fd=directory)
                raise
    finally:
        os.close(directory)


def _write_whole(directory: int, name: str, target: Path, fill: Callable[[int], None]) -> None:
    """Create a file under a passing name, fill it, sync it and give it its name."""
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
            f"{target.parent / name} appeared while the disk was restored; move it away and"
            " restore again."
        ) from error
    except OSError as error:
        raise _broken(target, error) from error


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


def _clear_leftovers(directory: int, name: str) -> None:
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


def _copy(
    reader: BlockReader, descriptor: int, target: Path, progress: Callable[[int], None] | None
) -> None:
    """Read pieces in parallel and write them where they belong; memory stays bounded."""
    size = reader.size_bytes
    os.ftruncate(descriptor, size)
    stop = threading.Event()

    def move(piece: Extent) -> int:
        if stop.is_set():
            return 0
        at = piece.offset
        for offset, content in reader.read_many([piece]):
            _pwrite_sparse(descriptor, content, offset)
            at = offset + len(content)
        if at != piece.end:
            raise RepositoryDamagedError(
                f"The disk ended at byte {at} of {size} while it was"
                f" restored to {target}; verify the repository."
            )
        return piece.length

    def report(done: int) -> None:
        if progress is not None and done:
            progress(done)

    pending: set[Future[int]] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            told = 0
            for piece in _pieces(merge(reader.holes()), size):
                report(piece.offset - told)  # the holes before it
                told = piece.end
                pending.add(pool.submit(move, piece))
                if len(pending) >= 2 * _READERS:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        report(future.result())
            for future in pending:
                report(future.result())
            report(size - told)
        finally:
            stop.set()


def _pieces(holes: list[Extent], size: int) -> Iterator[Extent]:
    """Everything outside the holes, in aligned pieces."""
    at = 0
    for hole in [*holes, Extent(size, 1)]:
        end = min(hole.offset, size)
        while at < end:
            stop = min(end, (at // _PIECE_BYTES + 1) * _PIECE_BYTES)
            yield Extent(at, stop - at)
            at = stop
        at = max(at, hole.end)


def _pwrite_sparse(descriptor: int, content: bytes, offset: int) -> None:
    """Write what is not zero, in units of 64 KiB."""
    view = memoryview(content)
    begin: int | None = None
    for at in range(0, len(view), _HOLE_BYTES):
        # One memcmp; comparing a memoryview would go byte by byte.
        if content.startswith(_ZEROS[: len(view) - at], at):
            if begin is not None:
                _pwrite(descriptor, view[begin:at], offset + begin)
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        _pwrite(descriptor, view[begin:], offset + begin)


def _pwrite(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _flat_name(target: Path) -> Path:
    if target.suffix.lower() != ".vmdk" or '"' in target.name or not target.name.isprintable():
        raise RestoreTargetError(f"{target} is no name for a VMDK; choose one like disk.vmdk.")
    return target.with_name(f"{target.stem}-flat.vmdk")


def _broken(target: Path, error: OSError) -> RestoreTargetError:
    return RestoreTargetError(
        f"Restoring to {target} failed ({error.strerror}) and nothing was left there; make room or"
        " choose another place, and restore again."
    )
