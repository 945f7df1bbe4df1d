"""Reading a disk from its beginning to its end, ahead of whoever takes it, without known zeros."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader

READERS = 4
_PIECE_BYTES = 4 << 20

T = TypeVar("T")


def read_ahead(
    reader: BlockReader,
    holes: list[Extent],
    extent: Extent,
    grain_bytes: int,
    pool: ThreadPoolExecutor,
    work: Callable[[Extent, bytes], T],
) -> Iterator[tuple[Extent, T]]:
    """Each piece of `extent` outside the holes, in order, with what `work` makes of its bytes.

    Pieces begin and end where a grain of `extent` does and are 4 MiB at most; `holes` are merged.
    Reading and `work` run in the pool, READERS pieces ahead, which bounds the memory.
    RepositoryDamagedError when the disk ends early; the reader's errors pass.
    """
    ahead: deque[tuple[Extent, Future[T]]] = deque()

    def take(piece: Extent) -> T:
        content = reader.read(piece.offset, piece.length)
        if len(content) != piece.length:
            raise RepositoryDamagedError(
                f"The disk ended at byte {piece.offset + len(content)} of {reader.size_bytes} while "
                "it was exported; verify the repository."
            )
        return work(piece, content)

    try:
        for piece in _pieces(holes, extent, grain_bytes):
            ahead.append((piece, pool.submit(take, piece)))
            if len(ahead) > READERS:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead:
            first, future = ahead.popleft()
            yield first, future.result()
    finally:
        for _, future in ahead:
            future.cancel()


def grains_with_data(content: bytes, grain_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each grain that is not all zero; the last may be shorter."""
    zeros = bytes(grain_bytes)
    for at in range(0, len(content), grain_bytes):
        grain = content[at : at + grain_bytes]
        if grain != zeros[: len(grain)]:
            yield at, grain


def _pieces(holes: list[Extent], extent: Extent, grain_bytes: int) -> Iterator[Extent]:
    """The range outside the holes, begun and ended where a grain of the extent begins."""
    at = extent.offset
    for hole in holes:
        begin = -(-(hole.offset - extent.offset) // grain_bytes) * grain_bytes + extent.offset
        end = (min(hole.end, extent.end) - extent.offset) // grain_bytes * grain_bytes
        end += extent.offset
        if hole.end >= extent.end:
            end = extent.end
        if end <= at or begin >= end:
            continue
        yield from _cut(at, min(begin, extent.end))
        at = end
    yield from _cut(at, extent.end)


def _cut(begin: int, end: int) -> Iterator[Extent]:
    while begin < end:
        length = min(_PIECE_BYTES, end - begin)
        yield Extent(begin, length)
        begin += length
