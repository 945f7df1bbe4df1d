"""The index: which pack holds a chunk. Immutable segments in the store, sorted tables in memory."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import NAME_BYTES
from atoll.repository.keys import MasterKey
from atoll.repository.packs import PackEntry, PackListing
from atoll.repository.sealing import new_name, seal, unseal
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

INDEX = "index/"
KIND = "IDX"
_COUNTS = struct.Struct("<II")
_PACK = struct.Struct("<16sQ")
_ROW = np.dtype(
    [
        ("name", "u1", NAME_BYTES),
        ("pack", "<u4"),
        ("number", "<u4"),
        ("offset", "<u4"),
        ("sealed", "<u4"),
        ("plain", "<u4"),
        ("codec", "<u4"),
    ]
)
Rows = NDArray[np.void]
Positions = NDArray[np.int64]
"""Places of rows in an index; they hold until it takes in another segment."""


class Location(NamedTuple):
    """Where a chunk lies: the pack's name (hex) and the chunk's entry there."""

    pack: str
    entry: PackEntry


class IndexedPack(NamedTuple):
    """A pack as a segment names it."""

    name: str
    size_bytes: int


class _Table(NamedTuple):
    """Rows sorted by name; `prefixes` are the names' first eight bytes as numbers."""

    prefixes: NDArray[np.uint64]
    rows: Rows


def write_segment(store: ObjectStore, master: MasterKey, packs: Sequence[PackListing]) -> str:
    """Write one segment that lists these packs, which must be durable by now."""
    name = new_name()
    store.put(INDEX + name, [seal(master, KIND, name, _encode(packs))])
    return name


def read_segment(store: ObjectStore, master: MasterKey, name: str) -> list[PackListing]:
    """The packs of a segment with their chunks, in the packs' order."""
    packs, rows = _decode(unseal(master, KIND, name, store.get(INDEX + name)), name)
    held: list[list[PackEntry]] = [[] for _ in packs]
    for row in rows[np.lexsort((rows["number"], rows["pack"]))]:
        held[int(row["pack"])].append(_entry(row))
    return [
        PackListing(pack.name, pack.size_bytes, tuple(entries))
        for pack, entries in zip(packs, held, strict=True)
    ]


def listed_packs(store: ObjectStore, master: MasterKey, name: str) -> frozenset[str]:
    """Names of the packs of a segment."""
    packs, _ = _decode(unseal(master, KIND, name, store.get(INDEX + name)), name)
    return frozenset(pack.name for pack in packs)


