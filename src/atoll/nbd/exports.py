"""What is served: exports, and what the server keeps about each."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from atoll.model.errors import StorageUnreachableError
from atoll.model.readers import BlockReader
from atoll.nbd import protocol
from atoll.nbd.contexts import BASE_ALLOCATION, Context, StatusMap

_LEAST_HOLE_BYTES = 32 << 10
"""Below this, sending zeros costs less than a chunk of its own and a second read."""

MAX_FAILURES = 1000


@dataclass(frozen=True, slots=True)
class Export:
    """A reader under a name.

    `description` is for people, `key` for whoever asks which disk of its VM it is: the device's;
    clients are told nothing of it. Besides `base:allocation`, clients can ask for
    the `contexts` (`contexts.changed_contexts` makes those of an increment),
    whose maps are of the reader's size. The reader belongs to the caller and is
    closed by no server; it must stay open as long as one serves it. ValueError
    for names that the protocol cannot carry.
    """

    name: str
    reader: BlockReader
    description: str = ""
    contexts: tuple[Context, ...] = ()
    key: int | None = None

    def __post_init__(self) -> None:
        texts = [self.name, self.description, *(context.name for context in self.contexts)]
        if any(len(text.encode()) > protocol.MAX_STRING_BYTES or "\0" in text for text in texts):
            raise ValueError(f"a name or description of export {self.name[:64]!r} cannot be sent")
        if any(context.status.size_bytes != self.reader.size_bytes for context in self.contexts):
            raise ValueError(f"a context of export {self.name!r} is of another size")
        if len({BASE_ALLOCATION, *texts[2:]}) != len(self.contexts) + 1:
            raise ValueError(f"two contexts of export {self.name!r} have one name")


@dataclass(frozen=True, slots=True)
class ReadFailure:
    """A range of an export that could not be read, and why."""

    export: str
    offset: int
    length: int
    error: Exception


class Failures:
    """Read failures of a server, up to the first thousand. Thread-safe."""

    def __init__(self, tell: Callable[[ReadFailure], None] | None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._kept: list[ReadFailure] = []
        self._count = 0

    @property
    def kept(self) -> list[ReadFailure]:
        """The first failures."""
        with self._lock:
            return list(self._kept)

    @property
    def count(self) -> int:
        """How many there were."""
        return self._count

    def add(self, failure: ReadFailure) -> None:
        """Keep one, and tell of it if it is kept: a client that insists must not fill memory."""
        with self._lock:
            self._count += 1
            if len(self._kept) >= MAX_FAILURES:
                return
            self._kept.append(failure)
        if self._tell is not None:
            self._tell(failure)


class Served:
    """An export as a server sees it: reads that are exact or fail, and where its holes are."""

    def __init__(self, export: Export, failures: Failures) -> None:
        self.export = export
        self.name = export.name.encode()
        self.size_bytes = export.reader.size_bytes
        self._failures = failures
        self._lock = threading.Lock()
        self._allocation: StatusMap | None = None
        self._holes: StatusMap | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; whatever the reader raises, once it is kept."""
        try:
            return self._exactly(offset, length)
        except Exception as error:
            self._failures.add(ReadFailure(self.export.name, offset, length, error))
            raise

    @property
    def context_names(self) -> list[str]:
        """All that clients can ask for."""
        return [BASE_ALLOCATION, *(context.name for context in self.export.contexts)]

    def status(self, context: str) -> StatusMap:
        """The map of a context that this export has."""
        for each in self.export.contexts:
            if each.name == context:
                return each.status
        return self.allocation

    @property
    def allocation(self) -> StatusMap:
        """`base:allocation`: where nothing is stored and zeros are read."""
        with self._lock:
            if self._allocation is None:
                # Found when the first client wants them: on a large disk that is work.
                self._allocation = self._find_holes()
            return self._allocation

    @property
    def holes(self) -> StatusMap:
        """The holes that are worth a chunk of their own in a reply."""
        allocation = self.allocation
        with self._lock:
            if self._holes is None:
                self._holes = allocation.without_short(_LEAST_HOLE_BYTES)
            return self._holes

    def _exactly(self, offset: int, length: int) -> bytes:
        data = self.export.reader.read(offset, length)
        if len(data) != length:
            raise StorageUnreachableError(
                f"{self.export.name} gave {len(data)} of {length} bytes at {offset}; check what it "
                "lies on."
            )
        return data

    def _find_holes(self) -> StatusMap:
        flags = protocol.STATE_HOLE | protocol.STATE_ZERO
        try:
            return StatusMap.of(self.size_bytes, self.export.reader.holes(), flags)
        except Exception as error:  # noqa: BLE001 - kept; without holes everything is read
            self._failures.add(ReadFailure(self.export.name, 0, self.size_bytes, error))
            return StatusMap.of(self.size_bytes, [], flags)
