"""The pipe that fills the repository: read, cut into chunks, name, compress, and store what is new."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent, align, complement, intersect, merge
from atoll.model.readers import BlockReader
from atoll.repository.chunks import ZERO_NAME, ChunkCodec, PackedChunk
from atoll.repository.cutting import BLOCK_BYTES, Cut, Cutter, Marks
from atoll.repository.images import PAGE_NAMES
from atoll.repository.memory import keep_memory
from atoll.repository.pages import ChunkTable, TableWriter
from atoll.repository.planning import ranges_to_read
from atoll.repository.session import Session
from atoll.repository.store import Buffer

_READ_BYTES = 2 << 20
_PACK_BYTES = 1 << 20
_JOBS_AHEAD = 3


@dataclass(frozen=True, slots=True)
class CopiedDisk:
    """A disk image in the repository, not yet named by a restore point.

    `root` names it (hex). `stored_bytes` is what it added to the repository,
    tables included. `new_chunks` were stored, `known_chunks` were there already,
    `zero_bytes` were read and hold nothing; chunks taken over from the parent are not counted.
    """

    root: str
    size_bytes: int
    read_bytes: int
    stored_bytes: int
    new_chunks: int
    known_chunks: int
    zero_bytes: int


Reached = Callable[[int, Callable[[], str]], None]
"""Told how far a copy has come (all below that offset is done) and what gives the root so far."""


class _Part(NamedTuple):
    """Bytes to be read; `last` if nothing follows that they may be in one chunk with.

    `chunk`: they are one, and are not to be cut.
    """

    extent: Extent
    last: bool
    chunk: bool = False


class _Seen(NamedTuple):
    """A part that was read and looked at."""

    data: memoryview
    marks: Marks


class _Cut(NamedTuple):
    """A chunk that was cut; zeros have no data."""

    start: int
    length: int
    data: Buffer | None


class _Done(NamedTuple):
    """A chunk that was named; `packed` is set if it has to be stored."""

    start: int
    length: int
    name: bytes
    packed: PackedChunk | None


def copy_disk(
    session: Session,
    codec: ChunkCodec,
    cutter: Cutter,
    chunk_bytes: int,
    reader: BlockReader,
    extents: Iterable[Extent] | None,
    parent: ChunkTable | None,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
    reached: Reached | None = None,
    lost: Sequence[Extent] = (),
) -> CopiedDisk:
    """Copy a disk and return its root. On any error the session is void.

    `lost` are chunks of the parent that cannot be read any more. Where nothing changed they are read
    as they were cut, so that they get their old names, and older disks have them again as well.

    Worker threads read and mark blocks, 2 MiB at a time, and name and compress chunks, about 1 MiB at a
    time; this thread cuts, takes results in order, seals and packs. How much is under way is bounded,
    which bounds memory and holds reading back when writing is slow.
    """
    keep_memory()
    size = reader.size_bytes
    workers = threads or max(2, os.cpu_count() or 2)
    again: list[Extent] = []
    if extents is None:
        wanted = align(complement(merge(reader.holes()), size), BLOCK_BYTES, size)
    else:
        changed = merge(extents)
        again = [each for each in lost if each.end <= size and not any(intersect([each], changed))]
        gone = set(lost) - set(again)
        wanted = ranges_to_read(
            [*changed, *gone], parent, size, cutter.shortest_bytes, session.length
        )
        wanted = list(intersect(wanted, complement(again, size)))
    stored = new = known = zero = read = 0

    def put(page: bytes) -> bytes:
        nonlocal stored
        name, added = session.put(page)
        stored += added
        return name

    def so_far() -> str:
        return put(table.as_it_stands().to_bytes()).hex()

    table = TableWriter(parent, size, chunk_bytes, put)
    reading: deque[tuple[list[_Part], Future[list[_Seen]]]] = deque()
    packing: deque[Future[list[_Done]]] = deque()
    joiner = _Joiner(cutter)

    def take() -> None:
        nonlocal stored, new, known, zero, read
        taken = 0
        for start, length, name, packed in packing.popleft().result():
            table.set(start, length, name)
            taken += length
            if packed is not None:
                stored += session.store(name, packed)
                new += 1
            elif name == ZERO_NAME:
                zero += length
            else:
                known += 1
        read += taken
        if progress is not None:
            progress(taken)
        if reached is not None:
            reached(start + length, so_far)

    def pack() -> None:
        parts, future = reading.popleft()
        for job in joiner.cut(parts, future.result()):
            packing.append(pool.submit(_name_and_pack, session, codec, job))
        while len(packing) > workers * _JOBS_AHEAD:
            take()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="atoll-copy")
    try:
        for job in _jobs(wanted, again, chunk_bytes * PAGE_NAMES):
            reading.append((job, pool.submit(_read, cutter, reader, job)))
            if len(reading) > workers * _JOBS_AHEAD:
                pack()
        while reading:
            pack()
        while packing:
            take()
        root = put(table.finish().to_bytes())
    except BaseException as error:
        session.fail(error)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return CopiedDisk(root.hex(), size, read, stored, new, known, zero)


def _jobs(wanted: list[Extent], again: list[Extent], span: int) -> Iterator[list[_Part]]:
    """Deal out what is to be read in jobs of about 2 MiB; no part reaches into the next leaf."""
    job: list[_Part] = []
    room = _READ_BYTES
    whole = set(again)
    for extent in sorted([*wanted, *again]):
        offset = extent.offset
        while offset < extent.end:
            end = min(extent.end, (offset // span + 1) * span)
            length = end - offset
            if extent not in whole:
                length = min(room // BLOCK_BYTES * BLOCK_BYTES, length)
            last = offset + length == end
            job.append(_Part(Extent(offset, length), last, extent in whole))
            offset += length
            room -= length
            if room < BLOCK_BYTES:
                yield job
                job, room = [], _READ_BYTES
    if job:
        yield job


def _read(cutter: Cutter, reader: BlockReader, job: list[_Part]) -> list[_Seen]:
    whole = _whole(reader, [part.extent for part in job])
    return [_Seen(data, cutter.marks(data)) for _, data in whole]


class _Joiner:
    """Cuts parts that follow each other; keeps what cannot be cut before more is known."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter
        self._kept: list[memoryview] = []
        self._marks: Marks | None = None
        self._in_zeros = False

    def cut(self, parts: list[_Part], seen: list[_Seen]) -> Iterator[list[_Cut]]:
        """Jobs of about 1 MiB for those who name and compress."""
        job: list[_Cut] = []
        heavy = 0
        for part, (data, marks) in zip(parts, seen, strict=True):
            for chunk in self._cut(part, data, marks):
                job.append(chunk)
                heavy += 0 if chunk.data is None else chunk.length
                if heavy >= _PACK_BYTES:
                    yield job
                    job, heavy = [], 0
        if job:
            yield job

    def _cut(self, part: _Part, data: memoryview, marks: Marks) -> Iterator[_Cut]:
        if self._marks is not None:
            marks = Marks(*(np.concatenate(both) for both in zip(self._marks, marks, strict=True)))
        self._kept.append(data)
        start = part.extent.end - sum(len(each) for each in self._kept)
        if part.chunk:
            cuts, used = [Cut(len(marks.zero), zero=False)], len(marks.zero)
        else:
            cuts, used = self._cutter.cut(marks, last=part.last, in_zeros=self._in_zeros)
        for blocks, zero in cuts:
            length = min(blocks * BLOCK_BYTES, part.extent.end - start)
            content = self._take(length)
            yield _Cut(start, length, None if zero else content)
            start += length
        if part.last:
            self._marks, self._in_zeros = None, False
        else:
            self._marks = Marks(marks.draws[used:], marks.zero[used:])
            self._in_zeros = used == len(marks.zero) and bool(cuts) and cuts[-1].zero

    def _take(self, length: int) -> Buffer:
        """The next bytes, copied only where they lie in several parts."""
        pieces = []
        while length:
            first = self._kept[0]
            if len(first) > length:
                pieces.append(first[:length])
                self._kept[0] = first[length:]
                break
            pieces.append(first)
            length -= len(first)
            del self._kept[0]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _name_and_pack(session: Session, codec: ChunkCodec, job: list[_Cut]) -> list[_Done]:
    done = []
    for start, length, data in job:
        if data is None or codec.is_zero(data):
            done.append(_Done(start, length, ZERO_NAME, None))
            continue
        name = codec.name(data)
        done.append(_Done(start, length, name, codec.pack(data) if session.promise(name) else None))
    return done


def _whole(reader: BlockReader, job: list[Extent]) -> Iterator[tuple[int, memoryview]]:
    """Each extent in one piece, whatever pieces the reader gives."""
    pieces = iter(reader.read_many(job))
    for extent in job:
        gathered: list[bytes] = []
        got = 0
        while got < extent.length:
            offset, data = next(pieces, (-1, b""))
            if offset != extent.offset + got or not data or got + len(data) > extent.length:
                raise StorageUnreachableError(
                    f"The disk gave no bytes for offset {extent.offset + got} although it is "
                    f"{reader.size_bytes} bytes long; check the storage and run again."
                )
            gathered.append(data)
            got += len(data)
        yield extent.offset, memoryview(gathered[0] if len(gathered) == 1 else b"".join(gathered))
