"""What restore points reach: the chunks, pages and blobs they need."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.model.points import DiskImage
from atoll.repository.chunks import NAME_BYTES, ZERO_NAME
from atoll.repository.images import BlobRecord, DiskRecord, name_of
from atoll.repository.index import Index
from atoll.repository.pages import PAGE_BYTES, PAGE_NAMES, levels

_READERS = 8
_BATCH = 64  # pages fetched before their names are looked up
_CHUNK, _DISK, _BLOB, _PAGE = 1, 2, 4, 8  # a page of level n is met as _PAGE << n


class Touch(NamedTuple):
    """A bad name and what is below it: `chunks` first and count in the disk, None for a blob."""

    name: bytes
    chunks: tuple[int, int] | None


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
                    self._pages(pool, top[top.any(axis=1)], levels(record.chunks) - 1)

    def _pages(self, pool: Executor, names: NDArray[np.uint8], level: int) -> None:
        """Follow pages of a level that have not been followed before."""
        fresh = self._meet(names, _PAGE << level)
        for first in range(0, len(fresh), _BATCH):
            batch = [name.tobytes() for name in fresh[first : first + _BATCH]]
            for page in pool.map(self._page, batch):
                below = page[page.any(axis=1)]
                if level:
                    self._pages(pool, below, level - 1)
                else:
                    self._meet(below, _CHUNK)
            if self._progress is not None:
                self._progress(len(batch))

    def _page(self, name: bytes) -> NDArray[np.uint8]:
        return np.frombuffer(_page(name, self._get), np.uint8).reshape(PAGE_NAMES, NAME_BYTES)

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
        self._known: dict[tuple[bytes, int], tuple[Touch, ...]] = {}

    def disk(self, disk: DiskImage) -> Iterator[Touch]:
        """Every bad name below a disk, with the chunks of the disk it touches."""
        if disk.extent_map:
            yield from self._blob(name_of(disk.extent_map))
        root = name_of(disk.root)
        if self._bad(root):
            yield Touch(root, (0, 1 << 62))
        try:
            record = DiskRecord.from_bytes(self._get(root))
        except RepositoryDamagedError:
            return  # a bad name, and all of the disk is below it
        yield from self._page(record.top, levels(record.chunks) - 1)

    def _blob(self, name: bytes) -> Iterator[Touch]:
        if self._bad(name):
            yield Touch(name, None)
        try:
            pieces = BlobRecord.from_bytes(self._get(name)).pieces
        except RepositoryDamagedError:
            return
        yield from (Touch(piece, None) for piece in pieces if self._bad(piece))

    def _page(self, name: bytes, level: int) -> tuple[Touch, ...]:
        """Touches relative to the page's first chunk."""
        if name == ZERO_NAME:
            return ()
        if (name, level) not in self._known:
            self._known[name, level] = tuple(self._look(name, level))
        return self._known[name, level]

    def _look(self, name: bytes, level: int) -> Iterator[Touch]:
        if self._bad(name):
            yield Touch(name, (0, PAGE_NAMES ** (level + 1)))
        try:
            page = _page(name, self._get)
        except RepositoryDamagedError:
            return
        for slot, child in enumerate(_names(page)):
            if child == ZERO_NAME:
                continue
            if level == 0:
                if self._bad(child):
                    yield Touch(child, (slot, 1))
                continue
            base = slot * PAGE_NAMES**level
            for touch in self._page(child, level - 1):
                assert touch.chunks is not None
                yield Touch(touch.name, (base + touch.chunks[0], touch.chunks[1]))


def lost_extents(
    image: DiskImage, get: Callable[[bytes], bytes], lost: Set[bytes], chunk_bytes: int
) -> list[Extent] | None:
    """Ranges of an image whose chunks are lost; None if a part of its table is, so that nobody knows."""
    found = []
    for touch in DamageSearch(get, lost.__contains__).disk(image):
        if touch.chunks is None:
            continue  # of the map of where the disk lay, which is made anew each time
        if touch.chunks[1] > 1:
            return None
        extent = spoiled(touch, chunk_bytes, image.size_bytes)
        if extent is not None:
            found.append(extent)
    return found


def spoiled(touch: Touch, chunk_bytes: int, size_bytes: int) -> Extent | None:
    """The bytes of a disk below a touch; None if they lie past its end or it is a blob."""
    if touch.chunks is None:
        return None
    start = min(touch.chunks[0] * chunk_bytes, size_bytes)
    end = min((touch.chunks[0] + touch.chunks[1]) * chunk_bytes, size_bytes)
    return Extent(start, end - start) if end > start else None


def _page(name: bytes, get: Callable[[bytes], bytes]) -> bytes:
    page = get(name)
    if len(page) != PAGE_BYTES:
        raise RepositoryDamagedError(f"Page {name.hex()[:16]} is no page; verify the repository.")
    return page


def _names(page: bytes) -> Iterator[bytes]:
    for at in range(0, PAGE_BYTES, NAME_BYTES):
        yield page[at : at + NAME_BYTES]
