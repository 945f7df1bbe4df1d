"""Small objects: sealed under a key of their own, and the precious ones written twice."""

import secrets

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.keys import MasterKey

MAX_PLAIN_BYTES = 1 << 31
_MAGIC_BYTES = 8
_NONCE = bytes(12)


def new_name() -> str:
    """32 hex digits, 128 random bits: the last part of an object's name, used once."""
    return secrets.token_hex(16)


def magic(kind: str) -> bytes:
    """Eight bytes that begin an object: four letters of Atoll, three of the kind, the version."""
    return b"ATOL" + kind.encode("ascii") + b"\x01"


def seal(master: MasterKey, kind: str, name: str, plain: bytes) -> bytes:
    """Magic, then zstd of `plain` sealed with AES-256-GCM under a key only this object has.

    The key comes from the random name, so the fixed nonce is used once per key.
    """
    head = magic(kind)
    unique = bytes.fromhex(name)
    body = zstandard.ZstdCompressor(level=3).compress(plain)
    return head + AESGCM(master.derive(kind, unique)).encrypt(_NONCE, body, head + unique)


def unseal(master: MasterKey, kind: str, name: str, sealed: bytes) -> bytes:
    """What `seal` was given; RepositoryDamagedError if one bit differs."""
    head, unique = bytes(sealed[:_MAGIC_BYTES]), bytes.fromhex(name)
    try:
        # The seal covers the true beginning, so a damaged one is refused like any other bit.
        key = AESGCM(master.derive(kind, unique))
        body = key.decrypt(_NONCE, sealed[_MAGIC_BYTES:], head + unique)
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=MAX_PLAIN_BYTES)
    except (InvalidTag, ValueError, zstandard.ZstdError) as error:
        raise RepositoryDamagedError(
            f"Object {name} is not what was written ({str(error) or 'its seal is broken'}); "
            "verify the repository."
        ) from error


def checked(text: bytes) -> bytes:
    """A line of text and a second line with its BLAKE3, so that accidents show without a key."""
    line = text + b"\n"
    return line + blake3(line).hexdigest().encode() + b"\n"


def unchecked(block: bytes) -> bytes:
    """The line `checked` was given; RepositoryDamagedError if one bit differs."""
    line, _, rest = block.partition(b"\n")
    if block != checked(line) or not rest:
        raise RepositoryDamagedError(
            "A settings object of the repository is not what was written; verify the repository."
        )
    return line


def twice(block: bytes) -> bytes:
    """The same bytes two times, for objects whose loss would cost whole restore points."""
    return block + block


def halves(doubled: bytes) -> tuple[bytes, bytes]:
    """Both copies; of an odd or cut object neither will be good."""
    middle = len(doubled) // 2
    return doubled[:middle], doubled[middle:]
