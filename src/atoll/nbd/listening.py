"""Where a server listens: a UNIX socket, or TCP on this machine or under TLS."""

import ipaddress
import os
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from atoll.model.errors import ConfigurationError, RestoreTargetError

DEFAULT_PORT = 10809
"""What IANA registered for NBD."""

_BACKLOG = 16
_KEEPALIVE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A UNIX socket, for this user alone. A path has at most 107 bytes."""

    path: Path


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate and key, and the authority that signs its clients'."""

    certificate: Path
    key: Path
    client_authority: Path

    @classmethod
    def of(cls, directory: Path) -> "TlsFiles":
        """A directory with the file names that QEMU and libnbd use as well."""
        return cls(
            directory / "server-cert.pem", directory / "server-key.pem", directory / "ca-cert.pem"
        )


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """TCP, with port 0 for any free one. With `tls` clients must show a certificate.

    Without, only this machine's own addresses are accepted.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tls: TlsFiles | None = None


Address = UnixAddress | TcpAddress


class Listener:
    """A listening socket and what its clients call it.

    Raises RestoreTargetError when it cannot be made and ConfigurationError for
    certificates that cannot be used, or an address that needs them and has none.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._stopped = False
        self.tls: ssl.SSLContext | None = None
        if isinstance(address, UnixAddress):
            self.socket = _listen_unix(address.path)
        else:
            self.tls = tls_context(address.tls) if address.tls else None
            self.socket = _listen_tcp(address)

    def uri(self, export: str) -> str:
        """The address of an export (doc/uri.md of the NBD project)."""
        name = quote(export, safe="/")
        if isinstance(self._address, UnixAddress):
            return f"nbd+unix:///{name}?socket={quote(str(self._address.path))}"
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        scheme = "nbds" if self.tls else "nbd"
        return f"{scheme}://{host}:{self.socket.getsockname()[1]}/{name}"

    def accept(self) -> socket.socket | None:
        """The next client; None once `stop` was called."""
        while True:
            try:
                connection, _ = self.socket.accept()
                if connection.family != socket.AF_UNIX:
                    _prepare(connection)
            except OSError:
                if self._stopped:
                    return None
                # That client was gone at once, or this process has too much open: soon less.
                time.sleep(0.1)
                continue
            return connection

    def stop(self) -> None:
        """End `accept`, from another thread."""
        self._stopped = True
        self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the socket and of its file."""
        self.socket.close()
        if isinstance(self._address, UnixAddress):
            self._address.path.unlink(missing_ok=True)


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 with a client's certificate demanded; ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # nobody resumes: a session lasts as long as a backup
    try:
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.client_authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"The certificates for NBD cannot be used ({error.strerror or error}): "
            f"{files.certificate}, {files.key} and {files.client_authority} must be PEM files that "
            "belong together."
        ) from error
    return context


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        _clear_leftover(path)
        # The mode of a socket file is the socket's own at bind: no moment of being open to all.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise RestoreTargetError(
            f"No NBD socket can be made at {path} ({error.strerror or error}); choose a shorter or"
            " another path."
        ) from error
    return listener


def _clear_leftover(path: Path) -> None:
    """A socket nobody listens on was left by a process that was killed."""
    # Connecting to what is no socket is refused in the same way, and must cost nobody a file.
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return


def _listen_tcp(address: TcpAddress) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, place = found[0]
        # Of the very address that is bound: a name could be another one at the next look.
        if address.tls is None and not ipaddress.ip_address(place[0]).is_loopback:
            raise ConfigurationError(
                f"NBD on {address.host} without TLS would show these disks to the whole network;"
                " give certificates, or listen on 127.0.0.1."
            )
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, error) from error
    return listener


def _cannot_listen(address: TcpAddress, error: OSError) -> RestoreTargetError:
    return RestoreTargetError(
        f"NBD cannot listen on {address.host} port {address.port} ({error.strerror or error});"
        " choose another address or port."
    )


def _prepare(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A client whose machine vanished must not keep its place for ever.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
