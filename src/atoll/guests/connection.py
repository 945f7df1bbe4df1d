"""One connection to an agent: certificates on both sides, the peer checked, each call limited in time."""

import hashlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from atoll.guests.authority import Credentials, agent_uri
from atoll.guests.registry import EnrolledAgent
from atoll.model.errors import AgentUnavailableError, ConfigurationError, HoldFailedError

_CONNECT_SECONDS = 10.0
_MAX_REPLY_BYTES = 1 << 20


class AgentConnection:
    """Connected on creation; carries one call at a time, any number one after the other.

    Once a call has raised ConnectionLostError the connection is of no more use.
    `fingerprint` is that of the certificate the agent showed.
    """

    def __init__(self, agent: EnrolledAgent, credentials: Credentials, seconds: float) -> None:
        self._agent = agent
        limit = min(seconds, _CONNECT_SECONDS)
        # Its connect() also turns off Nagle's algorithm, so that a request leaves at once.
        self._http = http.client.HTTPSConnection(
            agent.address, agent.port, timeout=limit, context=_context(credentials)
        )
        try:
            with self._limited(limit):
                self._http.connect()
                # Of a peer that is gone already, ssl says so only when asked for its certificate.
                self.fingerprint = self._check_identity(self._http.sock)
        except AgentUnavailableError:
            self.close()
            raise

    def call(
        self, method: str, path: str, body: Mapping[str, object] | None, seconds: float
    ) -> Mapping[str, Any]:
        """Ask and return the answer's object.

        Raises ConnectionLostError when no answer comes within `seconds`,
        HoldFailedError when the agent could not hold, AgentUnavailableError
        when it refuses otherwise or answers nonsense.
        """
        data = None if body is None else json.dumps(body).encode()
        with self._limited(seconds):
            if self._http.sock is None:
                # Left to itself, http.client would connect again and trust whoever answers.
                raise ConnectionAbortedError("the connection is closed")
            self._http.sock.settimeout(seconds)
            self._http.request(method, path, body=data)
            response = self._http.getresponse()
            received = response.read(_MAX_REPLY_BYTES + 1)
        with making_sense(self._agent.name):
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

    def close(self) -> None:
        """Hang up. Repeatable."""
        self._http.close()

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """Cuts the connection when `seconds` are over, and names what breaks in it."""
        who = f"The agent of {self._agent.name} at {self._agent.address}:{self._agent.port}"
        late = threading.Event()
        # A socket's timeout counts from its last byte; a slow peer must not stretch the call.
        guillotine = threading.Timer(seconds, _cut, (self._http, late))
        guillotine.daemon = True
        guillotine.start()
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if late.is_set() or isinstance(error, TimeoutError):
                why = f"nothing came within {seconds:g} s"
            elif isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                # Whoever does not trust us says so in an alert; this was an end without a word.
                why = "the connection ended"
            elif isinstance(error, ssl.SSLError):
                raise ConnectionLostError(
                    f"{who} is not trusted or does not trust us ({error.reason or error}); "
                    "enrol it again."
                ) from error
            else:
                why = str(getattr(error, "strerror", None) or error or type(error).__name__)
            raise ConnectionLostError(
                f"{who} does not answer ({why}); see whether it runs and can be reached."
            ) from error
        finally:
            guillotine.cancel()

    def _check_identity(self, connection: ssl.SSLSocket) -> str:
        """The authority signed this peer; is it the agent of this VM, and its certificate not void?"""
        agent = self._agent
        names = (connection.getpeercert() or {}).get("subjectAltName", ())
        binary = connection.getpeercert(binary_form=True) or b""
        if ("URI", agent_uri(agent.instance_uuid)) not in names:
            raise AgentUnavailableError(
                f"What answers at {agent.address}:{agent.port} is not the agent of {agent.name}; "
                "correct its address."
            )
        fingerprint = hashlib.sha256(binary).hexdigest()
        if fingerprint not in agent.accepted:
            raise AgentUnavailableError(
                f"The agent of {agent.name} shows a certificate that was replaced; "
                "install what its last enrolment wrote, or enrol it again."
            )
        return fingerprint


class ConnectionLostError(AgentUnavailableError):
    """No connection, or none any more; whether the agent heard is not known."""


@contextmanager
def making_sense(name: str) -> Iterator[None]:
    """Names the agent whose answer could not be read."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AgentUnavailableError(
            f"The agent of {name} gave an answer that makes no sense; "
            "install the agent of this version."
        ) from error


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


def _cut(connection: http.client.HTTPSConnection, late: threading.Event) -> None:
    late.set()
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
