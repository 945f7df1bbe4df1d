"""Certificates an agent must not obey."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atoll.guests.authority import DIRECTOR_URI, Authority


def client_certificate(kind: str, authority: Authority, where: Path) -> Path:
    """A file with certificate and key that claims to be the director's, wrong in one way."""
    path = where / "client.pem"
    if kind == "another authority's":
        path.write_bytes(Authority.open(where / "other").issue_director().pem)
    elif kind == "an agent's":
        path.write_bytes(authority.issue_agent("app1", "u-2").pem)
    else:
        path.write_bytes(_made(kind, authority))
    return path


def _made(kind: str, authority: Authority) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    begin, end = {
        "expired": (now - 3 * day, now - 2 * day),
        "not yet valid": (now + 2 * day, now + 3 * day),
    }.get(kind, (now - day, now + day))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "atoll-director")])
    signer = authority._signer
    own = kind == "self-signed"
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if own else signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(DIRECTOR_URI)]), False
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(key if own else signer.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
