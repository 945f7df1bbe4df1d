"""CRC-32C (Castagnoli) of many blocks at once, in NumPy.

The remainder of a chunk is the exclusive or of one table's entry per byte, because the
code is linear: 512 bytes cost one look-up each and no carry from one to the next.
Chunks are then joined in order.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_CHUNK = 512
_AT_ONCE_BYTES = 256 << 10  # look-ups take twelve times as much memory
_Words = NDArray[np.uint32]


def _tables() -> _Words:
    """For each place in a chunk, what each value of its byte adds to the remainder: (512, 256)."""
    one = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        one = np.where(one & 1, one >> 1 ^ np.uint32(_POLYNOMIAL), one >> 1).astype(np.uint32)
    tables = np.empty((_CHUNK, 256), np.uint32)
    tables[-1] = one
    for place in range(_CHUNK - 1, 0, -1):
        behind = tables[place]
        tables[place - 1] = one[behind & 0xFF] ^ behind >> 8
    return tables


_TABLES: Final = _tables()
_FLAT: Final = _TABLES.reshape(-1)
_FIRST, _SECOND, _THIRD, _FOURTH = _TABLES[:4].tolist()
_PLACES: Final = (np.arange(_CHUNK) * 256).astype(np.int64)


def checksums(objects: bytes, length: int, field: int) -> _Words:
    """The CRC of each of the objects of `length` bytes (a multiple of 512) that lie in a row.

    The four bytes from `field`, where the object keeps its checksum, count as zeros.
    """
    raw = np.frombuffer(objects, np.uint8).reshape(-1, length).copy()
    raw[:, field : field + 4] = 0
    step = max(1, _AT_ONCE_BYTES // length)
    if len(raw) <= step:
        return _joined(raw)
    return np.concatenate([_joined(raw[at : at + step]) for at in range(0, len(raw), step)])


def crc32c(data: bytes) -> int:
    """The CRC of at least four bytes of any length."""
    missing = -len(data) % _CHUNK
    raw = np.zeros((1, missing + len(data)), np.uint8)
    raw[0, missing:] = np.frombuffer(data, np.uint8)
    return int(_joined(raw, missing)[0])


def _joined(raw: NDArray[np.uint8], start: int = 0) -> _Words:
    """CRCs of the rows of a scratch array, which begin behind `start` zeros."""
    raw[:, start : start + 4] ^= 0xFF  # as good as a remainder that begins with ones
    chunks = raw.reshape(len(raw), -1, _CHUNK)
    parts: _Words = np.bitwise_xor.reduce(_FLAT.take(chunks + _PLACES), axis=2)
    if parts.shape[1] == 1:
        return ~parts[:, 0]
    return np.array([_chained(row) for row in parts.tolist()], np.uint32)


def _chained(parts: list[int]) -> int:
    """The CRC of a row of chunks from their remainders; a handful of numbers is no work for NumPy."""
    joined = 0
    for part in parts:
        joined = (
            _FIRST[joined & 0xFF]
            ^ _SECOND[joined >> 8 & 0xFF]
            ^ _THIRD[joined >> 16 & 0xFF]
            ^ _FOURTH[joined >> 24]
            ^ part
        )
    return joined ^ 0xFFFFFFFF
