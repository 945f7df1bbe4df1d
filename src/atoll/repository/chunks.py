"""Chunks: how a piece of data gets its name and becomes small."""

import threading
from typing import NamedTuple

import zstandard
from blake3 import blake3

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.keys import MasterKey
from atoll.repository.store import Buffer

NAME_BYTES = 32
ZERO_NAME = bytes(NAME_BYTES)
"""Stands for a chunk (or a whole page of chunks) of zeros, which is never stored."""

RAW, ZSTD = 0, 1
DEFAULT_LEVEL = 1
"""Of zstd. Chunks of all levels stand side by side and are the same when they are read."""


class PackedChunk(NamedTuple):
    """A chunk ready to be sealed: `codec` is RAW or ZSTD, `plain_bytes` its length before."""

    codec: int
    plain_bytes: int
    body: Buffer


class ChunkCodec:
    """Names, compresses and restores chunks. Thread-safe; the heavy calls release the GIL."""

    def __init__(self, master: MasterKey, level: int = DEFAULT_LEVEL) -> None:
        self._name_key = master.derive("chunk name")
        self._level = level
        self._local = threading.local()
        self._zeros = bytearray()

    def name(self, data: Buffer) -> bytes:
        """Keyed BLAKE3-256 of the content."""
        return blake3(data, key=self._name_key).digest()

    def is_zero(self, data: Buffer) -> bool:
        """Whether every byte is zero."""
        # A bytearray on the left compares as one memcmp; a memoryview would go byte by byte. Nearly
        # all chunks have one length, so the zeros for the last are kept, and not cut for each.
        zeros = self._zeros
        if len(zeros) != len(data):
            zeros = self._zeros = bytearray(len(data))
        return zeros == data

    def pack(self, data: Buffer) -> PackedChunk:
        """Compressed if that makes it smaller."""
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=self._level)
            self._local.compressor = compressor
        body = compressor.compress(data)
        if len(body) < len(data):
            return PackedChunk(ZSTD, len(data), body)
        return PackedChunk(RAW, len(data), bytes(data))

    def unpack(self, name: bytes, chunk: PackedChunk) -> bytes:
        """The chunk's content; RepositoryDamagedError unless it hashes to its name."""
        data: bytes
        if chunk.codec == ZSTD:
            decompressor = getattr(self._local, "decompressor", None)
            if decompressor is None:
                decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
            try:
                data = decompressor.decompress(chunk.body, max_output_size=chunk.plain_bytes)
            except zstandard.ZstdError as error:
                raise _damaged(name, f"does not decompress ({error})") from error
        elif chunk.codec == RAW:
            data = bytes(chunk.body)
        else:
            raise _damaged(name, f"was written with codec {chunk.codec}, which is unknown")
        if len(data) != chunk.plain_bytes or self.name(data) != name:
            raise _damaged(name, "does not hash to its name")
        return data


def _damaged(name: bytes, what: str) -> RepositoryDamagedError:
    return RepositoryDamagedError(
        f"Chunk {name.hex()[:16]} {what}; verify the repository to learn what that touches."
    )
