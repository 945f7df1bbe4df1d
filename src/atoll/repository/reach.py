"""What restore points reach: the chunks, pages and blobs they need."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent
from atoll.model.points import DiskImage, RestorePoint
from atoll.repository.chunks import NAME_BYTES, ZERO_NAME
from atoll.repository.images import BlobRecord, DiskRecord, name_of
from atoll.repository.pages import PAGE_BYTES, PAGE_NAMES, levels


class Touch(NamedTuple):
    """A bad name and what is below it: `chunks` first and count in the disk, None for a blob."""

    name: bytes
    chunks: tuple[int, int] | None


def reached(points: Iterable[RestorePoint], get: Callable[[bytes], bytes]) -> set[bytes]:
    """Names of everything the points need; a page that several share is read once.

    Raises RepositoryDamagedError if a page or record cannot be read, because
    then what lies below is not known.
    """
    found: set[bytes] = set()
    for point in points:
        for disk in point.disks:
            if disk.extent_map:
                found.update(_blob_names(name_of(disk.extent_map), get))
            root = name_of(disk.root)
            if root not in found:
                found.add(root)
                record = DiskRecord.from_bytes(get(root))
                _reach_page(record.top, levels(record.chunks) - 1, get, found)
    return found


def _reach_page(name: bytes, level: int, get: Callable[[bytes], bytes], found: set[bytes]) -> None:
    if name == ZERO_NAME or name in found:
        return
    found.add(name)
    below = {child for child in _names(_page(name, get)) if child != ZERO_NAME}
    if level == 0:
        found.update(below)
        return
    for child in below:
        _reach_page(child, level - 1, get, found)


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


def spoiled(touch: Touch, chunk_bytes: int, size_bytes: int) -> Extent | None:
    """The bytes of a disk below a touch; None if they lie past its end or it is a blob."""
    if touch.chunks is None:
        return None
    start = min(touch.chunks[0] * chunk_bytes, size_bytes)
    end = min((touch.chunks[0] + touch.chunks[1]) * chunk_bytes, size_bytes)
    return Extent(start, end - start) if end > start else None


def _blob_names(name: bytes, get: Callable[[bytes], bytes]) -> Iterator[bytes]:
    yield name
    yield from BlobRecord.from_bytes(get(name)).pieces


def _page(name: bytes, get: Callable[[bytes], bytes]) -> bytes:
    page = get(name)
    if len(page) != PAGE_BYTES:
        raise RepositoryDamagedError(f"Page {name.hex()[:16]} is no page; verify the repository.")
    return page


def _names(page: bytes) -> Iterator[bytes]:
    for at in range(0, PAGE_BYTES, NAME_BYTES):
        yield page[at : at + NAME_BYTES]
