"""TLS to a server of this guest, for servers that speak nothing else."""

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError


@dataclass(frozen=True)
class Tls:
    """Files in PEM: who must have signed the server's certificate, and ours if it wants one."""

    authority: str
    certificate: str | None = None
    key: str | None = None

    @staticmethod
    def of(entry: ApplicationConfig | None) -> "Tls | None":
        """What an entry asks for by `tls_authority`, `tls_certificate` and `tls_key`, if anything."""
        authority = entry.text("tls_authority") if entry else None
        if entry is None or authority is None:
            return None
        return Tls(authority, entry.text("tls_certificate"), entry.text("tls_key"))

    @staticmethod
    def from_arguments(given: Mapping[str, Any] | None) -> "Tls | None":
        """What `dataclasses.asdict` made of one."""
        return None if given is None else Tls(**given)


def wrap(plain: socket.socket, tls: Tls, deadline: Deadline) -> ssl.SSLSocket:
    """Shake hands by the deadline. Raises ApplicationError; then the socket is closed.

    The server's name is not checked: we connect to this guest itself, which
    its certificate need not name.
    """
    try:
        context = ssl.create_default_context(cafile=tls.authority)
        context.check_hostname = False
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        plain.settimeout(max(deadline.remaining, 0.001))
        return context.wrap_socket(plain)
    except (OSError, ValueError) as error:
        plain.close()
        raise ApplicationError(f"TLS with the server failed: {error}") from error
