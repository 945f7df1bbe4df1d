"""Pauses a Redis server's writes, brings what it has on disk up to date, and lets go.

Runs in the dead-man's process: a pause goes on when the connection that asked
for it is gone. It has a time limit of its own as well, so that even when every
process of the agent is killed the server goes on.
"""

import shlex
import time
from collections.abc import Mapping
from typing import Any

from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.lifeline import HOLD_SECONDS
from atoll_agent.modules.redisstate import (
    FIRST_VERSION,
    State,
    as_text,
    read_state,
    saves_by_itself,
)
from atoll_agent.modules.resp import Connection, RefusedError
from atoll_agent.modules.serversocket import Endpoint, NobodyThereError

# A key that nobody has: removing it writes nothing, but a paused server does not even try.
_CANARY = ("UNLINK", "atoll:canary")
_POLL_SECONDS = 0.01
_SYNC_SECONDS = 2.0
# A save takes as long as the last one, or a little longer.
_SAVE_MARGIN = 1.5
_FRESH_SAVE_SECONDS = 0.5
_MAX_WITNESS = 4096


class RedisHolder:
    """One server's hold (`deadman.Holder`)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: Connection | None = None
        self._canary: Connection | None = None
        self._pause = Deadline(0)
        self._before: State | None = None

    def open(self, deadline: Deadline) -> Mapping[str, Any]:
        self._connection = Connection(self._endpoint, deadline)
        check_version(read_state(self._connection, deadline))
        return {}

    def hold(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """`{"witness"}` → `{"position", "witness", "remarks"}`."""
        connection = self._connected(deadline)
        state = read_state(connection, deadline)
        check_version(state)
        if state.loading:
            raise ApplicationError("it is still loading its data")
        connection.ask(deadline, "CLIENT", "PAUSE", str(int(HOLD_SECONDS * 1000)), "WRITE")
        self._pause = Deadline(HOLD_SECONDS)
        remarks = []
        if not self._place_canary(state, deadline):
            remarks.append("whether the pause is unbroken is judged by the server's counters")
        remarks += self._bring_to_disk(connection, deadline)
        answer, remark = self._witness(connection, arguments["witness"], deadline)
        self._before = read_state(connection, deadline)
        return {
            "position": self._before.position,
            "witness": answer,
            "remarks": [each for each in (*remarks, remark) if each],
        }

    def ask(self, arguments: Mapping[str, Any], deadline: Deadline) -> Mapping[str, Any]:
        """`{"question": "ready"}` before the hold, `"held"` during it: raises when it is broken."""
        connection = self._connected(deadline)
        if arguments["question"] == "ready":
            read_state(connection, deadline)
            return {}
        before, now = self._before, read_state(connection, deadline)
        if before is None or now.run_id != before.run_id:
            raise ApplicationError("the server was started anew")
        if self._pause.passed:
            raise ApplicationError("the pause of its writes ended by itself")
        if self._canary is not None and self._canary.answered():
            raise ApplicationError("something else ended the pause of its writes")
        if now.offset != before.offset or now.changes > before.changes:
            raise ApplicationError("it was written to while it was paused")
        return {}

    def release(self, deadline: Deadline) -> None:
        if self._canary is not None:
            # Hung up before the pause ends: then it never runs.
            self._canary.close()
            self._canary = None
        try:
            try:
                self._connected(deadline).ask(deadline, "CLIENT", "UNPAUSE")
            except RefusedError:
                raise
            except ApplicationError:
                self._disconnect()
                self._connected(deadline).ask(deadline, "CLIENT", "UNPAUSE")
        except NobodyThereError:
            # A server that is gone has taken its pause with it.
            return
        except ApplicationError:
            self._disconnect()
            raise

    def _connected(self, deadline: Deadline) -> Connection:
        """The connection, made anew if the server has hung up on an idle one."""
        if self._connection is not None and self._connection.answered():
            self._disconnect()
        if self._connection is None:
            self._connection = Connection(self._endpoint, deadline)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _place_canary(self, state: State, deadline: Deadline) -> bool:
        """Leave a write waiting, whose answer would tell that the pause has ended.

        A replica refuses it at once, and so does a server that does not allow us to write.
        """
        if state.replica:
            return True
        self._canary = Connection(self._endpoint, deadline)
        self._canary.send(deadline, *_CANARY)
        # Commands are run in the order they arrive, so a refusal is here before this answer.
        read_state(self._connected(deadline), deadline)
        time.sleep(_POLL_SECONDS)
        if self._canary.answered():
            self._canary.close()
            self._canary = None
            return False
        return True

    def _bring_to_disk(self, connection: Connection, deadline: Deadline) -> list[str]:
        """Have on disk what is in memory; returns what the restore should know."""
        state = read_state(connection, deadline)
        remarks = []
        if state.replica and not state.synchronised:
            remarks.append("it is a replica that has lost its primary")
        if state.appending:
            self._await_append(connection, deadline)
        elif not saves_by_itself(connection, deadline):
            remarks.append("it keeps nothing on disk: a restored server starts without data")
        elif state.changes or state.saving:
            self._save(connection, state, deadline)
        return remarks

    def _await_append(self, connection: Connection, deadline: Deadline) -> None:
        """Until all that was acknowledged has been written to the append-only file."""
        while True:
            state = read_state(connection, deadline)
            if state.append_failed:
                raise ApplicationError("it cannot write its append-only file; see the server's log")
            if not state.beginning and (
                _synced(connection, deadline) or not (state.buffered_bytes or state.syncing)
            ):
                return
            if deadline.passed:
                raise ApplicationError("its append-only file was not up to date in time")
            time.sleep(_POLL_SECONDS)

    def _save(self, connection: Connection, state: State, deadline: Deadline) -> None:
        """Write a snapshot file, if that can be done in time."""
        while state.saving:
            # One that began before the pause may lack the last writes.
            state = _next_state(connection, deadline)
        if not state.changes:
            return
        expected = max(state.save_seconds * _SAVE_MARGIN, _FRESH_SAVE_SECONDS)
        if expected > deadline.remaining:
            raise ApplicationError(
                f"it has no append-only file, and saving its memory takes about {expected:.0f} s "
                f"of the {deadline.remaining:.0f} s left: the point holds its file of "
                f"{_clock(state.saved_at)}, {state.changes} changes ago"
            )
        connection.ask(deadline, "BGSAVE")
        state = _next_state(connection, deadline)
        while state.saving:
            state = _next_state(connection, deadline)
        if state.save_failed or state.changes:
            raise ApplicationError("it could not save its memory; see the server's log")

    def _witness(
        self, connection: Connection, command: str | None, deadline: Deadline
    ) -> tuple[str | None, str]:
        """The witness's answer and, without one, why: it must never cost the hold itself."""
        if not command:
            return None, ""
        try:
            return run_witness(connection, command, deadline), ""
        except RefusedError as error:
            return None, f"the witness did not answer: {error}"


