"""A disk image of a restore point as a BlockReader."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.repository.chunks import ZERO_NAME
from atoll.repository.fetch import ChunkSource
from atoll.repository.images import DiskRecord
from atoll.repository.memory import keep_memory
from atoll.repository.pages import ChunkTable, Piece

_CACHED_BYTES = 16 << 20
_BATCH_BYTES = 4 << 20
_BATCHES_AHEAD = 2
_FROM_CACHE_CHUNKS = 2
"""Reads that touch more chunks than this are not of the small kind that comes back for its neighbours."""


class ImageReader:
    """Reads a disk image at random; every chunk is verified against its name.

    Thread-safe. Small reads keep about 16 MiB of recent chunks. Longer ones ask for neighbours
    together, and above 4 MiB go through worker threads that read ahead, about 4 MiB each.
    """

    def __init__(
        self,
        source: ChunkSource,
        record: DiskRecord,
        threads: int = 2,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        """`closed` is called once, by the first `close`."""
        keep_memory()
        self._closed: Callable[[], None] | None = closed
        self._source = source
        self._record = record
        self._table = ChunkTable(record, source.get)
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._keep = max(4, _CACHED_BYTES // record.chunk_bytes)
        self._lock = threading.Lock()
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    @property
    def size_bytes(self) -> int:
        """The disk's size."""
        return self._record.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer only past the end; RepositoryDamagedError."""
        length = max(0, min(length, self.size_bytes - offset))
        if length > _FROM_CACHE_CHUNKS * self._record.chunk_bytes:
            return b"".join([data for _, data in self.read_many([Extent(offset, length)])])
        end = offset + length
        parts = [
            self._within(piece.part(offset, end), self._content(piece.name))
            for piece in self._table.pieces(offset, end)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, at most 4 MiB each, read ahead by worker threads."""
        parts = self._batches(extents)
        first, second = next(parts, None), next(parts, None)
        if first is None:
            return
        if second is None:
            # Nothing to read ahead of: whoever asks for so little does it from threads of his own.
            yield from self._batch(first)
            return
        waiting: deque[Future[list[tuple[int, bytes]]]] = deque()
        pool = self._workers()
        try:
            for part in chain((first, second), parts):
                waiting.append(pool.submit(self._batch, part))
                if len(waiting) > self._threads * _BATCHES_AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def holes(self) -> Iterator[Extent]:
        """Where no chunk is stored, in order and joined."""
        return self._table.zero_runs()

    def close(self) -> None:
        """End the worker threads."""
        with self._lock:
            pool, self._pool = self._pool, None
            closed, self._closed = self._closed, None
            self._recent.clear()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        if closed is not None:
            closed()

    def _workers(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="atoll-read")
            return self._pool

    def _batches(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        """The extents cut at multiples of the batch size and at the disk's end."""
        batch = max(_BATCH_BYTES, self._record.chunk_bytes)
        for extent in extents:
            offset, end = extent.offset, min(extent.end, self.size_bytes)
            while offset < end:
                cut = min(end, (offset // batch + 1) * batch)
                yield Extent(offset, cut - offset)
                offset = cut

    def _batch(self, part: Extent) -> list[tuple[int, bytes]]:
        pieces = list(self._table.pieces(part.offset, part.end))
        # The rest of a chunk that an edge cuts is wanted by the next batch.
        cut = {piece.name for piece in pieces if piece.start < part.offset or piece.end > part.end}
        contents = {name: data for name in cut if (data := self._recalled(name)) is not None}
        names = dict.fromkeys(piece.name for piece in pieces)
        wanted = [name for name in names if name != ZERO_NAME and name not in contents]
        contents |= zip(wanted, self._source.get_many(wanted), strict=True)
        for name in cut - {ZERO_NAME}:
            self._remember(name, contents[name])
        return [
            (
                max(piece.start, part.offset),
                self._within(piece.part(part.offset, part.end), contents.get(piece.name, b"")),
            )
            for piece in pieces
        ]

    def _within(self, piece: Piece, content: bytes) -> bytes:
        """The bytes that a piece takes of its chunk."""
        if piece.name == ZERO_NAME:
            return bytes(piece.length)
        if piece.length == len(content) and not piece.skip:
            return content
        if piece.skip + piece.length > len(content):
            raise RepositoryDamagedError(
                f"A chunk of {len(content)} bytes stands at byte {piece.start} of a disk where the "
                f"table says {piece.skip + piece.length}; verify the repository."
            )
        return content[piece.skip : piece.skip + piece.length]

    def _content(self, name: bytes) -> bytes:
        if name == ZERO_NAME:
            return b""
        data = self._recalled(name)
        if data is None:
            data = self._source.get(name)
            self._remember(name, data)
        return data

    def _recalled(self, name: bytes) -> bytes | None:
        with self._lock:
            data = self._recent.get(name)
            if data is not None:
                self._recent.move_to_end(name)
            return data

    def _remember(self, name: bytes, data: bytes) -> None:
        with self._lock:
            self._recent[name] = data
            if len(self._recent) > self._keep:
                self._recent.popitem(last=False)
