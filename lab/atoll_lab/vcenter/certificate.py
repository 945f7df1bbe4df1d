"""The simulator's self-signed TLS certificate, made once and kept."""

import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from atoll_lab.vcenter.state import write_atomically

_VALID = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Where certificate and key are; `thumbprint` is SHA-256 in hex with colons, `sha1` SHA-1."""

    certificate_file: Path
    key_file: Path
    thumbprint: str
    sha1: str


def certificate_in(directory: Path) -> Certificate:
    """The certificate for localhost kept in `directory`, made now if it is not there."""
    certificate_file, key_file = directory / "ca.pem", directory / "ca.key"
    if not certificate_file.exists():
        # The certificate is written last: when it is there its key is too.
        key_pem, certificate_pem = _make()
        write_atomically(key_file, key_pem)
        write_atomically(certificate_file, certificate_pem, mode=0o644)
    der = ssl.PEM_cert_to_DER_cert(certificate_file.read_text())
    thumbprint, sha1 = (
        made(der).digest().hex(":").upper() for made in (hashlib.sha256, hashlib.sha1)
    )
    return Certificate(certificate_file, key_file, thumbprint, sha1)


def _make() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Atoll lab vCenter")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName(
        [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
            x509.IPAddress(ipaddress.IPv6Address("::1")),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _VALID)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )
