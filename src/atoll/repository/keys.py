"""Keys: where the master key comes from, how it is wrapped, and what is derived from it."""

import json
import os
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.model.errors import RepositoryDamagedError, RepositoryKeyError

_KEY_FILE_PREFIX = "atoll-key-1:"
_MAX_MEMORY_KIB = 4 << 20  # a forged slot must not make the reader allocate without limit
_MAX_PASSES = 1 << 10
_MAX_LANES = 1 << 8


@dataclass(frozen=True, slots=True)
class Argon2Cost:
    """Argon2id parameters (RFC 9106). The default takes about half a second on two cores."""

    memory_kib: int = 256 << 10
    passes: int = 3
    lanes: int = 4


@dataclass(frozen=True, slots=True)
class Passphrase:
    """A passphrase, taken as UTF-8 in Unicode normal form C. `cost` matters for new slots only."""

    text: str = field(repr=False)
    cost: Argon2Cost = Argon2Cost()


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A file with one line: `atoll-key-1:` and 64 hex digits, 256 random bits."""

    path: Path

    def secret(self) -> bytes:
        """The 32 bytes in the file; RepositoryKeyError if it is absent or something else."""
        try:
            text = self.path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RepositoryKeyError(
                f"Could not read the key file {self.path}: {error}; name the file that was made "
                "with the repository."
            ) from error
        try:
            secret = bytes.fromhex(text.removeprefix(_KEY_FILE_PREFIX))
        except ValueError:
            secret = b""
        if not text.startswith(_KEY_FILE_PREFIX) or len(secret) != 32:
            raise RepositoryKeyError(
                f"{self.path} is not an Atoll key file; name the file that was made with the "
                "repository."
            )
        return secret


KeySource = Passphrase | KeyFile


def create_key_file(path: Path) -> KeyFile:
    """A new key file, readable by its owner only; RepositoryKeyError if the path is taken."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{_KEY_FILE_PREFIX}{secrets.token_hex(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RepositoryKeyError(
            f"Could not make the key file {path}: {error.strerror}; choose another path."
        ) from error
    return KeyFile(path)


class MasterKey:
    """The one secret of a repository; everything else is derived from it by purpose."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def generate(cls) -> Self:
        """256 bits from the operating system."""
        return cls(secrets.token_bytes(32))

    def derive(self, purpose: str, salt: bytes = b"") -> bytes:
        """32 bytes: BLAKE3 derive_key with the purpose as context over the key and the salt."""
        context = f"atoll repository v1 {purpose}"
        return blake3(self._secret + salt, derive_key_context=context).digest()

    @property
    def key_id(self) -> str:
        """Names the key without telling it: 16 hex digits."""
        return self.derive("key id")[:8].hex()

    def wrapped(self, source: KeySource, repository: str) -> bytes:
        """A key slot: this key, sealed for who holds `source`."""
        salt = secrets.token_bytes(16)
        cost = source.cost if isinstance(source, Passphrase) else Argon2Cost(0, 0, 0)
        slot: dict[str, Any] = {
            "repository": repository,
            "key": self.key_id,
            "kind": _kind(source),
            "salt": salt.hex(),
            "memory_kib": cost.memory_kib,
            "passes": cost.passes,
            "lanes": cost.lanes,
        }
        sealer = AESGCM(_wrapping_key(source, salt, cost))
        slot["wrapped"] = sealer.encrypt(bytes(12), self._secret, _bound(slot)).hex()
        return json.dumps(slot, sort_keys=True).encode()

    @classmethod
    def unwrapped(cls, source: KeySource, repository: str, slot_json: bytes) -> Self | None:
        """The master key of a slot, or None if the slot is for another key or repository."""
        try:
            slot = json.loads(slot_json)
            cost = Argon2Cost(int(slot["memory_kib"]), int(slot["passes"]), int(slot["lanes"]))
            salt, sealed = bytes.fromhex(slot["salt"]), bytes.fromhex(slot["wrapped"])
            bound = _bound(slot)
        except (ValueError, KeyError, TypeError) as error:
            raise RepositoryDamagedError(
                f"A key slot of the repository has no readable {error}; restore the `keys` folder "
                "from a copy."
            ) from error
        if slot["repository"] != repository or slot["kind"] != _kind(source):
            return None
        if (
            cost.memory_kib > _MAX_MEMORY_KIB
            or cost.passes > _MAX_PASSES
            or cost.lanes > _MAX_LANES
        ):
            return None
        try:
            sealer = AESGCM(_wrapping_key(source, salt, cost))
            return cls(sealer.decrypt(bytes(12), sealed, bound))
        except InvalidTag:
            return None


def _kind(source: KeySource) -> str:
    return "passphrase" if isinstance(source, Passphrase) else "file"


def _bound(slot: dict[str, Any]) -> bytes:
    """What the seal of a slot vouches for besides the key."""
    fields = ("repository", "key", "kind", "salt", "memory_kib", "passes", "lanes")
    return "|".join(["atoll key slot v1", *(str(slot[field]) for field in fields)]).encode()


def _wrapping_key(source: KeySource, salt: bytes, cost: Argon2Cost) -> bytes:
    if isinstance(source, KeyFile):
        context = "atoll repository v1 key file"
        return blake3(source.secret() + salt, derive_key_context=context).digest()
    return hash_secret_raw(
        secret=unicodedata.normalize("NFC", source.text).encode(),
        salt=salt,
        time_cost=cost.passes,
        memory_cost=cost.memory_kib,
        parallelism=cost.lanes,
        hash_len=32,
        type=Type.ID,
    )
