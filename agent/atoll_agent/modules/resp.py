"""The protocol of Redis and its kin, version 2 (redis.io, "Redis serialization protocol")."""

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.tls import Tls, wrap

_MAX_ANSWER_BYTES = 1 << 20

Reply = str | int | None | list["Reply"]


class RefusedError(ApplicationError):
    """The server answered with an error; the connection goes on."""


class NobodyThereError(ApplicationError):
    """No server listens there, so no server is held there either."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, `socket` before `port`, and as whom to be there."""

    socket: str | None
    port: int
    host: str = "127.0.0.1"
    user: str | None = None
    password: str | None = None
    tls: Tls | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return self.socket or f"port {self.port}"

    def as_arguments(self) -> dict[str, Any]:
        """As JSON for the process that holds; `from_arguments` reads it."""
        return asdict(self)

    @staticmethod
    def from_arguments(given: Mapping[str, Any]) -> "Endpoint":
        """What `as_arguments` wrote."""
        return Endpoint(**{**given, "tls": Tls.from_arguments(given["tls"])})

    def __repr__(self) -> str:
        return f"Endpoint({self.where})"


class Connection:
    """One authenticated connection. Not thread-safe.

    Raises NobodyThereError when nothing listens, else ApplicationError.
    """

    def __init__(self, endpoint: Endpoint, deadline: Deadline) -> None:
        self._received = b""
        self._socket = _connect(endpoint, deadline)
        try:
            if endpoint.password is not None:
                names = [endpoint.user] if endpoint.user else []
                self.ask(deadline, "AUTH", *names, endpoint.password)
            # Not PING, which a server that cannot save its memory refuses.
            self.ask(deadline, "INFO", "server")
        except RefusedError as error:
            self.close()
            hint = "; name a password_file" if str(error).startswith("NOAUTH") else ""
            raise ApplicationError(f"the server does not let us in: {error}{hint}") from None
        except ApplicationError:
            self.close()
            raise

    def ask(self, deadline: Deadline, *words: str) -> Reply:
        """Run a command. RefusedError: the server said no; after others only `close` makes sense."""
        self.send(deadline, *words)
        return self.receive(deadline)

    def send(self, deadline: Deadline, *words: str) -> None:
        """Start a command whose reply `receive` fetches."""
        data = b"*%d\r\n" % len(words)
        for word in words:
            encoded = word.encode()
            data += b"$%d\r\n%s\r\n" % (len(encoded), encoded)
        self._wait(deadline)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ApplicationError(f"the connection to the server was lost: {error}") from error

    def receive(self, deadline: Deadline) -> Reply:
        """The next reply."""
        line = self._line(deadline)
        kind, rest = line[:1], line[1:]
        if kind == "+":
            return rest
        if kind == "-":
            raise RefusedError(rest)
        if kind == ":":
            return int(rest)
        if kind == "$":
            return None if rest == "-1" else self._bulk(int(rest), deadline)
        if kind == "*":
            return None if rest == "-1" else [self.receive(deadline) for _ in range(int(rest))]
        raise ApplicationError("the server does not speak Redis's protocol")

    def answered(self) -> bool:
        """Whether a reply, or the end of the connection, has arrived."""
        if self._received:
            return True
        self._socket.settimeout(0)
        try:
            self._received = self._socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Hang up. Repeatable."""
        with suppress(OSError):
            self._socket.close()

    def _line(self, deadline: Deadline) -> str:
        while b"\r\n" not in self._received:
            self._more(deadline)
        line, _, self._received = self._received.partition(b"\r\n")
        return line.decode(errors="replace")

    def _bulk(self, length: int, deadline: Deadline) -> str:
        while len(self._received) < length + 2:
            self._more(deadline)
        data, self._received = self._received[:length], self._received[length + 2 :]
        return data.decode(errors="replace")

    def _more(self, deadline: Deadline) -> None:
        self._wait(deadline)
        try:
            part = self._socket.recv(65536)
        except TimeoutError:
            raise ApplicationError("the server did not answer in time") from None
        except OSError as error:
            raise ApplicationError(f"the connection to the server was lost: {error}") from error
        if not part:
            raise ApplicationError("the server closed the connection")
        self._received += part
        if len(self._received) > _MAX_ANSWER_BYTES:
            raise ApplicationError(f"the answer is larger than {_MAX_ANSWER_BYTES} bytes")

    def _wait(self, deadline: Deadline) -> None:
        # Zero would mean not to wait at all, and answers that are here already are taken.
        self._socket.settimeout(max(deadline.remaining, 0.001))


def _connect(endpoint: Endpoint, deadline: Deadline) -> socket.socket:
    inet = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    found = socket.socket(socket.AF_UNIX if endpoint.socket else inet, socket.SOCK_STREAM)
    found.settimeout(max(deadline.remaining, 0.001))
    try:
        found.connect(endpoint.socket or (endpoint.host, endpoint.port))
    except (ConnectionRefusedError, FileNotFoundError) as error:
        found.close()
        raise NobodyThereError(f"nothing listens on {endpoint.where}") from error
    except OSError as error:
        found.close()
        raise ApplicationError(f"{endpoint.where} cannot be reached: {error}") from error
    return wrap(found, endpoint.tls, deadline) if endpoint.tls else found
