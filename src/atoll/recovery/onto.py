"""Writing a disk onto a raw image or block device that exists, and only where it differs.

What is there is read and compared, or, where it is known to be an older or newer state of the same
disk, only the ranges in which the two states differ are looked at: then the time grows with the
difference and not with the disk.
"""

import fcntl
import os
import random
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from atoll.model.errors import RepositoryDamagedError, RestoreTargetError
from atoll.model.extents import Extent, align, complement, merge
from atoll.model.readers import BlockReader
from atoll.recovery.whole_files import pwrite

BLOCK_BYTES = 4 << 10
SAMPLES = 256
"""So many places are compared before a target is taken for what it is said to be."""

_PIECE_BYTES = 4 << 20
_WORKERS = 4
_SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Written:
    """What a restore onto something did: bytes of the disk, those looked at, those written."""

    size_bytes: int
    compared_bytes: int
    written_bytes: int


def restore_onto(
    reader: BlockReader,
    target: Path,
    changed: Iterable[Extent] | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    verify: bool = False,
) -> Written:
    """Let `target` hold what `reader` does; a device may be larger, a file must be as large.

    With `changed` only these ranges are compared and written: outside of them the target is said to
    be right already, which SAMPLES places and both ends are compared for. RestoreTargetError when
    it is not, or is in use, or of another size: then nothing was written. `verify` reads what was
    compared once more, from the medium and not from memory. `progress` receives the bytes looked
    at since the last call; twice as many with `verify`.

    There is no way back: what is killed leaves the target between two states, and the same
    command brings it to the end.
    """
    told = progress or _silent
    with _opened(target, reader.size_bytes) as descriptor:
        size = reader.size_bytes
        if changed is None:
            extents = [Extent(0, size)] if size else []
        else:
            extents = align(merge(changed), BLOCK_BYTES, size)
            _require_known(reader, descriptor, target, extents)
        try:
            written = _work(reader, descriptor, extents, told, _overwrite)
            os.fsync(descriptor)
        except OSError as error:
            raise _half_done(target, f"writing failed ({error.strerror})") from error
        if verify:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if _work(reader, descriptor, extents, told, _differ):
                raise _half_done(target, "what was written does not read back")
        return Written(size, sum(extent.length for extent in extents), written)


_Compared = Callable[[int, bytes, bytes, int], int]


def _work(
    reader: BlockReader,
    descriptor: int,
    extents: Sequence[Extent],
    told: Callable[[int], None],
    compared: _Compared,
) -> int:
    """Compare pieces in parallel; the sum of what `compared` gives."""
    stop = threading.Event()

    def look(piece: Extent) -> tuple[int, int]:
        if stop.is_set():
            return 0, 0
        wanted = reader.read(piece.offset, piece.length)
        if len(wanted) != piece.length:
            raise RepositoryDamagedError(
                f"The disk ended at byte {piece.offset + len(wanted)} of {reader.size_bytes}; verify "
                "the repository."
            )
        there = _pread(descriptor, piece)
        if wanted == there:
            return piece.length, 0
        return piece.length, compared(descriptor, wanted, there, piece.offset)

    total = 0
    with ThreadPoolExecutor(_WORKERS) as pool:
        try:
            pieces = _pieces(extents)
            while batch := list(islice(pieces, 2 * _WORKERS)):
                for length, count in pool.map(look, batch):
                    told(length)
                    total += count
        finally:
            stop.set()
    return total


def _overwrite(descriptor: int, wanted: bytes, there: bytes, offset: int) -> int:
    """Write the blocks that differ, neighbours at once; how many bytes."""
    written = 0
    for begin, end in _different(wanted, there):
        pwrite(descriptor, memoryview(wanted)[begin:end], offset + begin)
        written += end - begin
    return written


def _differ(descriptor: int, wanted: bytes, there: bytes, offset: int) -> int:
    return sum(end - begin for begin, end in _different(wanted, there))


