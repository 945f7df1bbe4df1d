"""What the repository asks of the place that keeps its objects."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from atoll.model.errors import RepositoryDamagedError, RunConflictError

Buffer = bytes | bytearray | memoryview
_OWN = re.compile(r"[0-9a-f]{32}")


class MissingObjectError(RepositoryDamagedError):
    """An object that was listed or referred to is not in the store."""


class ObjectLockedError(RunConflictError):
    """The store keeps an object until a time that is still to come, whoever asks to remove it."""

    def __init__(self, message: str, until: datetime) -> None:
        super().__init__(message)
        self.until = until


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object of the store and its size."""

    name: str
    size_bytes: int


class StoreLock(Protocol):
    """A lock that is held until it is released or its process ends, however it ends."""

    def confirm(self) -> None:
        """RunConflictError if others have taken its holder for dead, and may hold it by now."""
        ...

    def release(self) -> None:
        """Let go. Releasing twice is harmless."""
        ...


@dataclass(frozen=True, slots=True)
class SessionSeen:
    """Somebody at work in the store, and what he last said of his work."""

    name: str
    said: bytes


class StoreSession(Protocol):
    """A process at work in the store, which others see until it ends, however it ends."""

    @property
    def name(self) -> str:
        """32 hex digits, used once."""
        ...

    def say(self, text: bytes) -> None:
        """Replace what others are told; they see the old text or the new one, whole."""
        ...

    def confirm(self) -> None:
        """RunConflictError if others have taken this session for dead, and may have acted on that."""
        ...

    def end(self) -> None:
        """Leave. Ending twice is harmless."""
        ...


class ObjectStore(Protocol):
    """Objects by name, written once and never changed.

    Names are `/`-separated and made of `a-z`, `0-9`, `.` and `-`. Thread-safe.
    After `put` or `delete` returns, a crash or power cut does not undo it; a
    writer that is killed inside `put` leaves the whole object or none, and
    perhaps a temporary. Raises RepositoryUnreachableError when the store does
    not answer, is full or refuses.
    """

    @property
    def location(self) -> str:
        """Where the store is, for messages."""
        ...

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write the parts, one after the other, as a new object.

        StorageConflictError if the name is taken; nothing is overwritten.
        """
        ...

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write an object again that is not as it was written; readers see the old one or the new."""
        ...

    def get(self, name: str) -> bytes:
        """The whole object; MissingObjectError if there is none."""
        ...

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer only past the end; MissingObjectError if absent."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose name starts with `prefix`, a folder ending in `/`, in no order."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object; what is absent is removed already."""
        ...

    def settle(self, prefix: str) -> None:
        """Make sure that what is, and what is no more, under a folder stays so after a power cut.

        Another may be inside `put` or `delete`, or was killed there: others see what he did
        before it is durable. Who lets something lasting rest on that settles it first.
        """
        ...

    def renew(self, names: Iterable[str]) -> None:
        """Where the store locks what it is given, lock these anew for which that would end soon."""
        ...

    def temporaries(self) -> Sequence[ObjectInfo]:
        """What `put` calls of processes that are gone have left."""
        ...

    def delete_temporary(self, name: str) -> None:
        """Remove one of the temporaries; what is absent is removed already."""
        ...

    def join(self, text: bytes) -> StoreSession:
        """Begin a session; whoever calls `sessions` after this returned sees it."""
        ...

    def sessions(self) -> Sequence[SessionSeen]:
        """Sessions that go on. Those of the dead are ended for good: they cannot `confirm` any more."""
        ...

    def maintain(self) -> StoreLock:
        """Be the only one who deletes; RunConflictError at once if another is."""
        ...

    def close(self) -> None:
        """Let go of what is held. Closing twice is harmless."""
        ...


def own_objects(store: ObjectStore, folder: str) -> Iterator[ObjectInfo]:
    """What lies in a folder and can be ours, being named by 32 hex digits.

    File servers and their users leave things of their own among our files.
    """
    for info in store.list(folder):
        if _OWN.fullmatch(info.name.rpartition("/")[2]):
            yield info
