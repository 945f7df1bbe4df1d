"""One connection to a MongoDB server: OP_MSG and SCRAM-SHA-256.

MongoDB wire protocol, "OP_MSG"; RFC 7677 and RFC 5802 for the way in.
"""

import base64
import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules import bson, serversocket

_OP_MSG = 2013
_MAX_MESSAGE_BYTES = 48_000_000
_MIN_ITERATIONS = 4096


class CommandError(ApplicationError):
    """The server answered that the command failed; the connection goes on. `number` says how."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True, repr=False)
class Endpoint(serversocket.Endpoint):
    """With the database that knows the user."""

    auth_database: str = "admin"


class Connection:
    """An authenticated connection. Not thread-safe.

    Raises NobodyThereError when nothing listens, else ApplicationError.
    """

    def __init__(self, endpoint: Endpoint, deadline: Deadline) -> None:
        self._requests = 0
        self._socket = serversocket.ServerSocket(endpoint, deadline)
        try:
            self.hello = self.ask(deadline, "admin", _greeting())
            if endpoint.user is not None:
                _authenticate(self, endpoint, deadline)
        except ApplicationError:
            self.close()
            raise

    def ask(self, deadline: Deadline, database: str, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command. CommandError: it failed; after other errors only `close` makes sense."""
        self._requests += 1
        body = struct.pack("<IB", 0, 0) + bson.encode({**command, "$db": database})
        header = struct.pack("<iiii", len(body) + 16, self._requests, 0, _OP_MSG)
        self._socket.send(header + body, deadline)
        answer = self._receive(deadline)
        if answer.get("ok") != 1:
            raise CommandError(
                int(answer.get("code", 0)), str(answer.get("errmsg", "it gives no reason"))
            )
        return answer

    def close(self) -> None:
        """Hang up. Repeatable."""
        self._socket.close()

    def _receive(self, deadline: Deadline) -> dict[str, Any]:
        while True:
            length, _, answered, kind = struct.unpack("<iiii", self._socket.exactly(16, deadline))
            if kind != _OP_MSG or not 21 <= length <= _MAX_MESSAGE_BYTES:
                raise ApplicationError("the server does not speak MongoDB's protocol")
            body = self._socket.exactly(length - 16, deadline)
            if answered != self._requests:
                continue
            if body[4] != 0:
                raise ApplicationError("the server does not speak MongoDB's protocol")
            try:
                return bson.decode(body[5:])
            except ValueError as error:
                raise ApplicationError(f"the server's answer cannot be read: {error}") from error


def _greeting() -> dict[str, Any]:
    # Understood by every server from 2.4 to the newest, which `hello` is not. The name is what
    # an administrator sees in currentOp.
    return {
        "isMaster": 1,
        "client": {
            "application": {"name": "atoll-agent"},
            "driver": {"name": "atoll-agent", "version": "1"},
            "os": {"type": "Linux"},
        },
    }


def _authenticate(connection: Connection, endpoint: Endpoint, deadline: Deadline) -> None:
    """SCRAM-SHA-256, both ways: the server shows as well that it knows the password."""
    assert endpoint.user is not None
    name = endpoint.user.replace("=", "=3D").replace(",", "=2C")
    nonce = base64.b64encode(os.urandom(24)).decode()
    first = f"n={name},r={nonce}"
    start: dict[str, Any] = {
        "saslStart": 1,
        "mechanism": "SCRAM-SHA-256",
        "payload": f"n,,{first}".encode(),
        "options": {"skipEmptyExchange": True},
    }
    try:
        answer = connection.ask(deadline, endpoint.auth_database, start)
        server_first = answer["payload"].decode()
        fields = dict(part.split("=", 1) for part in server_first.split(","))
        iterations = int(fields["i"])
        if not fields["r"].startswith(nonce) or iterations < _MIN_ITERATIONS:
            raise ApplicationError("the server's part of the authentication is not acceptable")
        salted = hashlib.pbkdf2_hmac(
            "sha256",
            (endpoint.password or "").encode(),
            base64.b64decode(fields["s"]),
            iterations,
        )
        last = f"c=biws,r={fields['r']}"
        signed = f"{first},{server_first},{last}".encode()
        key = _hmac(salted, b"Client Key")
        proof = _xor(key, _hmac(hashlib.sha256(key).digest(), signed))
        proven: dict[str, Any] = {
            "saslContinue": 1,
            "conversationId": answer["conversationId"],
            "payload": f"{last},p={base64.b64encode(proof).decode()}".encode(),
        }
        answer = connection.ask(deadline, endpoint.auth_database, proven)
        expected = base64.b64encode(_hmac(_hmac(salted, b"Server Key"), signed)).decode()
        if answer["payload"].decode() != f"v={expected}":
            raise ApplicationError("the server does not know the password itself")
        while not answer["done"]:
            more = {**proven, "payload": b""}
            answer = connection.ask(deadline, endpoint.auth_database, more)
    except CommandError as error:
        raise ApplicationError(f"the server does not let {endpoint.user} in: {error}") from error
    except (KeyError, ValueError) as error:
        raise ApplicationError("the server's part of the authentication is not known") from error


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
