"""X.509 as the agents' authority uses it: EC P-256 keys, and names in the SAN as URIs."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atoll.model.errors import ConfigurationError

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH

# Guests whose clock is a little behind must accept a certificate made just now.
_CLOCK_SKEW = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate, PEM. `fingerprint` is its SHA-256, hex; `expires_at` seconds since the epoch.

    `authority` is the fingerprint of the certificate it was signed with.
    """

    certificate: bytes
    fingerprint: str
    expires_at: float
    authority: str


@dataclass(frozen=True, slots=True)
class Issued(Signed):
    """A certificate and its private key, both PEM."""

    key: bytes

    @property
    def pem(self) -> bytes:
        """Both in one file, which one rename puts in place."""
        return self.certificate + self.key


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate authority's certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, certificate: Path, key: Path) -> "Signer":
        """Read both; ConfigurationError when they cannot be used or do not match."""
        signer = cls(read_certificate(certificate), read_key(key))
        if signer.certificate.public_key() != signer.key.public_key():
            raise ConfigurationError(
                f"{key} and {certificate.name} do not belong together; restore both from a backup."
            )
        return signer

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.certificate)

    def sign(
        self,
        common_name: str,
        uri: str,
        usages: Sequence[x509.ObjectIdentifier],
        public_key: ec.EllipticCurvePublicKey,
        days: float,
    ) -> Signed:
        """A certificate for that key, valid for `days` or as long as this one, what is shorter."""
        now = datetime.datetime.now(datetime.UTC)
        end = min(now + datetime.timedelta(days=days), self.certificate.not_valid_after_utc)
        certificate = (
            _builder(common_name, now, end)
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        return Signed(
            certificate=pem_of(certificate),
            fingerprint=fingerprint_of(certificate),
            expires_at=certificate.not_valid_after_utc.timestamp(),
            authority=self.fingerprint,
        )

    def issue(
        self, common_name: str, uri: str, usages: Sequence[x509.ObjectIdentifier], days: float
    ) -> Issued:
        """A certificate for a key that is made here."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self.sign(common_name, uri, usages, key.public_key(), days)
        return Issued(
            certificate=signed.certificate,
            fingerprint=signed.fingerprint,
            expires_at=signed.expires_at,
            authority=signed.authority,
            key=_key_pem(key),
        )


def make_authority(common_name: str, days: float) -> tuple[bytes, bytes]:
    """A new self-signed authority: certificate and key, PEM.

    Each has a name of its own, so that a verifier who trusts two of them never
    tries the wrong one.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        _builder(common_name, now, now + datetime.timedelta(days=days))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return pem_of(certificate), _key_pem(key)


def parse_public_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """A SubjectPublicKeyInfo on P-256; ValueError for anything else."""
    try:
        key = serialization.load_der_public_key(der)
    except UnsupportedAlgorithm as error:
        raise ValueError("not a key of a kind we know") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a P-256 key")  # noqa: TRY004 - the caller asks whether it is one
    return key


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file; ConfigurationError when there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The certificate {path} cannot be read.") from error


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key of a PEM file; ConfigurationError when it cannot be used."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"The key {path} cannot be read.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"The key {path} is not an elliptic curve key.")
    return key


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER encoding, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def pem_of(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    common_name: str, now: datetime.datetime, end: datetime.datetime
) -> x509.CertificateBuilder:
    # X.520 allows a common name of 64 characters at most; identity is in the SAN anyway.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(end)
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
