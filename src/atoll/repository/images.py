"""What stands at the root of a disk image and of a blob: small records that name the rest."""

import struct
from dataclasses import dataclass

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.chunks import NAME_BYTES
from atoll.repository.sealing import magic

_DISK = struct.Struct("<8sQII32s")
_BLOB = struct.Struct("<8sQ")
_DISK_MAGIC, _BLOB_MAGIC = magic("DSK"), magic("BLB")
FIXED, CUT = 1, 2
"""Versions of disks: chunks of one size, and chunks that end where their content says."""
PAGE_NAMES = 256


def levels(chunks: int) -> int:
    """How many levels of pages a table has for a disk of this many chunks' size, at least one."""
    count, capacity = 1, PAGE_NAMES
    while capacity < chunks:
        count, capacity = count + 1, capacity * PAGE_NAMES
    return count


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """A disk image: its size, the usual size of its chunks, and the top page of its chunk table."""

    size_bytes: int
    chunk_bytes: int
    top: bytes
    version: int = CUT

    @property
    def chunks(self) -> int:
        """How many chunks the disk would have, were all of the usual size; the last may be shorter."""
        return -(-self.size_bytes // self.chunk_bytes)

    def to_bytes(self) -> bytes:
        """The stored form: 56 bytes."""
        mark = _DISK_MAGIC[:7] + bytes([self.version])
        return _DISK.pack(mark, self.size_bytes, self.chunk_bytes, levels(self.chunks), self.top)

    @classmethod
    def from_bytes(cls, data: bytes) -> "DiskRecord":
        """Read the stored form; RepositoryDamagedError if it is something else."""
        if len(data) == _DISK.size:
            mark, size, chunk, depth, top = _DISK.unpack(data)
            record = cls(size, chunk, top, mark[7])
            known = mark[:7] == _DISK_MAGIC[:7] and record.version in (FIXED, CUT)
            if known and chunk and depth == levels(record.chunks):
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