def check_version(state: State) -> None:
    """ApplicationError for a server whose pause could not be ended again."""
    if state.version < FIRST_VERSION:
        version = ".".join(map(str, state.version))
        raise ApplicationError(f"version {version} cannot be held; it takes 6.2 or later")


def run_witness(connection: Connection, command: str, deadline: Deadline) -> str:
    """What a command that only reads answers; RefusedError for others."""
    words = shlex.split(command)
    answer = connection.ask(deadline, "COMMAND", "INFO", words[0])
    flags = answer[0][2] if isinstance(answer, list) and isinstance(answer[0], list) else None
    if not isinstance(flags, list) or "readonly" not in flags:
        raise RefusedError(f"{words[0]} is not a command that only reads")
    return as_text(connection.ask(deadline, *words))[:_MAX_WITNESS]


def _synced(connection: Connection, deadline: Deadline) -> bool:
    """Whether Redis 7.2 or Valkey says that the append-only file is on disk.

    False where nobody knows: freezing the file system syncs what has been written.
    """
    milliseconds = max(1, int(deadline.within(_SYNC_SECONDS).remaining * 1000))
    try:
        answer = connection.ask(deadline, "WAITAOF", "1", "0", str(milliseconds))
    except RefusedError:
        return False
    return isinstance(answer, list) and answer[:1] == [1]


def _next_state(connection: Connection, deadline: Deadline) -> State:
    if deadline.passed:
        raise ApplicationError("it did not save its memory in time")
    time.sleep(_POLL_SECONDS)
    return read_state(connection, deadline)


def _clock(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
