"""Who may take the agent's time before it is known who they are.

Each handshake has a deadline as a whole, and one address can only have so many
under way: strangers who connect and dawdle keep nobody else out.
"""

import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from atoll_agent.clock import Deadline

_HANDSHAKE_SECONDS = 5.0
_MAX_CONNECTIONS = 32
_MAX_FROM_ONE = 8


class Doorway:
    """Counts connections: all of them, and those of each address that are not known yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._waiting: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether there is a place; `passing` gives it back."""
        with self._lock:
            if self._inside >= _MAX_CONNECTIONS or self._waiting[address] >= _MAX_FROM_ONE:
                return False
            self._inside += 1
            self._waiting[address] += 1
            return True

    @contextmanager
    def passing(self, address: str) -> Iterator[Callable[[], None]]:
        """The life of a connection that entered; call what it gives once the peer is known."""
        known = False

        def passed() -> None:
            nonlocal known
            with self._lock:
                known = True
                self._forget(address)

        try:
            yield passed
        finally:
            with self._lock:
                self._inside -= 1
                if not known:
                    self._forget(address)

    def shake_hands(self, plain: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket | None:
        """The secured connection; None when the peer is not one we trust or takes too long."""
        deadline = Deadline(_HANDSHAKE_SECONDS)
        try:
            # A socket's own timeout starts again with each byte, which a stranger could drip.
            plain.setblocking(False)
            tls = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            return None
        try:
            while not deadline.passed:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    select.select([tls], [], [], deadline.remaining)
                except ssl.SSLWantWriteError:
                    select.select([], [tls], [], deadline.remaining)
                else:
                    return tls
        except (OSError, ValueError):
            tls.close()
            return None
        tls.close()
        return None

    def _forget(self, address: str) -> None:
        self._waiting[address] -= 1
        if not self._waiting[address]:
            del self._waiting[address]
