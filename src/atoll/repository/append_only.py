"""A store that this machine only ever adds to, whoever gives the command."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from atoll.model.errors import ConfigurationError
from atoll.repository.store import (
    Buffer,
    ObjectInfo,
    ObjectStore,
    SessionSeen,
    StoreLock,
    StoreSession,
)


class AppendOnlyStore:
    """Refuses with ConfigurationError to delete, replace or tidy anything but what it has put itself.

    It guards against mistakes and against what was made from stolen credentials of a command, not against
    who can change the settings: for that the place itself must refuse.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._own: set[str] = set()

    @property
    def location(self) -> str:
        """Where the store is."""
        return self._inner.location

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write a new object."""
        self._inner.put(name, parts)
        self._own.add(name)

    def delete(self, name: str) -> None:
        """Take back what was put a moment ago; nothing else goes."""
        if name not in self._own:
            self._refuse()
        self._inner.delete(name)

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        """Refused."""
        self._refuse()

    def delete_temporary(self, name: str) -> None:
        """Refused."""
        self._refuse()

    def maintain(self) -> StoreLock:
        """Refused."""
        self._refuse()

    def get(self, name: str) -> bytes:
        """The whole object."""
        return self._inner.get(name)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Part of it."""
        return self._inner.get_range(name, offset, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """What there is."""
        return self._inner.list(prefix)

    def settle(self, prefix: str) -> None:
        """Make durable what others put."""
        self._inner.settle(prefix)

    def renew(self, names: Iterable[str]) -> None:
        """Have what is kept be locked for longer."""
        self._inner.renew(names)

    def temporaries(self) -> Sequence[ObjectInfo]:
        """What others left."""
        return self._inner.temporaries()

    def join(self, text: bytes) -> StoreSession:
        """A session; its own object may go, being no part of what is kept."""
        return self._inner.join(text)

    def sessions(self) -> Sequence[SessionSeen]:
        """Sessions that go on."""
        return self._inner.sessions()

    def close(self) -> None:
        """Let go of the store."""
        self._inner.close()

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(
            f"This machine only adds to the repository {self.location} (append_only in the settings); "
            "forget, prune, repair, release holds and remove keys from a machine that may."
        )
