"""The director's certificate authority: it signs the director and the agents, and nobody else."""

import datetime
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atoll.guests.files import write_atomically
from atoll.model.errors import ConfigurationError

DIRECTOR_URI = "urn:atoll:director"

_AUTHORITY_DAYS = 20 * 365
_LEAF_DAYS = 10 * 365
# Guests whose clock is a little behind must accept a certificate made just now.
_CLOCK_SKEW = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, both PEM. `fingerprint` is the certificate's SHA-256, hex."""

    certificate: bytes
    key: bytes
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files with which the director calls agents."""

    certificate: Path
    key: Path
    authority: Path


class Authority:
    """EC P-256 keys in a directory of mode 0700; each key file has mode 0600."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = _read_key(directory / "ca.key")
        self._certificate = _read_certificate(directory / "ca.crt")
        if self._certificate.public_key() != self._key.public_key():
            raise ConfigurationError(
                f"{directory}/ca.key and ca.crt do not belong together; restore both from a backup."
            )

    @classmethod
    def open(cls, directory: Path) -> "Authority":
        """Load the authority, made on first use together with the director's own certificate.

        Safe to call from several processes and to repeat after a crash. Raises
        ConfigurationError when what is there cannot be used.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(directory):
                if not (directory / "ca.crt").exists():
                    _make_authority(directory)
                authority = cls(directory)
                if not (directory / "director.crt").exists():
                    authority._make_director()
        except OSError as error:
            raise ConfigurationError(
                f"The agents' directory {directory} cannot be used: {error.strerror}."
            ) from error
        return authority

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM: what agents trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def credentials(self) -> Credentials:
        """What the director shows to agents."""
        return Credentials(
            certificate=self.directory / "director.crt",
            key=self.directory / "director.key",
            authority=self.directory / "ca.crt",
        )

    def issue_agent(self, vm_name: str, instance_uuid: str) -> Issued:
        """A server certificate whose SAN is the VM's instance UUID (`urn:uuid:…`)."""
        return self._issue(vm_name, agent_uri(instance_uuid), [ExtendedKeyUsageOID.SERVER_AUTH])

    def issue_director(self) -> Issued:
        """A client certificate that says it is the director."""
        return self._issue("atoll-director", DIRECTOR_URI, [ExtendedKeyUsageOID.CLIENT_AUTH])

    def _make_director(self) -> None:
        issued = self.issue_director()
        write_atomically(self.directory / "director.key", issued.key, 0o600)
        # Last, because its presence says that the pair is whole.
        write_atomically(self.directory / "director.crt", issued.certificate, 0o644)

    def _issue(self, common_name: str, uri: str, usages: Sequence[x509.ObjectIdentifier]) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(common_name, _LEAF_DAYS)
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
            )
            .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=_pem(key),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )


def agent_uri(instance_uuid: str) -> str:
    """The SAN of the agent in the VM with that instance UUID."""
    return f"urn:uuid:{instance_uuid.lower()}"


def _make_authority(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("Atoll agents", _AUTHORITY_DAYS)
    certificate = (
        builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Atoll agents")]))
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
    write_atomically(directory / "ca.key", _pem(key), 0o600)
    # Last, because its presence says that the pair is whole.
    write_atomically(
        directory / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644
    )


def _builder(common_name: str, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    # X.520 allows a common name of 64 characters at most; identity is in the SAN anyway.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"The authority's key {path} cannot be read.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"The authority's key {path} is not an elliptic curve key.")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The authority's certificate {path} cannot be read.") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time makes or loads; the kernel drops the lock of a dead one."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
