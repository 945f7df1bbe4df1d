"""The protocol of Redis and its kin, version 2 (redis.io, "Redis serialization protocol")."""

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.serversocket import Endpoint, ServerSocket

_MAX_ANSWER_BYTES = 1 << 20

Reply = str | int | None | list["Reply"]


class RefusedError(ApplicationError):
    """The server answered with an error; the connection goes on."""


class Connection:
    """One authenticated connection. Not thread-safe.

    Raises NobodyThereError when nothing listens, else ApplicationError.
    """

    def __init__(self, endpoint: Endpoint, deadline: Deadline) -> None:
        self._socket = ServerSocket(endpoint, deadline)
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
        self._socket.send(data, deadline)

    def receive(self, deadline: Deadline) -> Reply:
        """The next reply."""
        line = self._socket.line(_MAX_ANSWER_BYTES, deadline).decode(errors="replace")
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
        return self._socket.arrived()

    def close(self) -> None:
        """Hang up. Repeatable."""
        self._socket.close()

    def _bulk(self, length: int, deadline: Deadline) -> str:
        if length > _MAX_ANSWER_BYTES:
            raise ApplicationError(f"the answer is larger than {_MAX_ANSWER_BYTES} bytes")
        return self._socket.exactly(length + 2, deadline)[:-2].decode(errors="replace")
