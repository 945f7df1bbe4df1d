"""A writing session: chunks go into packs, packs into the index, and only then may points appear."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from atoll.model.errors import AtollError
from atoll.repository.chunks import ChunkCodec, PackedChunk
from atoll.repository.fetch import ChunkSource
from atoll.repository.index import INDEX, write_segment
from atoll.repository.keys import MasterKey
from atoll.repository.lost import noted, read_lost
from atoll.repository.packs import (
    PACK_BYTES,
    PACKS,
    OpenPack,
    PackKeys,
    PackListing,
    object_name,
)
from atoll.repository.presence import Presence
from atoll.repository.store import Buffer, ObjectStore, own_objects

PACKS_PER_SEGMENT = 64
_PACKS_IN_FLIGHT = 2
_STORED = object()
"""In the place of a promise that was kept."""


class Stored(NamedTuple):
    """A chunk's name and the bytes it added to the repository, 0 if it was there."""

    name: bytes
    added_bytes: int


class Session:
    """One writer at work. Thread-safe; several disks may be copied at once.

    Others see it from start to end, so what it found in the index stays there. When anything fails
    the whole session is void and commits nothing, because one copy may rely on a chunk that another
    had promised to store.
    Memory: one pack being filled and two being written.
    """

    def __init__(
        self,
        store: ObjectStore,
        master: MasterKey,
        codec: ChunkCodec,
        keys: PackKeys,
        source: ChunkSource,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        self._store = store
        self._master = master
        self._codec = codec
        self._keys = keys
        self._source = source
        self._pack_bytes = pack_bytes
        self._lock = threading.Lock()
        self._promised: dict[bytes, object] = {}
        self._open: OpenPack | None = None
        self._finished: list[PackListing] = []
        self._writing: deque[Future[None]] = deque()
        self._failure: BaseException | None = None
        self._told = False
        self.made: set[str] = set()
        """Roots of disks and blobs (hex) that this session stored or found stored."""
        self.stored_bytes = 0
        """What it added to the repository until now."""
        self._presence = Presence(store, master, writes=True)
        try:
            # Before the index, which may still have what a note of that time says is lost.
            self._notes = noted(store)
            index = source.consolidate()  # after the marks: nothing found from here on is pruned
            whole = {
                info.name.rpartition("/")[2]: info.size_bytes for info in own_objects(store, PACKS)
            }
            self._gone = self._presence.marked | {
                pack.name for pack in index.packs if whole.get(pack.name) != pack.size_bytes
            }
            self.lost = read_lost(store, master, index)
            """Chunks that images need and no pack holds; an increment reads them again."""
        except BaseException:
            self._presence.end()
            raise
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="atoll-pack")

    def promise(self, name: bytes) -> bool:
        """Whether the caller must `store` this chunk, being the first to meet it."""
        mine = object()
        if self._promised.setdefault(name, mine) is not mine:
            return False
        if self._is_stored(name):
            # Left in the dictionary it would answer faster and cost memory without bound.
            self._promised.pop(name, None)
            return False
        return True

    def length(self, name: bytes) -> int:
        """The length of a stored chunk; longer than any if it is not known."""
        return self._source.length(name)

    def _is_stored(self, name: bytes) -> bool:
        """Whether the chunk is in a pack that is there and stays; else it is stored again."""
        if not self._gone:
            return name in self._source
        return any(place.pack not in self._gone for place in self._source.places(name))

    def store(self, name: bytes, chunk: PackedChunk) -> int:
        """Seal a promised chunk into the open pack; returns the bytes added."""
        with self._lock:
            self._check()
            if self._open is None:
                self._open = OpenPack(self._keys)
            entry = self._open.add(name, chunk)
            self._promised[name] = _STORED
            self.stored_bytes += entry.sealed_bytes
            if self._open.size_bytes >= self._pack_bytes:
                self._dispatch()
        return entry.sealed_bytes

    def put(self, data: Buffer) -> Stored:
        """Store a chunk unless it is there."""
        name = self._codec.name(data)
        if not self.promise(name):
            return Stored(name, 0)
        return Stored(name, self.store(name, self._codec.pack(data)))

    def owed(self) -> frozenset[bytes]:
        """Chunks that somebody promised and has not stored yet."""
        promises = list(self._promised.items())  # at once, while others promise more
        return frozenset(name for name, promise in promises if promise is not _STORED)

    def owes(self, names: Set[bytes]) -> bool:
        """Whether some of these chunks, which were promised, are not stored yet."""
        return any(self._promised.get(name, _STORED) is not _STORED for name in names)

    def keep(self, roots: Iterable[str]) -> None:
        """Have what these images (hex) need stay until the end. Then look whether they are there."""
        with self._lock:
            self._presence.keep(roots)

    def flush(self) -> None:
        """Make everything stored so far durable and indexed."""
        with self._lock:
            self._check()
            if self._open is not None and not self._open.empty:
                self._dispatch()
            self._writing.append(self._writer.submit(self._guarded, self._write_segment))
            while self._writing:
                self._writing.popleft().result()
            self._store.settle(INDEX)  # chunks found there may be of another who is not done
            self._check()

    def confirm(self) -> None:
        """RunConflictError if others took this process for dead: what it relied on may be gone."""
        self._presence.confirm()

    def found_lost(self) -> frozenset[bytes]:
        """Chunks that a repair has found to be lost since this began; it may rely on some."""
        notes = noted(self._store)
        if notes <= self._notes:
            return frozenset()
        found = read_lost(self._store, self._master, self._source.refresh()) - self.lost
        if not found:
            self._notes |= notes
        return found

    def fail(self, reason: BaseException) -> None:
        """Void the session for a reason that the caller is told."""
        self._told = True
        self._void(reason)

    def _void(self, reason: BaseException) -> None:
        if self._failure is None:
            self._failure = reason

    def tell(self) -> None:
        """Raise what the writing thread failed of, if nobody was told of that yet."""
        if self._failure is not None and not self._told:
            self._check()

    @property
    def failed(self) -> bool:
        """Whether the session is void."""
        return self._failure is not None

    def close(self) -> None:
        """End the session; what is not committed becomes a leftover."""
        self._void(AtollError("it has ended"))
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._presence.end()

    def _check(self) -> None:
        if self._failure is not None:
            self._told = True
            # The same class, so that the exit status tells the cause; a new object, because
            # several threads may come by here.
            kind = type(self._failure) if isinstance(self._failure, AtollError) else AtollError
            raise kind(
                f"This backup's writing failed before ({self._failure}), so nothing of it is "
                "committed; run it again."
            ) from self._failure

    def _dispatch(self) -> None:
        """Hand the open pack to the writing thread; waits while two are under way."""
        assert self._open is not None
        listing, parts = self._open.finish()
        self._open = None
        while len(self._writing) >= _PACKS_IN_FLIGHT:
            self._writing.popleft().result()

        def write() -> None:
            self._store.put(object_name(listing.name), parts)
            self._finished.append(listing)
            if len(self._finished) >= PACKS_PER_SEGMENT:
                self._write_segment()

        self._writing.append(self._writer.submit(self._guarded, write))

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._failure is not None:
            return
        try:
            work()
        except BaseException as error:
            self._void(error)
            raise

    def _write_segment(self) -> None:
        """Runs in the writing thread only, after the puts of the packs it lists."""
        packs, self._finished = self._finished, []
        if not packs:
            return
        segment = write_segment(self._store, self._master, packs)
        self._source.add(segment, packs)
        for pack in packs:
            for entry in pack.entries:
                self._promised.pop(entry.name, None)
