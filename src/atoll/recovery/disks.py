"""Writing a whole disk out as a raw image, as a VMDK that ESX and QEMU take, or as a qcow2 image.

A flat VMDK is a descriptor beside a flat extent, createType `vmfs`, as ESX keeps disks on a
datastore. Source: VMware, "Virtual Disk Format 5.0".
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal

from atoll.blocks.vmdk import descriptor_text
from atoll.model.errors import RepositoryDamagedError, RestoreTargetError
from atoll.model.extents import Extent, merge
from atoll.model.readers import BlockReader
from atoll.recovery.qcow2 import write_qcow2
from atoll.recovery.stream_vmdk import stream_vmdk
from atoll.recovery.whole_files import (
    clear_leftovers,
    parent_of,
    pwrite,
    refuse_existing,
    write_file,
    write_whole,
)

_PIECE_BYTES = 4 << 20
_HOLE_BYTES = 64 << 10
_READERS = 4
_SECTOR = 512
_ZEROS = bytes(_HOLE_BYTES)

DiskForm = Literal["raw", "vmdk", "vmdk-stream", "qcow2"]
"""`vmdk` is flat, in two files; `vmdk-stream` is stream-optimised: one file, compressed."""

Told = Callable[[int], None]
"""Receives the bytes done since the last call, holes included."""


def restore_disk(
    reader: BlockReader, target: Path, form: DiskForm = "raw", progress: Told | None = None
) -> None:
    """Write every byte of `reader` to `target`, zeros as holes; the target must not exist.

    `form` "vmdk" writes the descriptor to `target` (`NAME.vmdk`) and the data
    to `NAME-flat.vmdk` beside it. Files appear under their names only when
    whole and on disk, the descriptor last. `progress` is called from this thread. Raises
    RestoreTargetError, and what the reader raises; then nothing is left. What
    a killed restore to the same target left is removed first.
    """
    told = progress or _silent
    match form:
        case "raw":
            write_file(target, lambda descriptor: _copy(reader, descriptor, target, told))
        case "vmdk":
            _flat_vmdk(reader, target, told)
        case "vmdk-stream":
            _vmdk_name(target)
            parts = stream_vmdk(reader, since_last(told))
            write_file(target, lambda descriptor: append(descriptor, parts))
        case "qcow2":
            write_file(target, lambda descriptor: write_qcow2(reader, descriptor, since_last(told)))


def append(descriptor: int, parts: Iterable[bytes], at: int = 0) -> int:
    """Write parts one behind the other; where they end."""
    for part in parts:
        pwrite(descriptor, part, at)
        at += len(part)
    return at


def since_last(told: Told) -> Callable[[int], None]:
    """For those who tell how much is done in all."""
    before = 0

    def tell(done: int) -> None:
        nonlocal before
        if done > before:
            told(done - before)
            before = done

    return tell


def _silent(_: int) -> None:
    """Nobody watches."""


def _flat_vmdk(reader: BlockReader, target: Path, told: Told) -> None:
    _vmdk_name(target)
    data = target.with_name(f"{target.stem}-flat.vmdk")
    size = reader.size_bytes
    for path in (target, data):
        refuse_existing(path)
    if size % _SECTOR:
        raise RestoreTargetError(
            f"The disk has {size} bytes, not a whole number of sectors, which no VMDK can have;"
            " restore it as a raw image."
        )
    with parent_of(target) as directory:
        for path in (target, data):
            clear_leftovers(directory, path.name)
        write_whole(directory, data.name, target, lambda fd: _copy(reader, fd, target, told))
        extent = f'RW {size // _SECTOR} VMFS "{data.name}"'
        text = descriptor_text(size, "vmfs", [extent], hardware_version=14)
        try:
            write_whole(directory, target.name, target, lambda fd: pwrite(fd, text, 0))
        except BaseException:
            os.unlink(data.name, dir_fd=directory)
            raise


def _copy(reader: BlockReader, descriptor: int, target: Path, told: Told) -> None:
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
        if done:
            told(done)

    pending: set[Future[int]] = set()
    with ThreadPoolExecutor(_READERS) as pool:
        try:
            reached = 0
            for piece in _pieces(merge(reader.holes()), size):
                report(piece.offset - reached)  # the holes before it
                reached = piece.end
                pending.add(pool.submit(move, piece))
                if len(pending) >= 2 * _READERS:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in done:
                        report(future.result())
            for future in pending:
                report(future.result())
            report(size - reached)
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
                pwrite(descriptor, view[begin:at], offset + begin)
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        pwrite(descriptor, view[begin:], offset + begin)


def _vmdk_name(target: Path) -> None:
    if target.suffix.lower() != ".vmdk" or '"' in target.name or not target.name.isprintable():
        raise RestoreTargetError(f"{target} is no name for a VMDK; choose one like disk.vmdk.")
