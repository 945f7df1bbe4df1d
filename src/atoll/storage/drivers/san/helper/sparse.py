"""Bytes without their zeros, for the way from the SAN server to Atoll: LUNs are mostly empty.

A flag byte for each block, 1 where it holds anything, then those blocks. The last one may be short.
Comparing a block with zeros costs next to nothing beside sending it.
"""

BLOCK_BYTES = 64 << 10

_ZEROS = bytes(BLOCK_BYTES)


def pack(data: bytes) -> bytes:
    """What to send for `data`."""
    view = memoryview(data)
    blocks = [view[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    flags = bytes(block != _ZEROS[: len(block)] for block in blocks)
    return flags + b"".join(block for block, flag in zip(blocks, flags, strict=True) if flag)


def unpack(packed: bytes, length: int) -> bytes:
    """The `length` bytes that were packed."""
    count = -(-length // BLOCK_BYTES)
    flags, at = packed[:count], count
    if all(flags):
        return packed[count:]
    data = bytearray(length)
    for number, flag in enumerate(flags):
        if flag:
            start = number * BLOCK_BYTES
            end = min(start + BLOCK_BYTES, length)
            data[start:end] = packed[at : at + end - start]
            at += end - start
    return bytes(data)