class Index:
    """Every segment of the store, merged. Lookups need no lock; changes are the caller's to order.

    Tables merge when the newer is no smaller than half the older, so there are
    few of them and each row is moved a logarithmic number of times. A chunk
    costs 64 bytes of memory.
    """

    def __init__(self) -> None:
        self._segments: frozenset[str] = frozenset()
        self._packs: list[IndexedPack] = []
        self._tables: tuple[_Table, ...] = ()
        self.damaged: dict[str, str] = {}
        """Segments that could not be read and why; their packs count as not indexed."""

    @property
    def packs(self) -> Sequence[IndexedPack]:
        """Packs that some segment lists; one that two segments list is there twice."""
        return self._packs

    @property
    def segments(self) -> frozenset[str]:
        """Names of the segments taken in."""
        return self._segments

    def __len__(self) -> int:
        return sum(len(table.rows) for table in self._tables)

    def refresh(self, store: ObjectStore, master: MasterKey) -> "Index":
        """An index of the store as it is now: this one with more in it, or a new one.

        A sweep replaces segments, and what it took away must not be found again.
        """
        while True:
            present = {info.name.removeprefix(INDEX) for info in own_objects(store, INDEX)}
            index = self if self._segments <= present else Index()
            index.damaged = {name: why for name, why in index.damaged.items() if name in present}
            try:
                for name in sorted(present - index._segments - index.damaged.keys()):
                    index._take(store, master, name)
            except MissingObjectError:
                continue  # replaced by a sweep since it was listed
            return index

    def _take(self, store: ObjectStore, master: MasterKey, name: str) -> None:
        try:
            packs, rows = _decode(unseal(master, KIND, name, store.get(INDEX + name)), name)
        except MissingObjectError:
            raise
        except RepositoryDamagedError as error:
            self.damaged[name] = str(error)
            return
        self._append(packs, rows)
        self._segments |= {name}

    def add(self, segment: str, packs: Sequence[PackListing]) -> None:
        """Take in a segment this process has just written; twice is harmless."""
        if segment in self._segments:
            return
        self._append(*_decode(_encode(packs), segment))
        self._segments |= {segment}

    def _append(self, packs: Sequence[IndexedPack], rows: Rows) -> None:
        rows = rows.copy()
        rows["pack"] += len(self._packs)
        self._packs.extend(packs)
        tables = [*self._tables, _table(rows)]
        while len(tables) > 1 and len(tables[-2].rows) < 2 * len(tables[-1].rows):
            newer, older = tables.pop(), tables.pop()
            tables.append(_table(np.concatenate([older.rows, newer.rows])))
        self._tables = tuple(tables)

    def __contains__(self, name: bytes) -> bool:
        return next(self.locations(name), None) is not None

    def locations(self, name: bytes) -> Iterator[Location]:
        """Every place the chunk lies; concurrent writers may have stored it twice."""
        prefix = np.uint64(int.from_bytes(name[:8], "big"))
        for table in self._tables:
            at = int(np.searchsorted(table.prefixes, prefix))
            while at < len(table.prefixes) and table.prefixes[at] == prefix:
                row = table.rows[at]
                if row["name"].tobytes() == name:
                    yield Location(self._packs[int(row["pack"])].name, _entry(row))
                at += 1

    def find(self, names: NDArray[np.uint8], avoid: NDArray[np.bool_] | None = None) -> Positions:
        """Where many chunks stand in this index, -1 for those it lacks.

        `names` has a row of 32 bytes for each. Of a chunk in several packs it is always the same
        place, one in a pack that `avoid` (by pack number) does not have if there is such a place.
        """
        found = np.full(len(names), -1, np.int64)
        second = np.full(len(names), -1, np.int64)
        wanted = _prefixes(names)
        base = 0
        for table in self._tables:
            at = np.searchsorted(table.prefixes, wanted)
            open_ = np.flatnonzero(found < 0)
            while len(open_):
                place = at[open_]
                inside = place < len(table.prefixes)
                open_, place = open_[inside], place[inside]
                same = table.prefixes[place] == wanted[open_]
                open_, place = open_[same], place[same]
                rows = table.rows[place]
                hit = (rows["name"] == names[open_]).all(axis=1)
                good = hit if avoid is None else hit & ~avoid[rows["pack"]]
                found[open_[good]] = base + place[good]
                bad = hit & ~good & (second[open_] < 0)
                second[open_[bad]] = base + place[bad]
                open_ = open_[~good]
                at[open_] += 1
            base += len(table.rows)
        return np.where(found < 0, second, found)

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """All rows in the order of their positions, with the position of each block's first."""
        base = 0
        for table in self._tables:
            yield base, table.rows
            base += len(table.rows)

    def by_pack(self) -> dict[str, Rows]:
        """Each pack's rows, for whoever looks at whole packs; `entries` makes them readable."""
        held: dict[str, list[Rows]] = {}
        for table in self._tables:
            rows = table.rows[np.argsort(table.rows["pack"], kind="stable")]
            for part in np.split(rows, np.flatnonzero(np.diff(rows["pack"])) + 1):
                if len(part):
                    held.setdefault(self._packs[int(part[0]["pack"])].name, []).append(part)
        return {pack: np.concatenate(parts) for pack, parts in held.items()}


def entries(rows: Rows) -> tuple[PackEntry, ...]:
    """Rows of one pack as entries in the pack's order, each once."""
    found = {int(row["number"]): _entry(row) for row in rows}
    return tuple(found[number] for number in sorted(found))


def _table(rows: Rows) -> _Table:
    prefixes = _prefixes(rows["name"])
    order = np.argsort(prefixes, kind="stable")
    return _Table(prefixes[order], rows[order])


def _prefixes(names: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(names[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def _entry(row: np.void) -> PackEntry:
    return PackEntry(
        row["name"].tobytes(),
        int(row["number"]),
        int(row["offset"]),
        int(row["sealed"]),
        int(row["plain"]),
        int(row["codec"]),
    )


def _encode(packs: Sequence[PackListing]) -> bytes:
    head = b"".join(_PACK.pack(bytes.fromhex(pack.name), pack.size_bytes) for pack in packs)
    rows = b"".join(_rows(packs))
    return _COUNTS.pack(len(packs), len(rows) // _ROW.itemsize) + head + rows


def _rows(packs: Sequence[PackListing]) -> Iterable[bytes]:
    layout = struct.Struct("<32sIIIIII")
    for position, pack in enumerate(packs):
        for name, number, offset, sealed, plain, codec in pack.entries:
            yield layout.pack(name, position, number, offset, sealed, plain, codec)


def _decode(plain: bytes, name: str) -> tuple[list[IndexedPack], Rows]:
    if len(plain) >= _COUNTS.size:
        pack_count, row_count = _COUNTS.unpack_from(plain)
        rows_at = _COUNTS.size + pack_count * _PACK.size
        if len(plain) == rows_at + row_count * _ROW.itemsize:
            packs = [
                IndexedPack(pack.hex(), size)
                for pack, size in _PACK.iter_unpack(plain[_COUNTS.size : rows_at])
            ]
            rows = np.frombuffer(plain, _ROW, row_count, rows_at)
            if not row_count or int(rows["pack"].max()) < pack_count:
                return packs, rows
    raise RepositoryDamagedError(
        f"Index segment {name} does not have the size it says; rebuild the index."
    )
