"""What restore points reach: the chunks, pages and blobs they need."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.model.points import DiskImage
from atoll.repository.chunks import NAME_BYTES, ZERO_NAME
from atoll.repository.images import PAGE_NAMES, BlobRecord, DiskRecord, levels, name_of
from atoll.repository.index import Index
from atoll.repository.pages import PAGE_BYTES, leaf_names, leaf_pieces

_READERS = 8
_BATCH = 64  # pages fetched before their names are looked up
_CHUNK, _DISK, _BLOB, _PAGE = 1, 2, 4, 8  # a page of level n is met as _PAGE << n


class Touch(NamedTuple):
    """A bad name and the `extent` of the disk below it, None for a blob; `chunk` if it is data itself."""

    name: bytes
    extent: Extent | None
    chunk: bool


class Reach:
    """Marks the rows of an index that restore points need: a byte of memory for each row.

    Pages that several images share are read once, by worker threads, in batches. The index must not
    change meanwhile. `avoid`, by pack number, says which packs to count as absent wherever another
    holds the chunk too.
    """

    def __init__(
        self,
        index: Index,
        get: Callable[[bytes], bytes],
        avoid: NDArray[np.bool_] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._index = index
        self._get = get
        self._avoid = avoid
        self._progress = progress
        self.rows = np.zeros(len(index), np.uint8)
        """Not 0 where a row is needed; the bits say as what it was met, see `_meet`."""

    def add(self, roots: Iterable[str], blobs: Iterable[str]) -> None:
        """Follow disk images and blobs by their names (hex).

        RepositoryDamagedError if something cannot be read or found, because then what lies below is
        not known.
        """
        with ThreadPoolExecutor(_READERS, thread_name_prefix="atoll-reach") as pool:
            for blob in blobs:
                name = name_of(blob)
                if len(self._meet(_array([name]), _BLOB)):
                    pieces = BlobRecord.from_bytes(self._get(name)).pieces
                    self._meet(_array(pieces), _CHUNK)
            for root in roots:
                name = name_of(root)
                if len(self._meet(_array([name]), _DISK)):
                    record = DiskRecord.from_bytes(self._get(name))
                    top = _array([record.top])
                    depth = levels(record.chunks)
                    self._pages(pool, top[top.any(axis=1)], depth - 1, record.version)

    def _pages(self, pool: Executor, names: NDArray[np.uint8], level: int, version: int) -> None:
        """Follow pages of a level that have not been followed before."""
        fresh = self._meet(names, _PAGE << level)
        for first in range(0, len(fresh), _BATCH):
            batch = [name.tobytes() for name in fresh[first : first + _BATCH]]
            for page in pool.map(self._get, batch):
                below = _array([_names(page, level, version)])
                below = below[below.any(axis=1)]
                if level:
                    self._pages(pool, below, level - 1, version)
                else:
                    self._meet(below, _CHUNK)
            if self._progress is not None:
                self._progress(len(batch))

    def _meet(self, names: NDArray[np.uint8], role: int) -> NDArray[np.uint8]:
        """Mark chunks as needed in a role; gives those that had not been met in it, each once.

        By role, so that a chunk of a guest that happens to be a page is followed as a page as well.
        """
        if not len(names):
            return names
        rows = self._index.find(names, self._avoid)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise RepositoryDamagedError(
                f"No index segment lists chunk {names[missing[0]].tobytes().hex()[:16]}, which a "
                "restore point needs; rebuild the index and verify the repository first."
            )
        rows, first = np.unique(rows, return_index=True)
        fresh = (self.rows[rows] & role) == 0
        self.rows[rows] |= np.uint8(role)
        new: NDArray[np.uint8] = names[first[fresh]]
        return new


def _array(names: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, NAME_BYTES)


class DamageSearch:
    """Finds which parts of disks bad names touch; remembers each page, so shared ones cost once.

    A bad name need not be unreadable (its pack may only have a damaged footer),
    so the search goes below it when it can.
    """

    def __init__(self, get: Callable[[bytes], bytes], bad: Callable[[bytes], bool]) -> None:
        self._get = get
        self._bad = bad
        self._known: dict[tuple[bytes, int, int, int], tuple[Touch, ...]] = {}

    def disk(self, disk: DiskImage) -> Iterator[Touch]:
        """Every bad name below a disk, with the range of the disk it touches."""
        if disk.extent_map:
            yield from self.blob(disk.extent_map)
        root = name_of(disk.root)
        if self._bad(root):
            yield Touch(root, Extent(0, disk.size_bytes), chunk=False)
        try:
            record = DiskRecord.from_bytes(self._get(root))
        except RepositoryDamagedError:
            return  # a bad name, and all of the disk is below it
        yield from self._page(record, record.top, levels(record.chunks) - 1, 0)

    def blob(self, blob: str) -> Iterator[Touch]:
        """Every bad name of a blob."""
        name = name_of(blob)
        if self._bad(name):
            yield Touch(name, None, chunk=True)
        try:
            pieces = BlobRecord.from_bytes(self._get(name)).pieces
        except RepositoryDamagedError:
            return
        yield from (Touch(piece, None, chunk=True) for piece in pieces if self._bad(piece))

    def _page(self, record: DiskRecord, name: bytes, level: int, base: int) -> Iterator[Touch]:
        """Touches below the page that begins at byte `base` of the disk."""
        span = record.chunk_bytes * PAGE_NAMES ** (level + 1)
        size = min(span, record.size_bytes - base)
        if name == ZERO_NAME or size <= 0:
            return
        # The last page of a disk that does not end with it says less than the same one of another.
        key = (name, level, record.version, size)
        if key not in self._known:
            part = replace(record, size_bytes=size)
            self._known[key] = tuple(self._look(part, name, level))
        for touch in self._known[key]:
            assert touch.extent is not None
            yield touch._replace(extent=Extent(base + touch.extent.offset, touch.extent.length))

    def _look(self, record: DiskRecord, name: bytes, level: int) -> Iterator[Touch]:
        """Touches below a page, as if the disk were what is below it."""
        if self._bad(name):
            yield Touch(name, Extent(0, record.size_bytes), chunk=False)
        try:
            page = self._get(name)
            if level == 0:
                pieces = leaf_pieces(page, record.version, 0, record.size_bytes, record.chunk_bytes)
                for piece in pieces:
                    if piece.name != ZERO_NAME and self._bad(piece.name):
                        yield Touch(piece.name, Extent(piece.start, piece.length), chunk=True)
                return
            names = _names(page, level, record.version)
        except RepositoryDamagedError:
            return
        span = record.chunk_bytes * PAGE_NAMES**level
        for slot in range(PAGE_NAMES):
            child = names[slot * NAME_BYTES : (slot + 1) * NAME_BYTES]
            yield from self._page(record, child, level - 1, slot * span)


def lost_extents(
    image: DiskImage, get: Callable[[bytes], bytes], lost: Set[bytes]
) -> list[Extent] | None:
    """Ranges of an image whose chunks are lost; None if a part of its table is, so that nobody knows."""
    found = []
    for touch in DamageSearch(get, lost.__contains__).disk(image):
        if touch.extent is None:
            continue  # of the map of where the disk lay, which is made anew each time
        if not touch.chunk:
            return None
        found.append(touch.extent)
    return found


def relies_on(image: DiskImage, get: Callable[[bytes], bytes], lost: Set[bytes]) -> bool:
    """Whether some of what an image needs is lost."""
    return any(True for _ in DamageSearch(get, lost.__contains__).disk(image))


def _names(page: bytes, level: int, version: int) -> bytes:
    """The names in a page, joined; RepositoryDamagedError if it is none."""
    if level == 0:
        return leaf_names(page, version)
    if len(page) != PAGE_BYTES:
        raise RepositoryDamagedError("A page of a disk's table is none; verify the repository.")
    return page
