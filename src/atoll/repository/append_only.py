"""A store that this machine only ever adds to, whoever gives the command."""

from collections.abc import Sequence
from typing import NoReturn

from atoll.model.errors import ConfigurationError
from atoll.repository.store import Buffer, ObjectStore, StoreLock
from atoll.repository.wrapping import WrappedStore


class AppendOnlyStore(WrappedStore):
    """Refuses with ConfigurationError to delete, replace or tidy anything but what it has put itself.

    It guards against mistakes and against what was made from stolen credentials of a command, not against
    who can change the settings: for that the place itself must refuse.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._own: set[str] = set()

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write a new object."""
        self.inner.put(name, parts)
        self._own.add(name)

    def delete(self, name: str) -> None:
        """Take back what was put a moment ago; nothing else goes."""
        if name not in self._own:
            self._refuse()
        self.inner.delete(name)

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        """Refused."""
        self._refuse()

    def delete_temporary(self, name: str) -> None:
        """Refused."""
        self._refuse()

    def maintain(self) -> StoreLock:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(
            f"This machine only adds to the repository {self.location} (append_only in the settings); "
            "forget, prune, repair, release holds and remove keys from a machine that may."
        )