def _different(wanted: bytes, there: bytes) -> Iterator[tuple[int, int]]:
    begin: int | None = None
    for at in range(0, len(wanted), BLOCK_BYTES):
        same = wanted[at : at + BLOCK_BYTES] == there[at : at + BLOCK_BYTES]
        if same and begin is not None:
            yield begin, at
            begin = None
        elif not same and begin is None:
            begin = at
    if begin is not None:
        yield begin, len(wanted)


def _require_known(
    reader: BlockReader, descriptor: int, target: Path, changed: Sequence[Extent]
) -> None:
    """RestoreTargetError when a sample says that the target is not what it is said to be."""
    samples = list(_samples(list(complement(changed, reader.size_bytes))))

    def same(piece: Extent) -> bool:
        return reader.read(piece.offset, piece.length) == _pread(descriptor, piece)

    with ThreadPoolExecutor(_WORKERS) as pool:
        found = list(pool.map(same, samples))
    for piece, is_same in zip(samples, found, strict=True):
        if not is_same:
            raise RestoreTargetError(
                f"{target} is not in the state it is said to be in: at byte {piece.offset} it differs "
                "where the two restore points do not. Nothing was written; leave --known-to-be out "
                "and all of it is compared."
            )


def _samples(outside: Sequence[Extent]) -> Iterator[Extent]:
    """Both ends, and places spread evenly with chance in each stretch."""
    total = sum(extent.length for extent in outside)
    if not total:
        return
    stride = max(1, total // SAMPLES)
    wanted = {0, total - 1} | {
        min(total - 1, at + random.randrange(stride))  # noqa: S311 - no secret
        for at in range(0, total, stride)
    }
    places, passed = iter(sorted(wanted)), 0
    place = next(places, None)
    for extent in outside:
        while place is not None and place < passed + extent.length:
            offset = extent.offset + place - passed
            begin = max(extent.offset, offset // _SAMPLE_BYTES * _SAMPLE_BYTES)
            end = min(extent.end, begin + _SAMPLE_BYTES)
            yield Extent(begin, end - begin)
            place = next(places, None)
        passed += extent.length


@contextmanager
def _opened(target: Path, size: int) -> Iterator[int]:
    """The target for this process alone, as far as the kernel can see to it."""
    try:
        kind = target.stat().st_mode
        # Of a block device it means: not while it is mounted or part of something.
        alone = os.O_EXCL if stat.S_ISBLK(kind) else 0
        if not stat.S_ISBLK(kind) and not stat.S_ISREG(kind):
            raise RestoreTargetError(f"{target} is neither a file nor a block device.")
        descriptor = os.open(target, os.O_RDWR | os.O_CLOEXEC | alone)
    except OSError as error:
        raise RestoreTargetError(
            f"{target} cannot be written ({error.strerror}); nothing was changed."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RestoreTargetError(
                f"{target} is in use by another process; nothing was changed."
            ) from error
        there = os.lseek(descriptor, 0, os.SEEK_END)
        if there < size or (there != size and stat.S_ISREG(kind)):
            raise RestoreTargetError(
                f"{target} has {there} bytes and the disk {size}; nothing was changed. Give it the "
                "right size, or restore to a new file."
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _pread(descriptor: int, piece: Extent) -> bytes:
    parts, at = [], piece.offset
    while at < piece.end:
        part = os.pread(descriptor, piece.end - at, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pieces(extents: Iterable[Extent]) -> Iterator[Extent]:
    for extent in extents:
        for at in range(extent.offset, extent.end, _PIECE_BYTES):
            yield Extent(at, min(_PIECE_BYTES, extent.end - at))


def _half_done(target: Path, why: str) -> RestoreTargetError:
    return RestoreTargetError(
        f"Restoring onto {target}: {why}, so it is now partly old and partly restored; do not use it, "
        "and restore onto it again."
    )


def _silent(_: int) -> None:
    """Nobody watches."""
