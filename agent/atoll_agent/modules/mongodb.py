"""Holds a MongoDB server: everything flushed, then locked against writes.

With the lock its files are those of a clean checkpoint, so data and journal may
lie on different disks, and a restored server has nothing acknowledged missing.
The lock and its end: `mongoholder`.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll_agent.application import ApplicationConfig, Testimony
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.mongoclient import Connection, Endpoint
from atoll_agent.modules.mongoholder import (
    MongoHolder,
    locked_now,
    read_position,
    run_witness,
)
from atoll_agent.modules.tls import Tls
from atoll_agent.outliving import OutlivingApplication
from atoll_agent.secrets import password_of

KIND = "mongodb"
_DEFAULT_PORT = 27017
# The server makes one beside each port it listens on, in /tmp unless told otherwise.
_SOCKET = re.compile(r"/\S*/mongodb-(?P<port>\d+)\.sock\Z")
_ARBITER = "it is an arbiter, which keeps no data"


class MongoDb(OutlivingApplication):
    """One server."""

    def __init__(self, name: str, endpoint: Endpoint, entry: ApplicationConfig | None) -> None:
        super().__init__(KIND, name)
        self._entry = entry
        self._bare = endpoint
        self._database = (entry.text("database") if entry else None) or "admin"
        self._witness = entry.text("witness") if entry else None

    def remark(self, deadline: Deadline) -> str:
        try:
            with closing(self._connect(deadline)) as connection:
                locked = locked_now(connection, deadline)
        except ApplicationError as error:
            return f"cannot be held: {error}"
        if connection.hello.get("arbiterOnly"):
            return _ARBITER
        already = "; it is locked by something else now" if locked else ""
        return f"held by fsyncLock{already}"

    def prepare(self, deadline: Deadline) -> None:
        """A checkpoint while it serves, so that the one under the lock finds little to write."""
        with closing(self._connect(deadline)) as connection:
            connection.ask(deadline, "admin", {"fsync": 1})

    def flush_again(self, deadline: Deadline) -> None:
        self.prepare(deadline)

    def testify(self, deadline: Deadline) -> Testimony:
        position, witness, answering = "", None, False
        detail = "what its start replayed is not known"
        try:
            with closing(self._connect(deadline)) as connection:
                position, answering = read_position(connection, deadline), True
                witness = run_witness(connection, self._database, self._witness, deadline)
        except ApplicationError as error:
            detail = str(error)
        return Testimony(
            kind=KIND,
            name=self.name,
            answering=answering,
            witness=witness,
            wal_replayed_bytes=None,
            repair_ran=None,
            position=position,
            detail=detail,
        )

    def _endpoint(self) -> Endpoint:
        """With its password, which is read anew each time: it may have been changed."""
        secret = password_of(self._entry)
        return replace(self._bare, password=secret.reveal() if secret else None)

    def _connect(self, deadline: Deadline) -> Connection:
        return Connection(self._endpoint(), deadline)

    def _arguments(self) -> Mapping[str, Any]:
        return self._endpoint().as_arguments()

    def _order(self) -> Mapping[str, Any]:
        return {"witness": self._witness, "database": self._database}


def make_holder(arguments: Mapping[str, Any]) -> MongoHolder:
    """The part that runs in the dead-man's process."""
    return MongoHolder(Endpoint.from_arguments(arguments))


def discover(
    configured: Sequence[ApplicationConfig],
    look: bool,
    sockets: Path = Path("/proc/self/net/unix"),
) -> list[MongoDb]:
    """The servers with a UNIX socket, called by their port, with the configuration's word on each."""
    entries = {entry.name: entry for entry in configured}
    found: list[MongoDb] = []
    for socket, port in _listening(sockets) if look else ():
        name = str(port)
        found.append(_server(name, Endpoint(socket, port), entries.pop(name, None)))
    for entry in entries.values():
        socket_named = entry.text("socket")
        if socket_named or "port" in entry.options:
            endpoint = Endpoint(socket_named, entry.number("port", _DEFAULT_PORT))
            found.append(_server(entry.name, endpoint, entry))
    return found


def _server(name: str, endpoint: Endpoint, entry: ApplicationConfig | None) -> MongoDb:
    if entry is None:
        return MongoDb(name, endpoint, None)
    named = Endpoint(
        socket=entry.text("socket") or endpoint.socket,
        port=entry.number("port", endpoint.port),
        user=entry.text("user"),
        auth_database=entry.text("auth_database") or "admin",
        tls=Tls.of(entry),
    )
    return MongoDb(entry.name, named, entry)


def _listening(sockets: Path) -> list[tuple[str, int]]:
    """Socket and port of each server, from the kernel's list of UNIX sockets."""
    matches = map(_SOCKET.search, sockets.read_text(errors="replace").splitlines())
    return sorted({(match[0], int(match["port"])) for match in matches if match})
