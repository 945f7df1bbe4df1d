"""The TLS context for vCenter: verified, pinned, or knowingly neither.

pyVmomi's own thumbprint check is not used: it switches verification off on
the shared context after the first connection, and it turns verification off
by itself for loopback addresses when it is given no context.
"""

import hashlib
import hmac
import ssl
from typing import Any

from atoll.model.errors import ConfigurationError
from atoll.vsphere.settings import VCenterSettings


class _PinnedContext(ssl.SSLContext):
    """Accepts exactly one certificate, on every connection, whoever signed it."""

    pinned: str = ""

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(*arguments, **options)
        seen = hashlib.sha256(wrapped.getpeercert(binary_form=True) or b"").hexdigest()
        if not hmac.compare_digest(seen, self.pinned):
            wrapped.close()
            raise ssl.SSLCertVerificationError(f"the certificate's SHA-256 is {seen}")
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


def _unverified(context: ssl.SSLContext) -> ssl.SSLContext:
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
