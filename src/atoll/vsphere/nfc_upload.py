"""Sending a disk to where a lease says, as a stream whose length nobody knows beforehand.

A disk is sent by POST (PUT is for files that are no disks) as stream-optimised VMDK, chunked, as
VMware's own samples for OVF imports do. `*` or `-` in place of a host is vCenter itself.
"""

import http.client
import ssl
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

from atoll.model.errors import (
    AuthenticationError,
    VCenterOperationError,
    VCenterUnreachableError,
)
from atoll.vsphere.nfc_lease import DeviceUrl
from atoll.vsphere.session import Session
from atoll.vsphere.tls import pinned_context

_TYPE = "application/x-vnd.vmware-streamVmdk"
_DONE = (http.client.OK, http.client.CREATED, http.client.ACCEPTED, http.client.NO_CONTENT)
_SELF = ("*", "-")
_MAX_ANSWER_BYTES = 2000


def upload(session: Session, target: DeviceUrl, parts: Iterable[bytes], what: str) -> None:
    """Send a disk; `what` names it in messages.

    VCenterUnreachableError when the connection breaks, VCenterOperationError when the disk is
    refused, AuthenticationError for a wrong certificate. What `parts` raises passes.
    """
    connection, where = _connection(session, target)
    path = urlsplit(target.url)
    headers = {"Content-Type": _TYPE, "Transfer-Encoding": "chunked"}
    wanted = path.path + (f"?{path.query}" if path.query else "")
    try:
        try:
            connection.request("POST", wanted, _Sent(parts), headers, encode_chunked=True)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # Whoever refuses a disk may say so and hang up before the end.
            with suppress(OSError, http.client.HTTPException):
                _require_done(connection.getresponse(), where, what)
            raise
        _require_done(connection.getresponse(), where, what)
    except ssl.SSLCertVerificationError as error:
        reason = getattr(error, "verify_message", "") or error.args[-1]
        raise AuthenticationError(
            f"The certificate of {where}, to which {what} is sent, was refused: {reason}."
        ) from error
    except _SourceFailedError as failed:
        raise failed.reason from failed.reason.__cause__
    except (OSError, http.client.HTTPException) as error:
        why = "it took too long" if isinstance(error, TimeoutError) else str(error)
        raise VCenterUnreachableError(
            f"The connection to {where} broke while {what} was sent: {why or type(error).__name__}; "
            "see whether the host runs, and restore again."
        ) from error
    finally:
        connection.close()


class _SourceFailedError(Exception):
    """Reading what was to be sent failed, which must not look like a broken connection."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Sent:
    """The parts, so that an OSError of theirs is known for one."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)

    def __iter__(self) -> "_Sent":
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._parts)
        except OSError as error:
            raise _SourceFailedError(error) from error


def _connection(session: Session, target: DeviceUrl) -> tuple[http.client.HTTPSConnection, str]:
    settings = session.settings
    url = urlsplit(target.url)
    if url.scheme != "https" or not url.hostname:
        raise VCenterOperationError(
            f"vCenter says that a disk is to be sent to {target.url}, which is no https address."
        )
    host, port = url.hostname, url.port or http.client.HTTPS_PORT
    context = session.tls
    if host in _SELF:
        host, port = settings.host, settings.port
    elif target.thumbprint and (host, port) != (settings.host, settings.port):
        # Hosts have certificates of their own; vCenter, which was verified, says which.
        context = pinned_context(target.thumbprint)
    connection = http.client.HTTPSConnection(
        host, port, timeout=settings.answer_seconds, context=context
    )
    return connection, f"{host}:{port}"


def _require_done(response: http.client.HTTPResponse, where: str, what: str) -> None:
    said = response.read(_MAX_ANSWER_BYTES).decode("utf-8", "replace")
    if response.status not in _DONE:
        reason = " ".join(said.split()) if said.isprintable() and "<" not in said else ""
        raise VCenterOperationError(
            f"{where} refused {what}: {response.status} {response.reason}"
            f"{f', {reason}' if reason else ''}."
        )
