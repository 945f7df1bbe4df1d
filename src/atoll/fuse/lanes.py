"""Which requests are answered now, and which wait because others of their lane keep a thread each.

A lane is whatever answers may have to wait for (see Node.lane): a guest whose parser is busy, a
disk that is slow. A lane may keep one of each sixteen threads that are free; so the more lanes are
slow at once, the fewer each gets, and one in any case. Requests beyond that wait here, without a
thread, and are answered by those that their lane has.
"""

import threading
from collections import deque
from collections.abc import Hashable

from atoll.fuse.protocol import Request

_SHARE = 16


class Lanes:
    """The lanes of one server with so many threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._busy: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[Request]] = {}
        self._closed = False

    def admit(self, lane: Hashable, request: Request) -> bool:
        """Whether to answer it now and call `done` after it; otherwise it is kept for later."""
        with self._lock:
            busy = self._busy.get(lane, 0)
            free = self._threads - sum(self._busy.values())
            if self._closed or (busy and busy >= free // _SHARE):
                self._waiting.setdefault(lane, deque()).append(request)
                return False
            self._busy[lane] = busy + 1
            return True

    def done(self, lane: Hashable) -> Request | None:
        """What to answer next in the place of a request that is answered, if the lane has more."""
        with self._lock:
            waiting = self._waiting.get(lane)
            if waiting and not self._closed:
                request = waiting.popleft()
                if not waiting:
                    del self._waiting[lane]
                return request
            self._busy[lane] -= 1
            if not self._busy[lane]:
                del self._busy[lane]
            return None

    def withdraw(self, unique: int) -> bool:
        """Forget a request that waits, whose reader does not want it any more; whether it did wait."""
        with self._lock:
            for lane, waiting in self._waiting.items():
                for request in waiting:
                    if request.unique == unique:
                        waiting.remove(request)
                        if not waiting:
                            del self._waiting[lane]
                        return True
            return False

    def close(self) -> None:
        """Answer nothing more that waits: the kernel tells its readers."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
