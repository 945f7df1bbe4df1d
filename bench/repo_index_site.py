"""A repository of the size of a large site, whose data chunks exist only in the index.

Chunk tables, disk records and restore points are real objects in real packs, so that a prune can be
planned. The packs of guests' data have sizes and nothing in them, and the segments that list them are
made when they are asked for, from the chunks' numbers.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from atoll.model.consistency import Consistency, ConsistencyProof
from atoll.model.points import DiskImage, RestorePoint
from atoll.repository.chunks import NAME_BYTES, RAW, ChunkCodec, PackedChunk
from atoll.repository.images import PAGE_NAMES, DiskRecord, levels
from atoll.repository.keys import MasterKey
from atoll.repository.local import LocalStore
from atoll.repository.packs import (
    PACK_BYTES,
    PACKS,
    OpenPack,
    PackKeys,
    PackListing,
    object_name,
)
from atoll.repository.pages import PAGE_BYTES
from atoll.repository.points import PointLog
from atoll.repository.sealing import seal
from atoll.repository.segments import INDEX, KIND, ROW, write_segment
from atoll.repository.store import ObjectInfo

CHUNK_BYTES = 256 << 10
STORED_BYTES = 128 << 10
"""A chunk of a guest after compression, about."""
CHUNKS_PER_PACK = PACK_BYTES // STORED_BYTES
PACKS_PER_SEGMENT = 64
CHUNKS_PER_SEGMENT = CHUNKS_PER_PACK * PACKS_PER_SEGMENT
CHUNKS_PER_DISK = 80_000
POINTS_PER_DISK = 5
CHANGED_PAGES = 15
MASTER = MasterKey(bytes(range(32)))
_READY = "ready.json"


@dataclass(frozen=True, slots=True)
class Shape:
    """How much a site has; pages are those of chunk tables."""

    chunks: int
    disks: int
    points: int
    pages: int
    logical_bytes: int


class SiteStore(LocalStore):
    """A directory with the real objects, and the others as if they were there."""

    shape: Shape

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The real objects, then the others."""
        yield from super().list(prefix)
        if prefix == INDEX:
            for number in range(-(-self.shape.chunks // CHUNKS_PER_SEGMENT)):
                yield ObjectInfo(f"{INDEX}{_id('segment', number)}", 1 << 20)
        if prefix == PACKS:
            for number in range(-(-self.shape.chunks // CHUNKS_PER_PACK)):
                yield ObjectInfo(object_name(_id("pack", number)), PACK_BYTES)

    def get(self, name: str) -> bytes:
        """A real object, or a segment made now."""
        folder, _, last = name.rpartition("/")
        if folder == INDEX.rstrip("/") and last.startswith(_MADE):
            return _segment(last, int(last[len(_MADE) :], 16), self.shape.chunks)
        return super().get(name)


_MADE = "5e9"
"""Begins the names of segments that are made; the rest is their number."""


def _id(kind: str, number: int) -> str:
    if kind == "segment":
        return f"{_MADE}{number:029x}"
    return hashlib.blake2b(f"{kind} {number}".encode(), digest_size=16).hexdigest()


def chunk_names(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Names of chunks by their numbers, 32 bytes each: as evenly spread as keyed hashes are."""
    words = np.asarray(numbers, np.uint64)[:, None] * np.uint64(4) + np.arange(4, dtype=np.uint64)
    x = np.multiply(words, np.uint64(0x9E3779B97F4A7C15), dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed.view(np.uint8)


def _segment(name: str, number: int, chunks: int) -> bytes:
    first = number * CHUNKS_PER_SEGMENT
    rows = np.zeros(min(CHUNKS_PER_SEGMENT, chunks - first), ROW)
    at = np.arange(len(rows))
    rows["name"] = chunk_names(first + at)
    rows["pack"], rows["number"] = at // CHUNKS_PER_PACK, at % CHUNKS_PER_PACK
    rows["offset"] = rows["number"] * STORED_BYTES
    rows["sealed"], rows["plain"], rows["codec"] = STORED_BYTES, CHUNK_BYTES, 1
    count = -(-len(rows) // CHUNKS_PER_PACK)
    packs = b"".join(
        bytes.fromhex(_id("pack", number * PACKS_PER_SEGMENT + each))
        + PACK_BYTES.to_bytes(8, "little")
        for each in range(count)
    )
    counts = count.to_bytes(4, "little") + len(rows).to_bytes(4, "little")
    return seal(MASTER, KIND, name, counts + packs + rows.tobytes())


def open_site(root: Path, chunks: int) -> SiteStore:
    """The site with this many chunks of guests, made in `root` unless it is there."""
    store = SiteStore.create(root)
    ready = root / _READY
    if not ready.exists():
        ready.write_text(json.dumps(asdict(_Maker(store, chunks).make())))
    store.shape = Shape(**json.loads(ready.read_text()))
    return store


class _Maker:
    """Writes what is real of a site."""

    def __init__(self, store: LocalStore, chunks: int) -> None:
        self._store = store
        self._chunks = chunks
        self._codec = ChunkCodec(MASTER)
        self._keys = PackKeys(MASTER)
        self._pack = OpenPack(self._keys)
        self._listings: list[PackListing] = []
        self._random = np.random.default_rng(7)
        self._pages = 0

    def make(self) -> Shape:
        """Every chunk is in one disk; later points of a disk have other chunks in a few places."""
        disks = -(-self._chunks // CHUNKS_PER_DISK)
        points = []
        for disk in range(disks):
            first = disk * CHUNKS_PER_DISK
            count = min(CHUNKS_PER_DISK, self._chunks - first)
            names = np.zeros((-(-count // PAGE_NAMES) * PAGE_NAMES, NAME_BYTES), np.uint8)
            names[:count] = chunk_names(np.arange(first, first + count))
            pages = names.reshape(-1, PAGE_NAMES, NAME_BYTES)
            leaves = [
                self._leaf(page, min(PAGE_NAMES, count - at * PAGE_NAMES))
                for at, page in enumerate(pages)
            ]
            for number in range(POINTS_PER_DISK):
                if number:
                    self._change(pages, leaves, count)
                points.append(_point(disk, number, self._root(leaves, count), count * CHUNK_BYTES))
        self._finish_pack()
        write_segment(self._store, MASTER, self._listings)
        PointLog(self._store, MASTER).append(points)
        logical = self._chunks * CHUNK_BYTES * POINTS_PER_DISK
        return Shape(self._chunks, disks, len(points), self._pages, logical)

    def _change(self, pages: NDArray[np.uint8], leaves: list[bytes], count: int) -> None:
        for leaf in self._random.integers(0, len(leaves), CHANGED_PAGES).tolist():
            inside = min(PAGE_NAMES, count - leaf * PAGE_NAMES)
            slot = int(self._random.integers(0, inside))
            pages[leaf, slot] = chunk_names(self._random.integers(0, self._chunks, 1))[0]
            leaves[leaf] = self._leaf(pages[leaf], inside)

    def _leaf(self, names: NDArray[np.uint8], count: int) -> bytes:
        """Whole chunks of the usual length."""
        numbers = np.zeros(2 * count, "<u4")
        numbers[:count] = CHUNK_BYTES
        return self._put(numbers.tobytes() + names[:count].tobytes())

    def _root(self, leaves: Sequence[bytes], count: int) -> bytes:
        names = list(leaves)
        for _ in range(levels(count) - 1):
            whole = b"".join(names)
            names = [
                self._put(whole[at : at + PAGE_BYTES].ljust(PAGE_BYTES, b"\0"))
                for at in range(0, len(whole), PAGE_BYTES)
            ]
        return self._put(DiskRecord(count * CHUNK_BYTES, CHUNK_BYTES, names[0]).to_bytes())

    def _put(self, data: bytes) -> bytes:
        name = self._codec.name(data)
        self._pages += 1
        self._pack.add(name, PackedChunk(RAW, len(data), data))
        if self._pack.size_bytes >= PACK_BYTES:
            self._finish_pack()
        return name

    def _finish_pack(self) -> None:
        listing, parts = self._pack.finish()
        self._store.put(object_name(listing.name), parts)
        self._listings.append(listing)
        self._pack = OpenPack(self._keys)


def _point(disk: int, number: int, root: bytes, size_bytes: int) -> RestorePoint:
    vm, at = f"vm{disk:04}", 1_700_000_000.0 + 86_400 * number
    identity = f"{number:02}-{disk:04}"
    image = DiskImage(
        key=2000,
        label="Hard disk 1",
        path=f"[ds1] {vm}/{vm}.vmdk",
        size_bytes=size_bytes,
        root=root.hex(),
        extent_map="",
        luns=("lun1",),
        read_bytes=size_bytes,
        changed_bytes=size_bytes,
        stored_bytes=0,
    )
    proof = ConsistencyProof(
        vm, Consistency.CRASH, (), None, "gold", identity, at, at, "esx1", "esx1"
    )
    uuid = blake3(vm.encode()).hexdigest(length=16)
    return RestorePoint(
        identity, identity, vm, uuid, at, "gold", identity, number > 0, proof, (image,), "", "other"
    )
