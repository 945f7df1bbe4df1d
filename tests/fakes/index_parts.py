"""A store in memory, and packs to list in its index."""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from atoll.model.errors import StorageConflictError
from atoll.repository.index import Index
from atoll.repository.keys import MasterKey
from atoll.repository.packs import PackEntry, PackListing
from atoll.repository.store import Buffer, MissingObjectError, ObjectInfo

MASTER = MasterKey(bytes(32))


class MemoryStore:
    """The part of an ObjectStore that an index uses. `hook` runs before each object that is listed."""

    location = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.hook: Callable[[str], None] | None = None

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        if name in self.objects:
            raise StorageConflictError(name)
        self.objects[name] = b"".join(bytes(part) for part in parts)

    def get(self, name: str) -> bytes:
        self.reads.append(name)
        try:
            return self.objects[name]
        except KeyError:
            raise MissingObjectError(name) from None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Looks at one object after the other, as readdir(3) does, in the order of their names."""
        last = ""
        while True:
            if self.hook is not None:
                self.hook(last)
            after = [name for name in self.objects if name > last and name.startswith(prefix)]
            if not after:
                return
            last = min(after)
            yield ObjectInfo(last, len(self.objects[last]))

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)


def named(number: int, *, crowded: bool = False) -> bytes:
    """A chunk's name; crowded ones share their first eight bytes with others."""
    head = bytes([255, 255, 255, 255, 255, 255, 255, number % 2 * 255]) if crowded else b""
    return (head + random.Random(number).randbytes(32))[:32]


def listing(pack: int, names: Sequence[bytes]) -> PackListing:
    held = tuple(PackEntry(name, at, 24 + at * 100, 100, 90, 1) for at, name in enumerate(names))
    return PackListing(f"{pack:032x}", 100 * len(names), held)


def array(names: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, 32)


def check_index(
    index: Index, packs: dict[int, Sequence[bytes]], absent: Sequence[bytes] = ()
) -> None:
    """The index must say of these packs, and of nothing else, all that there is to say."""
    places: dict[bytes, set[tuple[str, int]]] = {name: set() for name in absent}
    for pack, names in packs.items():
        for number, name in enumerate(names):
            places.setdefault(name, set()).add((f"{pack:032x}", number))
    for name, wanted in places.items():
        found = [(place.pack, place.entry.number) for place in index.locations(name)]
        assert len(found) == len(set(found))
        assert set(found) == wanted
        assert all(place.entry.name == name for place in index.locations(name))
        assert (name in index) == bool(wanted)
    assert {pack.name for pack in index.packs} == {f"{pack:032x}" for pack in packs}
    assert len(index.packs) == len(packs)
    assert list(index.packs) == [index.packs[number] for number in range(len(packs))]
    assert index.packs[1:] == list(index.packs)[1:]
    assert index.chunks == sum(map(len, packs.values()))
    _check_positions(index, places)


def _check_positions(index: Index, places: dict[bytes, set[tuple[str, int]]]) -> None:
    at = 0
    blocks = []
    for base, rows in index.blocks():
        assert base == at
        at += len(rows)
        blocks.append(rows)
    assert at == len(index)
    if not places:
        return
    names = list(places)
    found = index.find(array(names))
    assert [bool(wanted) for wanted in places.values()] == (found >= 0).tolist()
    assert (index.find(array(names), np.zeros(len(index.packs), np.bool_)) == found).all()
    if not blocks:
        return
    rows = np.concatenate(blocks)
    for name, position in zip(names, found.tolist(), strict=True):
        if position >= 0:
            row = rows[position]
            assert row["name"].tobytes() == name
            place = (index.packs[int(row["pack"])].name, int(row["number"]))
            assert place in places[name]
    told = sum(index.packs[int(row["pack"])].size_bytes > 0 for row in rows if row["sealed"])
    assert told == index.chunks
    for avoided in range(min(len(index.packs), 3)):
        avoid = np.zeros(len(index.packs), np.bool_)
        avoid[avoided] = True
        pack = index.packs[avoided].name
        for name, position in zip(names, index.find(array(names), avoid).tolist(), strict=True):
            assert (position >= 0) == bool(places[name])
            if position >= 0 and any(other != pack for other, _ in places[name]):
                assert int(rows[position]["pack"]) != avoided
