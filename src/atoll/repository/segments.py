"""Index segments: immutable objects of the store that list packs and the chunks in them.

A segment that lists a pack lists all of its chunks, and a pack never changes, so two segments that
list the same pack say the same of it.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import NAME_BYTES
from atoll.repository.keys import MasterKey
from atoll.repository.packs import PackEntry, PackListing
from atoll.repository.sealing import new_name, seal, unseal
from atoll.repository.store import ObjectStore

INDEX = "index/"
KIND = "IDX"
_COUNTS = struct.Struct("<II")
_PACK = np.dtype([("name", "V16"), ("size", "<u8")])
ROW = np.dtype(
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
"""A chunk in a pack; `pack` counts in a list of packs that goes with the rows."""
_LAYOUT = struct.Struct("<32sIIIIII")
Rows = NDArray[np.void]


class IndexedPack(NamedTuple):
    """A pack as a segment names it."""

    name: str
    size_bytes: int


class Segment(NamedTuple):
    """What a segment lists."""

    packs: tuple[IndexedPack, ...]
    rows: Rows


def write_segment(store: ObjectStore, master: MasterKey, packs: Sequence[PackListing]) -> str:
    """Write one segment that lists these packs, which must be durable by now."""
    name = new_name()
    store.put(INDEX + name, [seal(master, KIND, name, _encode(packs))])
    return name


def load_segment(store: ObjectStore, master: MasterKey, name: str) -> Segment:
    """A segment as it is; MissingObjectError, or RepositoryDamagedError if one bit differs."""
    return _decode(unseal(master, KIND, name, store.get(INDEX + name)), name)


def segment_of(packs: Sequence[PackListing]) -> Segment:
    """The segment that lists these packs, as if it had been written and read."""
    return _decode(_encode(packs), "in memory")


def read_segment(store: ObjectStore, master: MasterKey, name: str) -> list[PackListing]:
    """The packs of a segment with their chunks, in the packs' order."""
    packs, rows = load_segment(store, master, name)
    held: list[list[PackEntry]] = [[] for _ in packs]
    for row in rows[np.lexsort((rows["number"], rows["pack"]))]:
        held[int(row["pack"])].append(entry_of(row.tobytes()))
    return [
        PackListing(pack.name, pack.size_bytes, tuple(listed))
        for pack, listed in zip(packs, held, strict=True)
    ]


def listed_packs(store: ObjectStore, master: MasterKey, name: str) -> frozenset[str]:
    """Names of the packs of a segment."""
    return frozenset(pack.name for pack in load_segment(store, master, name).packs)


def entries(rows: Rows) -> tuple[PackEntry, ...]:
    """Rows of one pack as entries in the pack's order, each once."""
    found = {entry.number: entry for entry in map(entry_of, map(np.void.tobytes, rows))}
    return tuple(found[number] for number in sorted(found))


def entry_of(row: bytes) -> PackEntry:
    """A row's 56 bytes as an entry."""
    name, _, number, offset, sealed, plain, codec = _LAYOUT.unpack(row)
    return PackEntry(name, number, offset, sealed, plain, codec)


def _encode(packs: Sequence[PackListing]) -> bytes:
    head = b"".join(
        bytes.fromhex(pack.name) + pack.size_bytes.to_bytes(8, "little") for pack in packs
    )
    rows = b"".join(_rows(packs))
    return _COUNTS.pack(len(packs), len(rows) // ROW.itemsize) + head + rows


def _rows(packs: Sequence[PackListing]) -> Iterable[bytes]:
    for position, pack in enumerate(packs):
        for name, number, offset, sealed, plain, codec in pack.entries:
            yield _LAYOUT.pack(name, position, number, offset, sealed, plain, codec)


def _decode(plain: bytes, name: str) -> Segment:
    if len(plain) >= _COUNTS.size:
        pack_count, row_count = _COUNTS.unpack_from(plain)
        rows_at = _COUNTS.size + pack_count * _PACK.itemsize
        if len(plain) == rows_at + row_count * ROW.itemsize:
            packs = tuple(
                IndexedPack(pack["name"].tobytes().hex(), int(pack["size"]))
                for pack in np.frombuffer(plain, _PACK, pack_count, _COUNTS.size)
            )
            rows = np.frombuffer(plain, ROW, row_count, rows_at)
            if not row_count or int(rows["pack"].max()) < pack_count:
                return Segment(packs, rows)
    raise RepositoryDamagedError(
        f"Index segment {name} does not have the size it says; rebuild the index."
    )
