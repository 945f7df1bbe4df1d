"""The enrolment endpoint: where a guest with a token gets its certificate.

It listens only while somebody runs it. Over TLS 1.3 with the certificate whose
fingerprint is in every token, one JSON object a line each way, as
`agent/atoll_agent/enrolment.py` explains. Whoever cannot prove a token learns
nothing, not even whether it exists.
"""

import base64
import json
import re
import secrets
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from atoll.guests.authority import Authority
from atoll.guests.certificates import parse_public_key
from atoll.guests.invitation import (
    EnrolmentRefusedError,
    Invitation,
    Invitations,
    confirmation,
    same_machine,
)
from atoll.guests.registry import AgentRegistry, EnrolledAgent
from atoll.model.errors import AtollError, ConfigurationError

DEFAULT_RECEPTION_PORT = 8444

_MAX_LINE_BYTES = 8192
_MAX_GUESTS = 16
_SECONDS = 20.0
_MAX_TEXT = 200
_NUMBER = re.compile(r"[0-9a-f]{16}\Z")
_PROOF = re.compile(r"[0-9a-f]{64}\Z")
_MACHINE = re.compile(r"[0-9a-f-]{0,36}\Z")


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of a guest that proved its token.

    `remark` is empty or what the admin should look at; with `enrolled` None it says why not.
    """

    invitation: Invitation
    peer: str
    hostname: str
    enrolled: EnrolledAgent | None
    remark: str


@dataclass(frozen=True, slots=True)
class _Request:
    token: str
    public_key: bytes
    product_uuid: str
    hostname: str


class Reception(socketserver.TCPServer):
    """Serves every open invitation of an authority while it is entered as a context.

    `on_arrival` is called from the guest's own thread. Raises ConfigurationError when it cannot
    listen there.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(
        self, authority: Authority, listen: tuple[str, int], on_arrival: Callable[[Arrival], None]
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        self._authority = authority
        self._on_arrival = on_arrival
        self._places = threading.BoundedSemaphore(_MAX_GUESTS)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_3
        self._tls.load_cert_chain(authority.enrolment_identity()[0])
        try:
            super().__init__(listen, socketserver.BaseRequestHandler)
        except OSError as error:
            raise ConfigurationError(
                f"The enrolment endpoint cannot listen on {listen[0]}:{listen[1]}: "
                f"{error.strerror}; choose another with --listen."
            ) from error
        self._thread = threading.Thread(target=self.serve_forever, name="reception", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(target=self._attend, args=(request, client_address), daemon=True).start()

    def _attend(self, request: socket.socket, client_address: Any) -> None:
        # A socket's timeout counts from its last byte; a peer that drips must not keep its place.
        guillotine = threading.Timer(_SECONDS, _cut, (request,))
        guillotine.daemon = True
        guillotine.start()
        try:
            request.settimeout(_SECONDS)
            # A duplicate, so that the one the timer cuts is not taken over by the TLS object.
            with (
                socket.socket(fileno=socket.dup(request.fileno())) as plain,
                self._tls.wrap_socket(plain, server_side=True) as tls,
            ):
                self._converse(tls, client_address[0])
        except (OSError, ValueError):
            # Strangers and guests that hung up; a guest sees it on its side and says so there.
            pass
        finally:
            guillotine.cancel()
            self.shutdown_request(request)
            self._places.release()

    def _converse(self, tls: ssl.SSLSocket, peer: str) -> None:
        nonce = secrets.token_hex(32)
        with tls.makefile("rwb") as stream:
            _send(stream, {"atoll": 1, "nonce": nonce})
            line = stream.readline(_MAX_LINE_BYTES)
            try:
                _send(stream, self._answer(line, nonce, peer))
            except AtollError as error:
                _send(stream, {"error": str(error)})
            except OSError as error:
                _send(stream, {"error": f"The director cannot write it down: {error.strerror}."})

    def _answer(self, line: bytes, nonce: str, peer: str) -> Mapping[str, str]:
        given = _object(line)
        request, proof = given.get("request"), given.get("proof")
        if not isinstance(request, str) or not isinstance(proof, str) or not _PROOF.match(proof):
            raise EnrolmentRefusedError("That is not a request to enrol.")
        asked = _read(request)
        said = (nonce + request).encode()
        invitations = Invitations(self._authority.directory)
        invitation = invitations.check(asked.token, said, bytes.fromhex(proof))
        try:
            remark = _compare(invitation, asked, peer)
            invitation = invitations.use(asked.token, asked.public_key)
        except EnrolmentRefusedError as error:
            self._on_arrival(Arrival(invitation, peer, asked.hostname, None, str(error)))
            raise
        reply = json.dumps(self._enter(invitation, asked, peer, remark))
        return {
            "reply": reply,
            "proof": confirmation(invitation, said + reply.encode()).hex(),
        }

    def _enter(
        self, invitation: Invitation, asked: _Request, peer: str, remark: str
    ) -> Mapping[str, object]:
        with Authority.steady(self._authority.directory, self._authority.leaf_days) as authority:
            signed = authority.sign_agent(
                invitation.vm_name, invitation.instance_uuid, parse_public_key(asked.public_key)
            )
            agent = EnrolledAgent(
                instance_uuid=invitation.instance_uuid,
                name=invitation.vm_name,
                address=invitation.address or peer,
                port=invitation.port,
                fingerprint=signed.fingerprint,
                expires_at=signed.expires_at,
                authority=signed.authority,
                trusts=authority.trusted_fingerprints,
            )
            # Before the answer: should that be lost, the guest asks again with the same key.
            AgentRegistry(authority.directory).put(agent)
        self._on_arrival(Arrival(invitation, peer, asked.hostname, agent, remark))
        return {
            "certificate": signed.certificate.decode(),
            "authorities": authority.trusted.decode(),
            "name": invitation.vm_name,
            "instance_uuid": invitation.instance_uuid,
            "port": invitation.listen_port,
        }


def _compare(invitation: Invitation, asked: _Request, peer: str) -> str:
    """Refuse a guest that is another VM; otherwise what could not be compared."""
    if not invitation.bios_uuid:
        return ""
    if not asked.product_uuid:
        return f"{asked.hostname or peer} could not tell its UUID, so it was not compared."
    if not same_machine(asked.product_uuid, invitation.bios_uuid):
        raise EnrolmentRefusedError(
            f"The token is for {invitation.vm_name}, whose UUID is {invitation.bios_uuid}, and "
            f"this guest's is {asked.product_uuid}: it seems to be another VM. The token can "
            "still be used; `atoll agent invite --any-guest` makes one that is not compared."
        )
    return ""


def _read(request: str) -> _Request:
    """The request's fields, each in its form; EnrolmentRefusedError for anything else."""
    fields = _object(request.encode())
    token, uuid = fields.get("token"), fields.get("product_uuid")
    hostname, key = fields.get("hostname"), fields.get("public_key")
    good = (
        isinstance(token, str)
        and _NUMBER.match(token)
        and isinstance(uuid, str)
        and _MACHINE.match(uuid)
        and isinstance(hostname, str)
        and isinstance(key, str)
    )
    if good:
        with suppress(ValueError):
            public_key = base64.b64decode(str(key), validate=True)
            parse_public_key(public_key)
            return _Request(str(token), public_key, str(uuid), str(hostname)[:_MAX_TEXT])
    raise EnrolmentRefusedError("The request to enrol makes no sense; install the current agent.")


def _object(line: bytes) -> Mapping[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    raise EnrolmentRefusedError("That is not a request to enrol.")


def _send(stream: Any, what: Mapping[str, object]) -> None:
    stream.write(json.dumps(what).encode() + b"\n")
    stream.flush()


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
