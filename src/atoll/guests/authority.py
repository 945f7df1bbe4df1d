"""The director's certificate authority: it signs the director and the agents, and nobody else.

Its directory holds one or two generations of it. `authority.json` alone says
which signs and which are trusted, so that a switch is one rename:

    ca.crt, ca.key       the first generation; ca-2.crt, ca-2.key the second, …
    authority.json       {"signing": 1, "trusted": [1]}, which is also what its absence means
    trusted.crt          the trusted generations' certificates, made from the above
    director.pem         the director's own certificate and key
    enrolment.pem        the same of the enrolment endpoint, whose fingerprint is in every token
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from atoll.guests.certificates import (
    CLIENT,
    SERVER,
    Issued,
    Signed,
    Signer,
    fingerprint_of,
    make_authority,
    pem_of,
    read_certificate,
    read_key,
)
from atoll.guests.files import write_atomically
from atoll.model.errors import ConfigurationError

DIRECTOR_URI = "urn:atoll:director"
ENROLMENT_URI = "urn:atoll:enrolment"

LEAF_DAYS = 90.0
"""How long a certificate of an agent or the director is valid unless the settings say otherwise."""

RENEWAL_SHARE = 1 / 3
"""A certificate is due when less than this share of its life is left."""

_AUTHORITY_DAYS = 20 * 365
_SUCCESSION_LOCK = ".succession.lock"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files with which the director calls agents; certificate and key may be one file."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class _Generations:
    signing: int
    trusted: tuple[int, ...]


class Authority:
    """EC P-256 keys in a directory of mode 0700; each file with a key has mode 0600.

    Signs for `leaf_days`. What it says is as it was when it was opened; the
    steps of a succession (`prepare_successor`, `succeed`, `retire`) give the
    authority as it is after them.
    """

    def __init__(self, directory: Path, leaf_days: float = LEAF_DAYS) -> None:
        self.directory = directory
        self.leaf_days = leaf_days
        self._generations = _read_generations(directory)
        self._signer = Signer.load(*_files(directory, self._generations.signing))
        self._trusted = tuple(
            read_certificate(_files(directory, number)[0]) for number in self._generations.trusted
        )

    @classmethod
    def open(cls, directory: Path, leaf_days: float = LEAF_DAYS) -> "Authority":
        """Load the authority, made on first use, and renew the director's own certificate when due.

        Safe to call from several processes and to repeat after a crash. Raises
        ConfigurationError when what is there cannot be used.
        """
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(directory):
                if not (directory / "ca.crt").exists() and not _record(directory).exists():
                    _make_generation(directory, 1)
                return cls._opened(directory, leaf_days)
        except OSError as error:
            raise ConfigurationError(
                f"The agents' directory {directory} cannot be used: {error.strerror}."
            ) from error

    @classmethod
    @contextmanager
    def steady(cls, directory: Path, leaf_days: float) -> Iterator["Authority"]:
        """The authority as it is now and stays meanwhile; `changing` waits for its end.

        For whoever signs something and writes down by which authority: a
        succession that went on in between would lock that agent out.
        """
        with _flocked(directory / _SUCCESSION_LOCK, fcntl.LOCK_SH):
            yield cls.open(directory, leaf_days)

    @classmethod
    @contextmanager
    def changing(cls, directory: Path, leaf_days: float) -> Iterator["Authority"]:
        """The authority to a single caller, who may take a step of the succession."""
        with _flocked(directory / _SUCCESSION_LOCK, fcntl.LOCK_EX):
            yield cls.open(directory, leaf_days)

    @property
    def trusted(self) -> bytes:
        """The certificates that agents are to trust, PEM: two during a succession."""
        return b"".join(pem_of(certificate) for certificate in self._trusted)

    @property
    def trusted_fingerprints(self) -> tuple[str, ...]:
        """The same by their SHA-256, hex, the oldest first."""
        return tuple(fingerprint_of(certificate) for certificate in self._trusted)

    @property
    def signing_fingerprint(self) -> str:
        """Which of them signs now."""
        return self._signer.fingerprint

    @property
    def expires_at(self) -> float:
        """When the one that signs expires, seconds since the epoch."""
        return self._signer.certificate.not_valid_after_utc.timestamp()

    @property
    def credentials(self) -> Credentials:
        """What the director shows to agents, and whom it trusts."""
        own = self.directory / "director.pem"
        return Credentials(certificate=own, key=own, authority=self.directory / "trusted.crt")

    def issue_agent(self, vm_name: str, instance_uuid: str) -> Issued:
        """A server certificate whose SAN is the VM's instance UUID (`urn:uuid:…`), with its key."""
        return self._signer.issue(vm_name, agent_uri(instance_uuid), [SERVER], self.leaf_days)

    def sign_agent(
        self, vm_name: str, instance_uuid: str, public_key: ec.EllipticCurvePublicKey
    ) -> Signed:
        """The same for a key that never left the guest."""
        return self._signer.sign(
            vm_name, agent_uri(instance_uuid), [SERVER], public_key, self.leaf_days
        )

    def issue_director(self) -> Issued:
        """A client certificate that says it is the director."""
        return self._signer.issue("atoll-director", DIRECTOR_URI, [CLIENT], self.leaf_days)

    def enrolment_identity(self) -> tuple[Path, str]:
        """The file with certificate and key of the enrolment endpoint, and the fingerprint.

        Made on first use and then kept for good: guests trust it by its
        fingerprint, which their token holds, and look at no date.
        """
        path = self.directory / "enrolment.pem"
        with _locked(self.directory):
            if not path.exists():
                issued = self._signer.issue(
                    "atoll-enrolment", ENROLMENT_URI, [SERVER], _AUTHORITY_DAYS
                )
                write_atomically(path, issued.pem, 0o600)
        return path, fingerprint_of(read_certificate(path))

    def prepare_successor(self) -> "Authority":
        """Make the next generation, trusted from now on; the present one goes on signing.

        Does nothing while a succession is under way.
        """
        with _locked(self.directory):
            now = _read_generations(self.directory)
            if len(now.trusted) == 1:
                _make_generation(self.directory, now.signing + 1)
                self._switch(_Generations(now.signing, (*now.trusted, now.signing + 1)))
            return self._opened(self.directory, self.leaf_days)

    def succeed(self) -> "Authority":
        """Let the newest trusted generation sign, and delete the key of the one before. Repeatable.

        Whoever does not trust the new one by now does not obey the director any more.
        """
        with _locked(self.directory):
            now = _read_generations(self.directory)
            self._switch(_Generations(now.trusted[-1], now.trusted))
            return self._opened(self.directory, self.leaf_days)

    def retire(self) -> "Authority":
        """Trust only the generation that signs. Repeatable.

        Agents whose certificates an older one signed are not trusted any more.
        """
        with _locked(self.directory):
            now = _read_generations(self.directory)
            self._switch(_Generations(now.signing, (now.signing,)))
            return self._opened(self.directory, self.leaf_days)

    def _switch(self, to: _Generations) -> None:
        text = json.dumps({"signing": to.signing, "trusted": to.trusted}) + "\n"
        write_atomically(_record(self.directory), text.encode(), 0o600)

    @classmethod
    def _opened(cls, directory: Path, leaf_days: float) -> "Authority":
        """Under the lock: load, and bring what follows from `authority.json` up to date."""
        authority = cls(directory, leaf_days)
        for number in range(1, authority._generations.signing):
            # A key that will not sign again can only be stolen.
            _files(directory, number)[1].unlink(missing_ok=True)
        bundle = directory / "trusted.crt"
        if not bundle.exists() or bundle.read_bytes() != authority.trusted:
            write_atomically(bundle, authority.trusted, 0o644)
        own = directory / "director.pem"
        if not own.exists() or authority._outdated(own):
            write_atomically(own, authority.issue_director().pem, 0o600)
        return authority

    def _outdated(self, own: Path) -> bool:
        """Whether a certificate of ours is damaged, due, or of a generation that does not sign."""
        try:
            certificate = read_certificate(own)
            read_key(own)
            certificate.verify_directly_issued_by(self._signer.certificate)
        except (ConfigurationError, ValueError, TypeError, InvalidSignature):
            return True
        return is_due(expiry(certificate), self.leaf_days)


