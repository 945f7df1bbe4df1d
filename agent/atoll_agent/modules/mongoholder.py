"""Locks a MongoDB server against writes (`fsyncLock`) and unlocks it.

Runs in the dead-man's process: the lock belongs to the server and stays when
the connection that asked for it is gone. Locks are counted: ours is taken back
once, and what others have locked stays locked.
"""

import json
from collections.abc import Mapping
from typing import Any

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.modules.mongoclient import CommandError, Connection, Endpoint
from atoll_agent.modules.serversocket import NobodyThereError

NOT_LOCKED = 20
"""IllegalOperation: there is nothing to unlock (mongo/base/error_codes)."""

UNAUTHORIZED = 13
_LOCK_TIMEOUT = 24
_UNKNOWN_FIELD = 40415

_READING = ("count", "find", "distinct", "collStats", "dbStats", "dbHash")
_MAX_WITNESS = 4096


class MongoHolder:
    """One server's hold (`deadman.Holder`)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: Connection | None = None
        self._position = ""
        # None: not known, because an answer was lost or another process locked it.
        self._locked: bool | None = None

    def open(self, deadline: Deadline) -> Mapping[str, Any]:
        self._connection = Connection(self._endpoint, deadline)
        # Refused now rather than under the hold, which could then not be looked after.
        locked_now(self._connection, deadline)
        self._locked = False
        return {}

    def hold(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """`{"witness", "database"}` → `{"position", "witness", "remarks"}`."""
        connection = self._connected(deadline)
        answer = self._lock(connection, deadline)
        remarks = []
        if int(answer.get("lockCount", 1)) > 1:
            remarks.append("something else has locked it as well, and must unlock it itself")
        witness = None
        try:
            witness = run_witness(connection, arguments["database"], arguments["witness"], deadline)
        except CommandError as error:
            remarks.append(f"the witness did not answer: {error}")
        self._position = read_position(connection, deadline)
        return {"position": self._position, "witness": witness, "remarks": remarks}

    def ask(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """`{"question": "ready"}` before the hold, `"held"` during it: raises when it is broken."""
        connection = self._connected(deadline)
        locked = locked_now(connection, deadline)
        if arguments["question"] == "held":
            if not locked:
                raise ApplicationError("it is no longer locked against writes")
            if read_position(connection, deadline) != self._position:
                raise ApplicationError("it was written to while it was locked")
        return {}

    def release(self, deadline: Deadline) -> None:
        if self._locked is False:
            return
        try:
            connection = self._connected(deadline)
            if self._locked or self._found_locked(connection, deadline):
                self._unlock(connection, deadline)
            self._locked = False
        except NobodyThereError:
            # A server that is gone has taken its lock with it.
            self._locked = False
        except ApplicationError:
            self._disconnect()
            raise

    def _lock(self, connection: Connection, deadline: Deadline) -> dict[str, Any]:
        """Ask for the lock, for which writers that come after us wait as long as we do.

        Servers from 5.0.22, 6.0.11 and 7.0.2 on know the limit, some of them only in a lock
        that is for a backup (mongo/db/commands/fsync.idl); older ones take no notice.
        """
        order: dict[str, Any] = {"fsync": 1, "lock": True}
        milliseconds = max(1, int(deadline.remaining * 800))
        limit = {"forBackup": True, "fsyncLockAcquisitionTimeoutMillis": milliseconds}
        self._locked = None
        try:
            try:
                answer = connection.ask(deadline, "admin", {**order, **limit})
            except CommandError as error:
                if error.number != _UNKNOWN_FIELD:
                    raise
                answer = connection.ask(deadline, "admin", order)
        except CommandError as error:
            self._locked = False
            if error.number == _LOCK_TIMEOUT:
                raise ApplicationError("running writes did not end within the budget") from error
            raise
        except ApplicationError:
            # Whatever comes next must not wait behind the answer that did not come.
            self._disconnect()
            raise
        self._locked = True
        return answer

    def _found_locked(self, connection: Connection, deadline: Deadline) -> bool:
        """Whether there is a lock that is ours as far as anybody can tell."""
        if locking_now(connection, deadline):
            # A lock that is still waiting for writers would come after our unlock.
            raise ApplicationError("the lock that was asked for is still to come")
        return locked_now(connection, deadline)

    def _unlock(self, connection: Connection, deadline: Deadline) -> None:
        self._locked = None
        try:
            connection.ask(deadline, "admin", {"fsyncUnlock": 1})
        except CommandError as error:
            if error.number != NOT_LOCKED:
                raise

    def _connected(self, deadline: Deadline) -> Connection:
        if self._connection is None:
            self._connection = Connection(self._endpoint, deadline)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def locked_now(connection: Connection, deadline: Deadline) -> bool:
    """Whether the server is locked by anybody (currentOp's `fsyncLock`). Raises ApplicationError."""
    return bool(_operations(connection, deadline).get("fsyncLock", False))


def locking_now(connection: Connection, deadline: Deadline) -> bool:
    """Whether a lock has been asked for and has not come yet."""
    running = _operations(connection, deadline).get("inprog", [])
    return any(
        isinstance(each.get("command"), dict)
        and "fsync" in each["command"]
        and each["command"].get("lock")
        for each in running
    )


def read_position(connection: Connection, deadline: Deadline) -> str:
    """The member's last oplog entry; a standalone server, which has no oplog, has none."""
    answer = connection.ask(deadline, "admin", {"isMaster": 1})
    written = answer.get("lastWrite", {}).get("opTime")
    if not isinstance(written, dict):
        return "standalone"
    return f"optime {written.get('ts')} term {written.get('t')}"


def run_witness(
    connection: Connection, database: str, command: str | None, deadline: Deadline
) -> str | None:
    """What a command that only reads answers, as JSON; CommandError for others."""
    if not command:
        return None
    try:
        given = json.loads(command)
    except ValueError as error:
        raise CommandError(0, f"it is not JSON: {error}") from error
    if not isinstance(given, dict) or next(iter(given), "") not in _READING:
        raise CommandError(0, f"it must be one of {', '.join(_READING)}")
    limited = {**given, "maxTimeMS": max(1, int(deadline.remaining * 500))}
    answer = connection.ask(deadline, database, limited)
    told = answer.get("n", answer.get("values", answer.get("md5", answer.get("count"))))
    if "cursor" in answer:
        told = answer["cursor"]["firstBatch"]
    return json.dumps(told, default=str, sort_keys=True)[:_MAX_WITNESS]


def _operations(connection: Connection, deadline: Deadline) -> dict[str, Any]:
    try:
        return connection.ask(deadline, "admin", {"currentOp": 1, "active": True})
    except CommandError as error:
        if error.number == UNAUTHORIZED:
            raise ApplicationError(
                "it does not tell us whether it is locked; name a user who may (inprog, fsync, "
                "unlock on the cluster) and its password_file"
            ) from error
        raise
