"""The pipe that fills the repository: read, find zeros, name, compress, and store what is new."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent, align, complement, merge
from atoll.model.readers import BlockReader
from atoll.repository.chunks import ZERO_NAME, ChunkCodec, PackedChunk
from atoll.repository.images import DiskRecord
from atoll.repository.memory import keep_memory
from atoll.repository.pages import ChunkTable, TableWriter
from atoll.repository.session import Session

_JOB_BYTES = 1 << 20
_JOBS_AHEAD = 3


@dataclass(frozen=True, slots=True)
class CopiedDisk:
    """A disk image in the repository, not yet named by a restore point.

    `root` names it (hex). `stored_bytes` is what it added to the repository,
    tables included. `new_chunks` were stored, `known_chunks` were there already,
    `zero_chunks` hold nothing; chunks taken over from the parent are not counted.
    """

    root: str
    size_bytes: int
    read_bytes: int
    stored_bytes: int
    new_chunks: int
    known_chunks: int
    zero_chunks: int


@dataclass(frozen=True, slots=True)
class ParentImage:
    """The image an increment starts from."""

    table: ChunkTable
    size_bytes: int


class _Done(NamedTuple):
    """A chunk that was looked at; `packed` is set if it has to be stored."""

    number: int
    name: bytes
    packed: PackedChunk | None


def copy_disk(
    session: Session,
    codec: ChunkCodec,
    chunk_bytes: int,
    reader: BlockReader,
    extents: Iterable[Extent] | None,
    parent: ParentImage | None,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> CopiedDisk:
    """Copy a disk and return its root. On any error the session is void.

    Worker threads read, name and compress about 1 MiB at a time; this thread
    takes their results in order, seals and packs. At most three jobs a worker
    are under way, which bounds memory and holds reading back when writing is slow.
    """
    keep_memory()
    size = reader.size_bytes
    workers = threads or max(2, os.cpu_count() or 2)
    wanted = _wanted(reader, extents, parent, chunk_bytes)
    chunks = -(-size // chunk_bytes)
    stored = new = known = zero = read = 0

    def put(page: bytes) -> bytes:
        nonlocal stored
        name, added = session.put(page)
        stored += added
        return name

    table = TableWriter(parent.table if parent else None, chunks, put)
    waiting: deque[tuple[Future[list[_Done]], int]] = deque()

    def take() -> None:
        nonlocal stored, new, known, zero, read
        future, length = waiting.popleft()
        for number, name, packed in future.result():
            table.set(number, name)
            if packed is not None:
                stored += session.store(name, packed)
                new += 1
            elif name == ZERO_NAME:
                zero += 1
            else:
                known += 1
        read += length
        if progress is not None:
            progress(length)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="atoll-copy")
    try:
        for job in _jobs(wanted, max(_JOB_BYTES, chunk_bytes)):
            if len(waiting) >= workers * _JOBS_AHEAD:
                take()
            length = sum(extent.length for extent in job)
            waiting.append((pool.submit(_work, session, codec, chunk_bytes, reader, job), length))
        while waiting:
            take()
        record = DiskRecord(size, chunk_bytes, table.finish())
        root = put(record.to_bytes())
    except BaseException as error:
        session.fail(error)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return CopiedDisk(root.hex(), size, read, stored, new, known, zero)


def _wanted(
    reader: BlockReader,
    extents: Iterable[Extent] | None,
    parent: ParentImage | None,
    chunk_bytes: int,
) -> list[Extent]:
    """Whole chunks to read, in order."""
    size = reader.size_bytes
    if extents is None:
        return align(complement(merge(reader.holes()), size), chunk_bytes, size)
    wanted = list(extents)
    if parent is not None and parent.size_bytes != size:
        # The chunk in which the shorter of the two ends is cut short in one and not in the
        # other, so what the parent has for it is not what this disk holds there.
        edge = min(parent.size_bytes, size)
        if edge % chunk_bytes:
            wanted.append(Extent(edge - 1, 1))
    return align(wanted, chunk_bytes, size)


def _jobs(extents: Iterable[Extent], job_bytes: int) -> Iterator[list[Extent]]:
    """Cut and gather extents into jobs of at most `job_bytes`, keeping chunks whole."""
    job: list[Extent] = []
    room = job_bytes
    for extent in extents:
        offset = extent.offset
        while offset < extent.end:
            length = min(room, extent.end - offset)
            job.append(Extent(offset, length))
            offset += length
            room -= length
            if room == 0:
                yield job
                job, room = [], job_bytes
    if job:
        yield job


def _work(
    session: Session,
    codec: ChunkCodec,
    chunk_bytes: int,
    reader: BlockReader,
    job: list[Extent],
) -> list[_Done]:
    done = []
    for offset, data in _whole(reader, job):
        for at in range(0, len(data), chunk_bytes):
            chunk = data[at : at + chunk_bytes]
            number = (offset + at) // chunk_bytes
            if codec.is_zero(chunk):
                done.append(_Done(number, ZERO_NAME, None))
                continue
            name = codec.name(chunk)
            packed = codec.pack(chunk) if session.promise(name) else None
            done.append(_Done(number, name, packed))
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
