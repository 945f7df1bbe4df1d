"""Connections to where a lease says that disks are sent or read.

`*` or `-` in place of a host is vCenter itself.
"""

import http.client
from urllib.parse import urlsplit

from atoll.model.errors import VCenterOperationError
from atoll.vsphere.nfc_lease import DeviceUrl
from atoll.vsphere.session import Session
from atoll.vsphere.tls import pinned_context

_DONE = (http.client.OK, http.client.CREATED, http.client.ACCEPTED, http.client.NO_CONTENT)
_SELF = ("*", "-")
_MAX_ANSWER_BYTES = 2000


def path_of(target: DeviceUrl) -> str:
    """What is asked for of the host."""
    url = urlsplit(target.url)
    return url.path + (f"?{url.query}" if url.query else "")


def connection_to(session: Session, target: DeviceUrl) -> tuple[http.client.HTTPSConnection, str]:
    """A connection to be opened, and the address for messages; VCenterOperationError for no https."""
    settings = session.settings
    url = urlsplit(target.url)
    if url.scheme != "https" or not url.hostname:
        raise VCenterOperationError(
            f"vCenter names {target.url} for a disk, which is no https address."
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


def require_done(response: http.client.HTTPResponse, where: str, what: str) -> None:
    """VCenterOperationError when it was refused."""
    if response.status not in _DONE:
        said = response.read(_MAX_ANSWER_BYTES).decode("utf-8", "replace")
        reason = " ".join(said.split()) if said.isprintable() and "<" not in said else ""
        raise VCenterOperationError(
            f"{where} refused {what}: {response.status} {response.reason}"
            f"{f', {reason}' if reason else ''}."
        )
