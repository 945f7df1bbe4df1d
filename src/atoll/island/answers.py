"""Answers about what never changes, kept up to a weight in bytes.

Refusals are kept like answers, for they are about what never changes either; but not that a
parser's process ended, which may have been killed by somebody.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from atoll.filesystems.session import ParserEndedError
from atoll.model.errors import UnsupportedFormatError

A = TypeVar("A")

_REFUSAL_BYTES = 1024


class Answers(Generic[A]):
    """Answers by key, the least recently asked for dropped; each is worked out by one thread at a time."""

    def __init__(self, limit_bytes: int, weigh: Callable[[A], int]) -> None:
        self._limit = limit_bytes
        self._weigh = weigh
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[A | UnsupportedFormatError, int]] = OrderedDict()
        self._weight = 0
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], A]) -> A:
        """The answer; UnsupportedFormatError as it was raised before, anything else is tried again."""
        kept = self._look(key)
        if kept is None:
            with self._lock:
                making = self._making.setdefault(key, threading.Lock())
            try:
                with making:
                    kept = self._look(key)
                    if kept is None:
                        kept = self._make(key, make)
            finally:
                with self._lock:
                    self._making.pop(key, None)
        answer = kept[0]
        if isinstance(answer, UnsupportedFormatError):
            raise answer
        return answer

    def peek(self, key: Hashable) -> A | None:
        """The answer if there is one already."""
        kept = self._look(key)
        return None if kept is None or isinstance(kept[0], UnsupportedFormatError) else kept[0]

    def _look(self, key: Hashable) -> tuple[A | UnsupportedFormatError, int] | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            return kept

    def _make(self, key: Hashable, make: Callable[[], A]) -> tuple[A | UnsupportedFormatError, int]:
        answer: A | UnsupportedFormatError
        try:
            answer = make()
            weight = self._weigh(answer)
        except ParserEndedError:
            raise
        except UnsupportedFormatError as error:
            answer, weight = error.with_traceback(None), _REFUSAL_BYTES
        with self._lock:
            self._kept[key] = (answer, weight)
            self._weight += weight
            while self._weight > self._limit and len(self._kept) > 1:
                self._weight -= self._kept.popitem(last=False)[1][1]
        return answer, weight
