"""The TLS context for vCenter: verified, pinned, or knowingly neither.

pyVmomi's own thumbprint check is not used: it switches verification off on
the shared context after the first connection, and it turns verification off
by itself for loopback addresses when it is given no context.
"""

import hashlib
import hmac
import ssl
from typing import Any

from atoll.model.errors import ConfigurationError, VCenterOperationError
from atoll.vsphere.settings import VCenterSettings


class _PinnedContext(ssl.SSLContext):
    """Accepts exactly one certificate, on every connection, whoever signed it."""

    pinned: str = ""
    digest: str = "sha256"

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(*arguments, **options)
        content = wrapped.getpeercert(binary_form=True) or b""
        seen = hashlib.new(self.digest, content).hexdigest()
        if not hmac.compare_digest(seen, self.pinned):
            wrapped.close()
            name = self.digest.upper().replace("SHA", "SHA-")
            raise ssl.SSLCertVerificationError(f"the certificate's {name} is {seen}")
        return wrapped


def tls_context(settings: VCenterSettings) -> ssl.SSLContext:
    """A context as the settings ask; ConfigurationError when the CA file cannot be used."""
    if settings.thumbprint is not None:
        pinned = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
        pinned.pinned = settings.pinned
        return _unverified(pinned)
    if settings.insecure:
        return _unverified(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"Cannot use {settings.ca_file} to verify vCenter {settings.host}: "
            f"{error.strerror or error}; it must be a PEM file of certificates."
        ) from error


def pinned_context(thumbprint: str) -> ssl.SSLContext:
    """Accepts the certificate of that thumbprint alone, SHA-1 or SHA-256 in hex with colons.

    vCenter names the hosts' certificates by SHA-1. VCenterOperationError for any other length.
    """
    pinned = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    pinned.pinned = thumbprint.replace(":", "").lower()
    digest = {40: "sha1", 64: "sha256"}.get(len(pinned.pinned))
    if digest is None:
        raise VCenterOperationError(
            f"vCenter names a certificate by {thumbprint!r}, which is neither SHA-1 nor SHA-256."
        )
    pinned.digest = digest
    return _unverified(pinned)


def _unverified(context: ssl.SSLContext) -> ssl.SSLContext:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
