"""Invitations to enrol: one-time tokens, and what the director keeps of them.

A token holds what the guest needs to find and trust the enrolment endpoint, and
a secret. Of the secret the director keeps what SCRAM keeps (RFC 5802,
section 3): enough to check a proof, not enough to make one. Each change is on
disk before it counts: a used token is used after any crash.
"""

import base64
import dataclasses
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from atoll.guests.files import write_atomically
from atoll.model.errors import AuthenticationError, ConfigurationError

MARK = "atoll1-"
MAX_ATTEMPTS = 5

_ID_BYTES, _SECRET_BYTES, _CHECKSUM_BYTES = 8, 20, 4
# Kept for a while after their end, so that a guest that comes late is told why.
_REMEMBERED_SECONDS = 7 * 86400.0
_NO = "The token is not valid; ask for a new one with `atoll agent invite`."


class EnrolmentRefusedError(AuthenticationError):
    """A guest may not enrol; the message is for its admin."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """One token as the director remembers it. Times are seconds since the epoch.

    `bios_uuid` is the VM's SMBIOS UUID by vCenter, empty when unknown. `address`
    is where the director will reach the agent; empty means whence it enrols.
    `port` is the agent's there, `listen_port` the one it opens. `used_by` is the SHA-256 of the
    public key that was enrolled with it, hex; empty until then.
    """

    id: str
    vm_name: str
    instance_uuid: str
    bios_uuid: str
    address: str
    port: int
    listen_port: int
    expires_at: float
    stored_key: str
    server_key: str
    attempts_left: int = MAX_ATTEMPTS
    used_by: str = ""

    @property
    def open(self) -> bool:
        """Whether a guest can still enrol with it for the first time."""
        return not self.used_by and self.attempts_left > 0 and time.time() < self.expires_at


class Invitations:
    """`invitations.json` in the agents' directory; safe between processes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "invitations.json"

    def all(self) -> tuple[Invitation, ...]:
        """Every invitation that is remembered. Raises ConfigurationError when unreadable."""
        try:
            return tuple(Invitation(**entry) for entry in json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"The invitations in {self._path} cannot be read; remove it and invite again."
            ) from error

    def create(
        self,
        *,
        vm_name: str,
        instance_uuid: str,
        bios_uuid: str,
        address: str,
        port: int,
        listen_port: int,
        valid_seconds: float,
        pin: str,
        endpoint: tuple[str, int],
    ) -> tuple[Invitation, str]:
        """A new invitation and its token, which is nowhere else.

        A VM has one invitation: what it had before is void. `pin` is the fingerprint of the
        endpoint's certificate, `endpoint` where guests reach it.
        """
        number, secret = secrets.token_bytes(_ID_BYTES), secrets.token_bytes(_SECRET_BYTES)
        invitation = Invitation(
            id=number.hex(),
            vm_name=vm_name,
            instance_uuid=instance_uuid,
            bios_uuid=bios_uuid,
            address=address,
            port=port,
            listen_port=listen_port,
            expires_at=time.time() + valid_seconds,
            stored_key=hashlib.sha256(_keyed(secret, b"atoll enrolment: guest")).hexdigest(),
            server_key=_keyed(secret, b"atoll enrolment: director").hex(),
        )
        with self._locked():
            others = [
                one
                for one in self.all()
                if one.instance_uuid != instance_uuid
                and one.expires_at > time.time() - _REMEMBERED_SECONDS
            ]
            self._write((*others, invitation))
        return invitation, _token(number, secret, bytes.fromhex(pin), endpoint)

    def withdraw(self, instance_uuid: str) -> None:
        """Void the VM's invitation. Absent is success."""
        with self._locked():
            self._write(tuple(one for one in self.all() if one.instance_uuid != instance_uuid))

    def check(self, number: str, message: bytes, proof: bytes) -> Invitation:
        """The invitation whose secret the peer has proven to know, whatever has become of it.

        Each call costs it an attempt, which is on disk before the proof is looked at and given
        back when it is good. Raises EnrolmentRefusedError, the same for an unknown number as for a
        wrong proof.
        """
        with self._locked():
            found = self._get(number)
            if found is None or found.attempts_left <= 0:
                raise EnrolmentRefusedError(_NO)
            self._put(dataclasses.replace(found, attempts_left=found.attempts_left - 1))
            if not _proves(found, message, proof):
                raise EnrolmentRefusedError(_NO)
            self._put(found)
            return found

    def use(self, number: str, public_key: bytes) -> Invitation:
        """Spend it on this key (DER), once for all; the same key may come again.

        Raises EnrolmentRefusedError when it is over or spent on another key.
        """
        used_by = hashlib.sha256(public_key).hexdigest()
        with self._locked():
            found = self._get(number)
            if found is None:
                raise EnrolmentRefusedError(_NO)
            if found.used_by and not hmac.compare_digest(found.used_by, used_by):
                raise EnrolmentRefusedError(
                    f"The token was used already to enrol {found.vm_name}. If that was not you, "
                    "enrol that VM again, which revokes the certificate; a new token is had with "
                    "`atoll agent invite`."
                )
            if time.time() >= found.expires_at:
                raise EnrolmentRefusedError(
                    f"The token for {found.vm_name} has expired; ask for a new one with "
                    "`atoll agent invite`."
                )
            spent = dataclasses.replace(found, used_by=used_by)
            self._put(spent)
            return spent

    def _get(self, number: str) -> Invitation | None:
        return next((one for one in self.all() if hmac.compare_digest(one.id, number)), None)

    def _put(self, invitation: Invitation) -> None:
        self._write(tuple(invitation if one.id == invitation.id else one for one in self.all()))

    def _write(self, invitations: tuple[Invitation, ...]) -> None:
        text = json.dumps([asdict(one) for one in invitations], indent=1) + "\n"
        write_atomically(self._path, text.encode(), 0o600)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Reading, changing and writing is one act, also between processes."""
        lock = self._path.with_name(".invitations.lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def confirmation(invitation: Invitation, message: bytes) -> bytes:
    """The director's proof that it made the token and means this message."""
    return _keyed(bytes.fromhex(invitation.server_key), message)


def same_machine(product_uuid: str, bios_uuid: str) -> bool:
    """Whether both name one VM.

    vCenter prints the first three fields of the SMBIOS UUID in the order of
    their bytes; a kernel that reads SMBIOS 2.6 or later, as newer virtual
    hardware has it, takes them for little-endian (DSP0134, 7.2.1).
    """
    theirs, ours = (text.lower().replace("-", "") for text in (product_uuid, bios_uuid))
    if len(theirs) != 32:
        return False
    swapped = "".join(
        "".join(reversed([part[i : i + 2] for i in range(0, len(part), 2)]))
        for part in (theirs[:8], theirs[8:12], theirs[12:16])
    )
    return ours in (theirs, swapped + theirs[16:])


def _proves(invitation: Invitation, message: bytes, proof: bytes) -> bool:
    stored = bytes.fromhex(invitation.stored_key)
    signature = _keyed(stored, message)
    if len(proof) != len(signature):
        return False
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), stored)


def _token(number: bytes, secret: bytes, pin: bytes, endpoint: tuple[str, int]) -> str:
    host, port = endpoint
    body = number + secret + pin + port.to_bytes(2, "big") + host.encode()
    checksum = hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
    return MARK + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")


def _keyed(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
