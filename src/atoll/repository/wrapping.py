"""A store that is another one but for what its subclasses do otherwise."""

from collections.abc import Iterable, Iterator, Sequence

from atoll.repository.store import (
    Buffer,
    ObjectInfo,
    ObjectStore,
    SessionSeen,
    StoreLock,
    StoreSession,
)


class WrappedStore:
    """Hands every call on. What each promises is said in `store.ObjectStore`."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    @property
    def location(self) -> str:
        """As that of the store within."""
        return self.inner.location

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Handed on."""
        self.inner.put(name, parts)

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        """Handed on."""
        self.inner.replace(name, parts)

    def get(self, name: str) -> bytes:
        """Handed on."""
        return self.inner.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Handed on."""
        return self.inner.get_range(name, offset, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Handed on."""
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        """Handed on."""
        self.inner.delete(name)

    def settle(self, prefix: str) -> None:
        """Handed on."""
        self.inner.settle(prefix)

    def renew(self, names: Iterable[str]) -> None:
        """Handed on."""
        self.inner.renew(names)

    def temporaries(self) -> Sequence[ObjectInfo]:
        """Handed on."""
        return self.inner.temporaries()

    def delete_temporary(self, name: str) -> None:
        """Handed on."""
        self.inner.delete_temporary(name)

    def join(self, text: bytes) -> StoreSession:
        """Handed on."""
        return self.inner.join(text)

    def sessions(self) -> Sequence[SessionSeen]:
        """Handed on."""
        return self.inner.sessions()

    def maintain(self) -> StoreLock:
        """Handed on."""
        return self.inner.maintain()

    def close(self) -> None:
        """Handed on."""
        self.inner.close()
