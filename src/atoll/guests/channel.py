"""Calls an agent over HTTPS with certificates on both sides; implements GuestAgent."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from atoll.guests.authority import Credentials
from atoll.guests.connection import AgentConnection, ConnectionLostError, making_sense
from atoll.guests.interface import (
    Findings,
    FoundApplication,
    FoundFilesystem,
    Frozen,
    GuestStatus,
    Thawed,
)
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.consistency import ApplicationState
from atoll.model.errors import AgentUnavailableError, ConfigurationError

_STATUS_SECONDS = 10.0
# Looking for applications asks some of them which version they are.
_LOOK_SECONDS = 60.0
_PREPARE_SECONDS = 660.0
_THAW_SECONDS = 30.0
# A connection that went dead in silence must not keep the guest held for the whole of that.
_KEPT_THAW_SECONDS = 10.0
# On top of the budget: the way there and back, and letting go when it could not be held.
_FREEZE_MARGIN_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """A connection kept for a run, and how the guest's clock stood when it was measured on it."""

    run: str
    connection: AgentConnection
    clock: GuestStatus


class AgentChannel:
    """The agent of one VM. Thread-safe.

    The connection of `prepare` or `freeze` is kept until the run's `thaw`,
    because a new one takes a guest that is short of CPU a second. Every other
    call has a connection of its own. With a `registry`, each connection goes by
    what that says of the agent then, so that a channel outlives renewals of the
    certificate, and tells it which certificate the agent showed.
    """

    def __init__(
        self,
        agent: EnrolledAgent,
        credentials: Credentials,
        registry: AgentRegistry | None = None,
    ) -> None:
        self._agent = agent
        self._credentials = credentials
        self._registry = registry
        self._lock = threading.Lock()
        self._kept: _Kept | None = None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; what the agent holds or is ready for is untouched. Repeatable."""
        self._keep(None)

    def prepare(self, run: str) -> None:
        connection = self._connect(_PREPARE_SECONDS)
        try:
            connection.call("POST", "/v1/prepare", {"run": run}, _PREPARE_SECONDS)
            # Here and not at the freeze: by then other guests may stand still already.
            clock = self._measure(connection)
        except BaseException:
            connection.close()
            raise
        self._keep(_Kept(run, connection, clock))

    def freeze(self, run: str, lease_seconds: float, budget_seconds: float) -> Frozen:
        order = {"run": run, "lease_seconds": lease_seconds, "budget_seconds": budget_seconds}
        seconds = budget_seconds + _FREEZE_MARGIN_SECONDS
        started = time.monotonic()
        kept = self._take(run)
        if kept is not None:
            try:
                return self._freeze(kept, order, seconds)
            except ConnectionLostError:
                # Hung up at once, it cost nothing and may be asked again, which is harmless.
                # Silence has used the budget up, and the guests that are held wait.
                if time.monotonic() - started > budget_seconds:
                    raise
        connection = self._connect(seconds)
        try:
            clock = self._measure(connection)
        except BaseException:
            connection.close()
            raise
        return self._freeze(_Kept(run, connection, clock), order, seconds)

    def thaw(self, run: str, snapshot: bool | None = None) -> Thawed:
        order: dict[str, object] = {"run": run}
        if snapshot is not None:
            order["snapshot"] = snapshot
        kept = self._take(run)
        if kept is not None:
            try:
                reply = kept.connection.call("POST", "/v1/thaw", order, _KEPT_THAW_SECONDS)
                return self._thawed(reply)
            except ConnectionLostError:
                # Repeating a thaw gives the same answer, so a lost one is asked for again below.
                pass
            finally:
                kept.connection.close()
        connection = self._connect(_THAW_SECONDS)
        try:
            return self._thawed(connection.call("POST", "/v1/thaw", order, _THAW_SECONDS))
        finally:
            connection.close()

    def vmware_account(self) -> str | None:
        """What the agent says of the last hold that VMware Tools asked for, unread; see `account`.

        None when there was none since the guest's start. Raises
        AgentUnavailableError when it does not answer in time.
        """
        connection = self._connect(_STATUS_SECONDS)
        try:
            reply = connection.call("GET", "/v1/vmware", None, _STATUS_SECONDS)
        finally:
            connection.close()
        with making_sense(self._agent.name):
            account = reply["account"]
            return None if account is None else str(account)

    def status(self) -> GuestStatus:
        connection = self._connect(_STATUS_SECONDS)
        try:
            # The first answer pays for the handshake; the second one is measured.
            self._measure(connection)
            return self._measure(connection)
        finally:
            connection.close()

    def look(self) -> Findings:
        reply = self.ask("GET", "/v1/look", None, _LOOK_SECONDS)
        with making_sense(self._agent.name):
            return Findings(
                applications=tuple(
                    FoundApplication(
                        kind=str(entry["kind"]),
                        name=str(entry["name"]),
                        remark=str(entry["remark"]),
                    )
                    for entry in reply["applications"]
                ),
                filesystems=tuple(
                    FoundFilesystem(
                        mount=str(entry["mount"]),
                        fstype=str(entry["fstype"]),
                        source=str(entry["source"]),
                    )
                    for entry in reply["filesystems"]
                ),
            )

    def ask(
        self, method: str, path: str, body: Mapping[str, object] | None, seconds: float
    ) -> Mapping[str, Any]:
        """One call on a connection of its own; raises as AgentConnection.call does."""
        connection = self._connect(seconds)
        try:
            return connection.call(method, path, body, seconds)
        finally:
            connection.close()

    def _connect(self, seconds: float) -> AgentConnection:
        if self._registry is None:
            return AgentConnection(self._agent, self._credentials, seconds)
        try:
            agent = self._registry.get(self._agent.instance_uuid)
        except ConfigurationError:
            # A list that is damaged now must not keep anybody from thawing.
            agent = self._agent
        if agent is None:
            raise AgentUnavailableError(
                f"The agent of {self._agent.name} is not enrolled any more; enrol it again."
            )
        connection = AgentConnection(agent, self._credentials, seconds)
        if connection.fingerprint != agent.fingerprint:
            # Noted the next time otherwise; a full disk must not cost a hold.
            with suppress(OSError):
                self._registry.confirm(agent.instance_uuid, connection.fingerprint)
        return connection

    def _take(self, run: str) -> _Kept | None:
        """Take over the connection kept for the run, if there is one."""
        with self._lock:
            kept = self._kept
            if kept is None or kept.run != run:
                return None
            self._kept = None
            return kept

    def _keep(self, kept: _Kept | None) -> None:
        with self._lock:
            former, self._kept = self._kept, kept
        if former is not None:
            former.connection.close()

    def _freeze(self, kept: _Kept, order: Mapping[str, object], seconds: float) -> Frozen:
        try:
            reply = kept.connection.call("POST", "/v1/freeze", order, seconds)
        finally:
            # For the thaw, also after a refusal; one that is closed is seen there.
            self._keep(kept)
        with making_sense(self._agent.name):
            return Frozen(
                run=str(reply["run"]),
                began_at=float(reply["began_at"]),
                frozen_at=float(reply["frozen_at"]),
                applications=tuple(_application(entry) for entry in reply["applications"]),
                filesystems=tuple(str(entry) for entry in reply["filesystems"]),
                clock_offset_seconds=kept.clock.clock_offset_seconds,
                clock_error_seconds=kept.clock.clock_error_seconds,
                freeze_seconds=float(reply.get("freeze_seconds", 0.0)),
            )

    def _thawed(self, reply: Mapping[str, Any]) -> Thawed:
        with making_sense(self._agent.name):
            frozen_at = reply["frozen_at"]
            return Thawed(
                run=str(reply["run"]),
                # Only a clear yes is one.
                held=reply["held"] is True,
                reason=str(reply["reason"]),
                frozen_at=None if frozen_at is None else float(frozen_at),
                thawed_at=float(reply["thawed_at"]),
            )

    def _measure(self, connection: AgentConnection) -> GuestStatus:
        asked, started = time.time(), time.monotonic()
        reply = connection.call("GET", "/v1/status", None, _STATUS_SECONDS)
        half = (time.monotonic() - started) / 2
        with making_sense(self._agent.name):
            guest_time = float(reply["guest_time"])
            return GuestStatus(
                version=str(reply["version"]),
                name=str(reply["name"]),
                instance_uuid=str(reply["instance_uuid"]),
                state=str(reply["state"]),
                run=str(reply["run"]),
                guest_time=guest_time,
                uptime_seconds=float(reply["uptime_seconds"]),
                clock_offset_seconds=guest_time - (asked + half),
                clock_error_seconds=half,
            )


def open_channels(
    agents: tuple[EnrolledAgent, ...],
    credentials: Credentials,
    registry: AgentRegistry | None = None,
) -> Mapping[str, AgentChannel]:
    """A channel for each enrolled agent, by instance UUID; nothing is connected yet."""
    return {agent.instance_uuid: AgentChannel(agent, credentials, registry) for agent in agents}


def _application(entry: Mapping[str, Any]) -> ApplicationState:
    witness = entry["witness"]
    return ApplicationState(
        kind=str(entry["kind"]),
        name=str(entry["name"]),
        held=entry["held"] is True,
        position=str(entry["position"]),
        witness=None if witness is None else str(witness),
        flush_seconds=float(entry["flush_seconds"]),
        detail=str(entry["detail"]),
    )
