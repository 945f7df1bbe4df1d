"""Limits on how fast a storage system is read and a repository written to: token buckets."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.repository.store import Buffer, ObjectStore
from atoll.repository.wrapping import WrappedStore

_PIECE_BYTES = 1 << 20


class Bucket:
    """So many units a second on average, and at most a second's worth of them at once. Thread-safe.

    Whoever takes more than there is leaves a debt, and the next waits until it is paid, so amounts of
    any size pass and all come in turn.
    """

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._level = per_second
        self._at = clock()

    def take(self, units: float) -> None:
        """Return once the units may be used."""
        with self._lock:
            now = self._clock()
            gained = (now - self._at) * self._per_second
            self._level = min(self._per_second, self._level + gained) - units
            self._at = now
            # Those who take later see the debt, so it need not be waited for under the lock.
            debt = -self._level
        if debt > 0:
            self._sleep(debt / self._per_second)


class Pace:
    """Limits on bytes and on operations, of which either may be absent (0)."""

    def __init__(
        self,
        mib_per_second: float = 0,
        operations_per_second: float = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes = Bucket(mib_per_second * (1 << 20), clock, sleep) if mib_per_second else None
        self._operations = (
            Bucket(operations_per_second, clock, sleep) if operations_per_second else None
        )

    @property
    def limits(self) -> bool:
        """Whether there is anything to wait for."""
        return self._bytes is not None or self._operations is not None

    def take(self, length: int) -> None:
        """Wait until one operation of so many bytes may go on."""
        if self._operations is not None:
            self._operations.take(1)
        if self._bytes is not None:
            self._bytes.take(length)


class PacedReader:
    """A BlockReader that waits for its turn before each read."""

    def __init__(self, reader: BlockReader, pace: Pace) -> None:
        self._reader = reader
        self._pace = pace

    @property
    def size_bytes(self) -> int:
        """The size of what is read."""
        return self._reader.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """One operation."""
        self._pace.take(max(0, min(length, self.size_bytes - offset)))
        return self._reader.read(offset, length)

    def read_many(self, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
        """One operation for each MiB begun, each waited for before it is asked for."""
        size = self.size_bytes
        for extent in extents:
            for offset in range(extent.offset, min(extent.end, size), _PIECE_BYTES):
                length = min(_PIECE_BYTES, extent.end - offset, size - offset)
                yield offset, self.read(offset, length)

    def holes(self) -> Iterable[Extent]:
        """As those of what is read; they cost nothing."""
        return self._reader.holes()

    def close(self) -> None:
        """Close what is read."""
        self._reader.close()


def paced_reader(reader: BlockReader, pace: Pace) -> BlockReader:
    """The reader, at a pace if there is one."""
    return PacedReader(reader, pace) if pace.limits else reader


class _PacedStore(WrappedStore):
    """All of a store as it is, but that objects are written at a pace."""

    def __init__(self, store: ObjectStore, pace: Pace) -> None:
        super().__init__(store)
        self._pace = pace

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self._pace.take(sum(map(len, parts)))
        self.inner.put(name, parts)

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        self._pace.take(sum(map(len, parts)))
        self.inner.replace(name, parts)


def paced_store(store: ObjectStore, pace: Pace) -> ObjectStore:
    """The store, written to at a pace if there is one.

    An object is handed over whole after its wait: what is limited is the average over a pack's
    32 MiB and more, not each instant.
    """
    return _PacedStore(store, pace) if pace.limits else store
