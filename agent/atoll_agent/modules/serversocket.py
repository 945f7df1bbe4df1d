"""Where a server of this guest listens, and the bytes that go to it and come from it."""

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.tls import Tls, wrap

_MAX_PART_BYTES = 1 << 16


class NobodyThereError(ApplicationError):
    """No server listens there, so no server is held there either."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, `socket` before `port`, and as whom to be there."""

    socket: str | None
    port: int
    user: str | None = None
    password: str | None = None
    tls: Tls | None = None
    host: str = "127.0.0.1"

    @property
    def where(self) -> str:
        """For messages."""
        return self.socket or f"port {self.port}"

    def as_arguments(self) -> dict[str, Any]:
        """As JSON for the process that holds; `from_arguments` reads it."""
        return asdict(self)

    @classmethod
    def from_arguments(cls, given: Mapping[str, Any]) -> Self:
        """What `as_arguments` wrote."""
        return cls(**{**given, "tls": Tls.from_arguments(given["tls"])})

    def __repr__(self) -> str:
        return f"Endpoint({self.where})"


class ServerSocket:
    """Connected on creation. Not thread-safe.

    Raises NobodyThereError when nothing listens, else ApplicationError, after
    which only `close` makes sense.
    """

    def __init__(self, endpoint: Endpoint, deadline: Deadline) -> None:
        inet = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        self._socket = socket.socket(
            socket.AF_UNIX if endpoint.socket else inet, socket.SOCK_STREAM
        )
        self._received = bytearray()
        self._limit(deadline)
        try:
            self._socket.connect(endpoint.socket or (endpoint.host, endpoint.port))
        except (ConnectionRefusedError, FileNotFoundError) as error:
            self.close()
            raise NobodyThereError(f"nothing listens on {endpoint.where}") from error
        except OSError as error:
            self.close()
            raise ApplicationError(f"{endpoint.where} cannot be reached: {error}") from error
        if endpoint.tls:
            self._socket = wrap(self._socket, endpoint.tls, deadline)

    def send(self, data: bytes, deadline: Deadline) -> None:
        """All of it."""
        self._limit(deadline)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ApplicationError(f"the connection to the server was lost: {error}") from error

    def exactly(self, count: int, deadline: Deadline) -> bytes:
        """The next `count` bytes."""
        while len(self._received) < count:
            self._more(deadline)
        return self._take(count)

    def line(self, most: int, deadline: Deadline) -> bytes:
        """What comes before the next CR and LF; ApplicationError when that is more than `most` bytes."""
        while (end := self._received.find(b"\r\n")) < 0:
            if len(self._received) > most:
                raise ApplicationError(f"the answer is larger than {most} bytes")
            self._more(deadline)
        return self._take(end + 2)[:end]

    def arrived(self) -> bool:
        """Whether something, or the end of the connection, is there to be read."""
        if self._received:
            return True
        self._socket.settimeout(0)
        try:
            self._received += self._socket.recv(_MAX_PART_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Hang up. Repeatable."""
        with suppress(OSError):
            self._socket.close()

    def _take(self, count: int) -> bytes:
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def _more(self, deadline: Deadline) -> None:
        self._limit(deadline)
        try:
            part = self._socket.recv(_MAX_PART_BYTES)
        except TimeoutError:
            raise ApplicationError("the server did not answer in time") from None
        except OSError as error:
            raise ApplicationError(f"the connection to the server was lost: {error}") from error
        if not part:
            raise ApplicationError("the server closed the connection")
        self._received += part

    def _limit(self, deadline: Deadline) -> None:
        # Zero would mean not to wait at all, and answers that are here already are taken.
        self._socket.settimeout(max(deadline.remaining, 0.001))
