"""The guest's certificate and whom it trusts: the files, and how they are replaced.

Certificate and key are one file, so that one rename replaces both. What a
renewal makes on its way lies beside it as `next.key`. After a kill at any
moment the agent starts with the old pair or the new one, and the director
accepts both until it has seen the new one (docs/operations/agent.md).
"""

import os
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from atoll_agent.config import Config
from atoll_agent.errors import AgentError, BadRequestError, ConfigError
from atoll_agent.keys import new_key

_NEXT = "next.key"


class Identity:
    """Thread-safe. `context` is for the connections that come in from now on."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._next = config.certificate.parent / _NEXT
        self._renewing = threading.Lock()
        self.context = self._load()

    def new_key(self, undisturbed: Callable[[], AbstractContextManager[None]]) -> bytes:
        """Make the key of the next certificate; returns the public half, DER.

        A key that was made before and not certified yet is forgotten. Writes
        within `undisturbed`, which raises when that must not be now.
        """
        if self._config.certificate != self._config.key:
            raise AgentError(
                "This guest was enrolled by an older version, whose certificates are not renewed; "
                "enrol it again."
            )
        private, public = new_key()
        with self._renewing, _named_failures(), undisturbed():
            write_private(self._next, private)
        return public

    def install(
        self,
        certificate: str,
        authorities: str,
        undisturbed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Take the certificate made for the last `new_key`, and whom to trust from now on.

        Raises BadRequestError, with nothing changed, when a peer that trusts
        these authorities would not take the certificate for this VM's.
        """
        with self._renewing:
            try:
                key = self._next.read_bytes()
            except FileNotFoundError as error:
                raise BadRequestError("No key waits for a certificate.") from error
            pem = certificate.encode() + key
            check_identity(pem, authorities, self._config.instance_uuid)
            with _named_failures(), undisturbed():
                # Whom to trust comes first: it includes whoever signed what is there now.
                write_private(self._config.authority, authorities.encode())
                write_private(self._config.certificate, pem)
                self._next.unlink(missing_ok=True)
            self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        config = self._config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        # One connection serves a whole run; nothing is to be kept for a later one.
        context.num_tickets = 0
        try:
            context.load_cert_chain(config.certificate, config.key)
            context.load_verify_locations(config.authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"The certificate {config.certificate}, its key or {config.authority} cannot be "
                f"used ({error}); enrol this guest again."
            ) from error
        return context


def check_identity(pem: bytes, authorities: str, instance_uuid: str) -> None:
    """Shake hands with oneself; BadRequestError says why another would not trust the certificate.

    `pem` is certificate and key. Python's `ssl` parses a certificate only for a
    peer that has verified it.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    try:
        with _in_memory(pem) as path:
            server.load_cert_chain(path)
        client.load_verify_locations(cadata=authorities)
        names = _peer_names(server, client)
    except (OSError, ValueError) as error:
        raise BadRequestError(f"The certificate does not do: {error}.") from error
    if ("URI", f"urn:uuid:{instance_uuid.lower()}") not in names:
        raise BadRequestError("The certificate is another guest's.")


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path`, readable by its owner alone, so that any crash leaves old or new."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # which Windows has not, nor directories to open
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def sweep(directory: Path) -> None:
    """Remove what a write that was killed left beside its file."""
    for left in directory.glob(".*.????????"):
        if left.name.startswith((".agent.", ".ca.", ".next.")):
            left.unlink(missing_ok=True)


@contextmanager
def _named_failures() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AgentError(
            f"The guest cannot write its certificate ({error.strerror}); nothing was replaced."
        ) from error


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path from which OpenSSL can read what should not be on a disk; Windows has no such path."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "identity.pem"
            path.write_bytes(data)
            yield str(path)
        return
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _peer_names(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[tuple[str, str], ...]:
    """The subject alternative names the client verified."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    ours = client.wrap_bio(to_client, to_server)
    # Two flights each way are a whole handshake of TLS 1.3.
    for side in (ours, theirs, ours):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    certificate = ours.getpeercert() or {}
    return tuple(certificate.get("subjectAltName", ()))  # type: ignore[arg-type]
