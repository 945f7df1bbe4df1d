"""Keys: where the master key comes from, what opens it, and what is derived from it."""

import os
import secrets
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.model.errors import RepositoryKeyError
from atoll.repository import recovery_key

_KEY_FILE_PREFIX = "atoll-key-1:"


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
                f"Could not read the key file {self.path}: {error}; name a file that was made "
                "for the repository."
            ) from error
        try:
            secret = bytes.fromhex(text.removeprefix(_KEY_FILE_PREFIX))
        except ValueError:
            secret = b""
        if not text.startswith(_KEY_FILE_PREFIX) or len(secret) != 32:
            raise RepositoryKeyError(
                f"{self.path} is not an Atoll key file; name a file that was made for the "
                "repository."
            )
        return secret


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """256 random bits on paper, as `recovery_key` writes them."""

    text: str = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A new one from the operating system's random bits."""
        return cls(recovery_key.written(secrets.token_bytes(recovery_key.SECRET_BYTES)))

    def secret(self) -> bytes:
        """The 32 bytes; RepositoryKeyError if the text has a typing mistake."""
        return recovery_key.understood(self.text)


KeySource = Passphrase | KeyFile | RecoveryKey


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

    def sealed(self, wrapping_key: bytes, bound: bytes) -> bytes:
        """This key, sealed under another that seals nothing else, so the fixed nonce is used once."""
        return AESGCM(wrapping_key).encrypt(bytes(12), self._secret, bound)

    @classmethod
    def opened(cls, wrapping_key: bytes, sealed: bytes, bound: bytes) -> Self | None:
        """What `sealed` was called on; None if the other key or `bound` is not the same."""
        try:
            return cls(AESGCM(wrapping_key).decrypt(bytes(12), sealed, bound))
        except InvalidTag:
            return None


def wrapping_key(source: KeySource, salt: bytes, cost: Argon2Cost) -> bytes:
    """32 bytes from what somebody holds; `cost` is for passphrases."""
    if isinstance(source, KeyFile):
        context = "atoll repository v1 key file"
        return blake3(source.secret() + salt, derive_key_context=context).digest()
    if isinstance(source, RecoveryKey):
        context = "atoll repository v1 recovery key"
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
