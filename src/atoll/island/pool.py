"""Things that cost something while they are open: opened when used, the least used closed beyond a limit."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Slot(Generic[V]):
    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.opened = False
        self.value: V | None = None
        self.users = 0


class Pool(Generic[K, V]):
    """Values by key. More than `limit` are open only while all of them are in use."""

    def __init__(self, limit: int, open_: Callable[[K], V], close: Callable[[V], None]) -> None:
        self._limit = limit
        self._open = open_
        self._close = close
        self._lock = threading.Lock()
        self._slots: OrderedDict[K, _Slot[V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._slots)

    @contextmanager
    def use(self, key: K) -> Iterator[V]:
        """The value, which stays open at least as long as the block lasts; what opening raises."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            slot.users += 1
            self._slots.move_to_end(key)
        try:
            with slot.opening:
                if not slot.opened:
                    slot.value = self._open(key)
                    slot.opened = True
            yield cast(V, slot.value)
        finally:
            with self._lock:
                slot.users -= 1
                if not slot.opened and slot.users == 0:
                    self._slots.pop(key, None)
                surplus = self._surplus(self._limit)
            self._close_all(surplus)

    def close(self) -> None:
        """Close what nobody uses."""
        with self._lock:
            surplus = self._surplus(0)
        self._close_all(surplus)

    def _surplus(self, limit: int) -> list[_Slot[V]]:
        idle = [key for key, slot in self._slots.items() if slot.users == 0]
        return [self._slots.pop(key) for key in idle[: max(0, len(self._slots) - limit)]]

    def _close_all(self, slots: list[_Slot[V]]) -> None:
        for slot in slots:
            if slot.opened:
                self._close(cast(V, slot.value))
