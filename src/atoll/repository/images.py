"""What stands at the root of a disk image and of a blob: small records that name the rest."""

import struct
from dataclasses import dataclass

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import NAME_BYTES
from atoll.repository.pages import levels
from atoll.repository.sealing import magic

_DISK = struct.Struct("<8sQII32s")
_BLOB = struct.Struct("<8sQ")
_DISK_MAGIC, _BLOB_MAGIC = magic("DSK"), magic("BLB")


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """A disk image: its size, the chunk size, and the top page of its chunk table."""

    size_bytes: int
    chunk_bytes: int
    top: bytes

    @property
    def chunks(self) -> int:
        """How many chunks the disk has; the last may be shorter."""
        return -(-self.size_bytes // self.chunk_bytes)

    def to_bytes(self) -> bytes:
        """The stored form: 56 bytes."""
        return _DISK.pack(
            _DISK_MAGIC, self.size_bytes, self.chunk_bytes, levels(self.chunks), self.top
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "DiskRecord":
        """Read the stored form; RepositoryDamagedError if it is something else."""
        if len(data) == _DISK.size:
            mark, size, chunk, depth, top = _DISK.unpack(data)
            record = cls(size, chunk, top)
            if mark == _DISK_MAGIC and chunk and depth == levels(record.chunks):
                return record
        raise RepositoryDamagedError(
            "A restore point's root is no disk image; name a disk of a restore point of this "
            "repository."
        )


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """A blob: its size and the names of its pieces in order."""

    size_bytes: int
    pieces: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """The stored form: 16 bytes and 32 for each piece."""
        return _BLOB.pack(_BLOB_MAGIC, self.size_bytes) + b"".join(self.pieces)

    @classmethod
    def from_bytes(cls, data: bytes) -> "BlobRecord":
        """Read the stored form; RepositoryDamagedError if it is something else."""
        if len(data) >= _BLOB.size and (len(data) - _BLOB.size) % NAME_BYTES == 0:
            mark, size = _BLOB.unpack_from(data)
            if mark == _BLOB_MAGIC:
                pieces = range(_BLOB.size, len(data), NAME_BYTES)
                return cls(size, tuple(data[at : at + NAME_BYTES] for at in pieces))
        raise RepositoryDamagedError(
            "A name that a restore point gives for a blob is none; verify the repository."
        )


def name_of(reference: str) -> bytes:
    """The 32 bytes of a hex name; RepositoryDamagedError if it is none."""
    try:
        name = bytes.fromhex(reference)
    except ValueError:
        name = b""
    if len(name) != NAME_BYTES:
        raise RepositoryDamagedError(
            f"{reference!r} names nothing in a repository; a name is 64 hex digits."
        )
    return name
