"""Chunks by name, wherever in the store they lie."""

import threading
from collections.abc import Sequence

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import ChunkCodec
from atoll.repository.index import Index, IndexCache, IndexCacheDamagedError, Location
from atoll.repository.keys import MasterKey
from atoll.repository.packs import (
    PACKS,
    PackEntry,
    PackKeys,
    PackListing,
    object_name,
    read_listing,
)
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects


class ChunkSource:
    """Finds, reads, opens and verifies chunks. Thread-safe.

    A name that the index in memory lacks is looked for in segments written since,
    then in the footers of packs that no readable segment lists, so a lost or
    damaged segment costs time and nothing else. So does a damaged cache of the index.
    """

    def __init__(
        self,
        store: ObjectStore,
        master: MasterKey,
        codec: ChunkCodec,
        keys: PackKeys,
        cache: IndexCache | None = None,
    ) -> None:
        self._store = store
        self._master = master
        self._codec = codec
        self._keys = keys
        self._cache = cache
        self._index: Index | None = None
        self._from_footers: dict[bytes, list[Location]] = {}
        self._footers_read: set[str] = set()
        self._lock = threading.RLock()

    @property
    def index(self) -> Index:
        """The index as this process knows it."""
        with self._lock:
            return self._index if self._index is not None else self.refresh()

    def refresh(self) -> Index:
        """Take in what was written to the store since, and forget what a prune removed."""
        with self._lock:
            before = Index(self._cache) if self._index is None else self._index
            return self._become(before.refresh(self._store, self._master))

    def consolidate(self) -> Index:
        """The same, and save what is worth it to the cache; for whoever is about to write."""
        with self._lock:
            try:
                return self._become(self.refresh().consolidate(self._store, self._master))
            except IndexCacheDamagedError:
                return self._without_cache()

    def _become(self, index: Index) -> Index:
        if index is not self._index:
            self._from_footers.clear()
            self._footers_read.clear()
        self._index = index
        return index

    def _without_cache(self) -> Index:
        """Go on with what the store says, from now on."""
        with self._lock:
            self._cache = None
            return self._become(Index().refresh(self._store, self._master))

    def apart(self) -> Index:
        """An index of the store as it is now that nobody else adds to."""
        return Index(self._cache).refresh(self._store, self._master)

    def add(self, segment: str, packs: Sequence[PackListing]) -> None:
        """Take in a segment this process has just written."""
        with self._lock:
            self.index.add(segment, packs)

    def get(self, name: bytes) -> bytes:
        """A chunk's content; RepositoryDamagedError if no copy of it is whole."""
        return self._first_whole(name, self._locations(name))

    def get_many(self, names: Sequence[bytes]) -> list[bytes]:
        """The contents in order; neighbours in a pack are read with one request."""
        wanted = [self._locations(name) for name in names]
        contents: list[bytes] = []
        at = 0
        while at < len(wanted):
            end = at + 1
            while end < len(wanted) and _adjacent(wanted[end - 1][0], wanted[end][0]):
                end += 1
            contents.extend(self._run(names[at:end], wanted[at:end]))
            at = end
        return contents

    def _run(self, names: Sequence[bytes], run: Sequence[list[Location]]) -> list[bytes]:
        first, last = run[0][0], run[-1][0]
        start = first.entry.offset
        length = last.entry.offset + last.entry.sealed_bytes - start
        try:
            view = memoryview(self._store.get_range(object_name(first.pack), start, length))
            return [
                self._opened(
                    places[0],
                    view[places[0].entry.offset - start :][: places[0].entry.sealed_bytes],
                )
                for places in run
            ]
        except RepositoryDamagedError:
            # Only now is it worth asking whether another pack holds the chunk as well.
            return [
                self._first_whole(name, places) for name, places in zip(names, run, strict=True)
            ]

    def _first_whole(self, name: bytes, places: Sequence[Location]) -> bytes:
        tried: set[Location] = set()
        problem: RepositoryDamagedError | None = None
        while True:
            moved = False
            for place in places:
                tried.add(place)
                try:
                    entry = place.entry
                    sealed = self._store.get_range(
                        object_name(place.pack), entry.offset, entry.sealed_bytes
                    )
                    return self._opened(place, sealed)
                except RepositoryDamagedError as error:
                    problem = problem or error
                    moved = moved or isinstance(error, MissingObjectError)
            if not moved:
                break
            # A prune may have put the chunk elsewhere since the index was read.
            self.refresh()
            places = [place for place in self._locations(name) if place not in tried]
            if not places:
                break
        assert problem is not None
        raise problem

    def _opened(self, place: Location, sealed: bytes | memoryview) -> bytes:
        chunk = self._keys.open_chunk(place.pack, place.entry, sealed)
        return self._codec.unpack(place.entry.name, chunk)

    def __contains__(self, name: bytes) -> bool:
        """Whether the index as this process knows it has the chunk."""
        try:
            return name in self.index
        except IndexCacheDamagedError:
            return name in self._without_cache()

    def length(self, name: bytes) -> int:
        """The chunk's length in bytes; longer than any if this process does not know the chunk."""
        places = self.places(name)
        return places[0].entry.plain_bytes if places else 1 << 62

    def places(self, name: bytes) -> list[Location]:
        """Where the chunk lies as far as this process knows."""
        try:
            return list(self.index.locations(name))
        except IndexCacheDamagedError:
            return list(self._without_cache().locations(name))

    def _locations(self, name: bytes) -> list[Location]:
        found = self.places(name)
        if not found:
            with self._lock:
                found = self._from_footers.get(name) or list(self.refresh().locations(name))
                if not found:
                    self._read_footers()
                    found = self._from_footers.get(name, [])
        if not found:
            raise RepositoryDamagedError(
                f"Chunk {name.hex()[:16]} is in no pack of {self._store.location}; verify the "
                "repository to learn what that touches."
            )
        return found

    def _read_footers(self) -> None:
        indexed = {pack.name for pack in self.index.packs}
        for info in own_objects(self._store, PACKS):
            pack = info.name.rpartition("/")[2]
            if pack in indexed or pack in self._footers_read:
                continue
            self._footers_read.add(pack)
            try:
                listing = read_listing(self._store, self._keys, pack, info.size_bytes)
            except RepositoryDamagedError:
                continue  # verify names it; here it only means that the chunk is not found in it
            for entry in listing.entries:
                self._from_footers.setdefault(entry.name, []).append(Location(pack, entry))


def _adjacent(left: Location, right: Location) -> bool:
    before: PackEntry = left.entry
    return left.pack == right.pack and before.offset + before.sealed_bytes == right.entry.offset
