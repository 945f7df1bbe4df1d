"""Calls an agent over HTTPS with certificates on both sides; implements GuestAgent."""

import hashlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from atoll.guests.authority import Credentials, agent_uri
from atoll.guests.interface import Frozen, GuestStatus, Thawed
from atoll.guests.registry import EnrolledAgent
from atoll.model.consistency import ApplicationState
from atoll.model.errors import AgentUnavailableError, ConfigurationError, HoldFailedError

_CONNECT_SECONDS = 10.0
_STATUS_SECONDS = 10.0
_PREPARE_SECONDS = 660.0
_THAW_SECONDS = 30.0
# On top of the budget: starting the watchdog and the way there and back.
_FREEZE_MARGIN_SECONDS = 20.0
_MAX_REPLY_BYTES = 1 << 20


class AgentChannel:
    """The agent of one VM. Thread-safe: every call has a connection of its own."""

    def __init__(self, agent: EnrolledAgent, credentials: Credentials) -> None:
        self._agent = agent
        self._credentials = credentials

    def prepare(self, run: str) -> None:
        with self._connected(_PREPARE_SECONDS) as connection:
            self._call(connection, "POST", "/v1/prepare", {"run": run})

    def freeze(self, run: str, lease_seconds: float, budget_seconds: float) -> Frozen:
        with self._connected(budget_seconds + _FREEZE_MARGIN_SECONDS) as connection:
            # Measured first, while the guest is quiet and on a connection that stands already.
            status = self._status(connection)
            reply = self._call(
                connection,
                "POST",
                "/v1/freeze",
                {"run": run, "lease_seconds": lease_seconds, "budget_seconds": budget_seconds},
            )
        with self._reading():
            return Frozen(
                run=str(reply["run"]),
                frozen_at=float(reply["frozen_at"]),
                applications=tuple(_application(entry) for entry in reply["applications"]),
                filesystems=tuple(str(entry) for entry in reply["filesystems"]),
                clock_offset_seconds=status.clock_offset_seconds,
                clock_error_seconds=status.clock_error_seconds,
            )

    def thaw(self, run: str) -> Thawed:
        with self._connected(_THAW_SECONDS) as connection:
            reply = self._call(connection, "POST", "/v1/thaw", {"run": run})
        with self._reading():
            frozen_at = reply["frozen_at"]
            return Thawed(
                run=str(reply["run"]),
                # Only a clear yes is one.
                held=reply["held"] is True,
                reason=str(reply["reason"]),
                frozen_at=None if frozen_at is None else float(frozen_at),
                thawed_at=float(reply["thawed_at"]),
            )

    def status(self) -> GuestStatus:
        with self._connected(_STATUS_SECONDS) as connection:
            # The first answer pays for the handshake; the second one is measured.
            self._status(connection)
            return self._status(connection)

    def _status(self, connection: http.client.HTTPSConnection) -> GuestStatus:
        asked, started = time.time(), time.monotonic()
        reply = self._call(connection, "GET", "/v1/status", None)
        half = (time.monotonic() - started) / 2
        with self._reading():
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

    def _call(
        self,
        connection: http.client.HTTPSConnection,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
    ) -> Mapping[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, body=data)
        response = connection.getresponse()
        received = response.read(_MAX_REPLY_BYTES + 1)
        with self._reading():
            if len(received) > _MAX_REPLY_BYTES:
                raise ValueError("too long")
            reply = json.loads(received)
            if not isinstance(reply, dict):
                raise TypeError("not an object")
        if response.status == 200:
            return reply
        said = str(reply.get("message", f"status {response.status}"))[:500]
        if response.status in {409, 424}:
            raise HoldFailedError(f"Guest {self._agent.name} could not be held: {said}")
        raise AgentUnavailableError(f"The agent of {self._agent.name} refused: {said}")

    @contextmanager
    def _connected(self, seconds: float) -> Iterator[http.client.HTTPSConnection]:
        """A checked connection that ends when `seconds` are over, whatever is going on on it."""
        agent = self._agent
        context = _context(self._credentials)
        connection = http.client.HTTPSConnection(
            agent.address, agent.port, timeout=min(seconds, _CONNECT_SECONDS), context=context
        )
        # A socket's timeout counts from its last byte; a slow peer must not stretch the call.
        guillotine = threading.Timer(seconds, _cut, (connection,))
        guillotine.daemon = True
        guillotine.start()
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            self._check_identity(connection.sock)
            yield connection
        except ssl.SSLError as error:
            raise AgentUnavailableError(
                f"The agent of {agent.name} at {agent.address}:{agent.port} is not trusted or does "
                f"not trust us ({error.reason or error}); enrol it again."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise AgentUnavailableError(
                f"The agent of {agent.name} at {agent.address}:{agent.port} does not answer "
                f"({error or type(error).__name__}); see whether it runs and can be reached."
            ) from error
        finally:
            guillotine.cancel()
            connection.close()

    def _check_identity(self, connection: ssl.SSLSocket) -> None:
        """The authority signed this peer; is it the agent of this VM, with its newest certificate?"""
        agent = self._agent
        names = (connection.getpeercert() or {}).get("subjectAltName", ())
        binary = connection.getpeercert(binary_form=True) or b""
        if ("URI", agent_uri(agent.instance_uuid)) not in names:
            raise AgentUnavailableError(
                f"What answers at {agent.address}:{agent.port} is not the agent of {agent.name}; "
                "correct its address."
            )
        if hashlib.sha256(binary).hexdigest() != agent.fingerprint:
            raise AgentUnavailableError(
                f"The agent of {agent.name} shows a certificate that was replaced; "
                "install what its last enrolment wrote."
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AgentUnavailableError(
                f"The agent of {self._agent.name} gave an answer that makes no sense; "
                "install the agent of this version."
            ) from error


def open_channels(
    agents: tuple[EnrolledAgent, ...], credentials: Credentials
) -> Mapping[str, AgentChannel]:
    """A channel for each enrolled agent, by instance UUID; nothing is connected yet."""
    return {agent.instance_uuid: AgentChannel(agent, credentials) for agent in agents}


def _context(credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Guests move between addresses; _check_identity looks at who they are instead.
    context.check_hostname = False
    try:
        context.load_cert_chain(credentials.certificate, credentials.key)
        context.load_verify_locations(credentials.authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"The director's certificate {credentials.certificate} cannot be used: {error}."
        ) from error
    return context


def _cut(connection: http.client.HTTPSConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


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