def agent_uri(instance_uuid: str) -> str:
    """The SAN of the agent in the VM with that instance UUID."""
    return f"urn:uuid:{instance_uuid.lower()}"


def is_due(expires_at: float, leaf_days: float) -> bool:
    """Whether a certificate that is issued for `leaf_days` should be renewed by now."""
    return expires_at - time.time() < leaf_days * 86400 * RENEWAL_SHARE


def expiry(certificate: x509.Certificate) -> float:
    """Seconds since the epoch."""
    return certificate.not_valid_after_utc.timestamp()


def _record(directory: Path) -> Path:
    return directory / "authority.json"


def _files(directory: Path, number: int) -> tuple[Path, Path]:
    """Certificate and key of a generation."""
    stem = "ca" if number == 1 else f"ca-{number}"
    return directory / f"{stem}.crt", directory / f"{stem}.key"


def _make_generation(directory: Path, number: int) -> None:
    name = "Atoll agents" if number == 1 else f"Atoll agents {number}"
    certificate, key = make_authority(name, _AUTHORITY_DAYS)
    certificate_path, key_path = _files(directory, number)
    write_atomically(key_path, key, 0o600)
    # Last, because its presence says that the pair is whole.
    write_atomically(certificate_path, certificate, 0o644)


def _read_generations(directory: Path) -> _Generations:
    path = _record(directory)
    try:
        given = json.loads(path.read_bytes())
        found = _Generations(int(given["signing"]), tuple(int(one) for one in given["trusted"]))
    except FileNotFoundError:
        return _Generations(1, (1,))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(f"{path} cannot be read; restore it from a backup.") from error
    if found.signing not in found.trusted:
        raise ConfigurationError(f"{path} contradicts itself; restore it from a backup.")
    return found


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time makes or loads; the kernel drops the lock of a dead one."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _flocked(path: Path, how: int) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
