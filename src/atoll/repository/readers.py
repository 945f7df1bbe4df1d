"""Images that this process reads, so that they stay although their restore points are forgotten."""

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial

from atoll.model.errors import RepositoryUnreachableError
from atoll.repository.keys import MasterKey
from atoll.repository.presence import Presence
from atoll.repository.store import ObjectStore


class Readers:
    """A session for as long as anything is read. Thread-safe."""

    def __init__(self, store: ObjectStore, master: MasterKey) -> None:
        self._store = store
        self._master = master
        self._presence: Presence | None = None
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def keep(self, root: str) -> Callable[[], None]:
        """Have an image (hex) stay until what this returns is called; then look whether it is there.

        It stays only if others can be told: from a read-only copy or a full disk it is read without.
        """
        with self._lock:
            try:
                if self._presence is None:
                    self._presence = Presence(self._store, self._master, writes=False)
                self._presence.keep([root])
            except RepositoryUnreachableError:
                return lambda: None
            self._count[root] += 1
        return partial(self._let_go, root)

    def _let_go(self, root: str) -> None:
        with self._lock:
            if self._presence is None:
                return
            self._count[root] -= 1
            if self._count[root]:
                return
            del self._count[root]
            if self._count:
                self._presence.let_go(root)
            else:
                self._leave()

    def end(self) -> None:
        """Nothing is read any more. Twice is harmless."""
        with self._lock:
            self._leave()

    def _leave(self) -> None:
        presence, self._presence = self._presence, None
        self._count.clear()
        if presence is not None:
            presence.end()
