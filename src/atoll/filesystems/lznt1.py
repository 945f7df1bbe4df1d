"""LZNT1, the compression of NTFS. Source: Microsoft's [MS-XCA], section 2.5."""

import struct

from atoll.model.errors import UnsupportedFormatError

_CHUNK_BYTES = 4096


def decompress(raw: bytes, limit: int) -> bytes:
    """At most `limit` bytes; each chunk, which stands for 4 KiB, is padded with zeros.

    UnsupportedFormatError for what is no LZNT1.
    """
    result = bytearray()
    at = 0
    while len(result) < limit and at + 2 <= len(raw):
        (header,) = struct.unpack_from("<H", raw, at)
        if not header:
            break
        end = at + 3 + (header & 0xFFF)
        if end > len(raw):
            raise _broken()
        chunk = _chunk(raw, at + 2, end) if header & 0x8000 else raw[at + 2 : end]
        result += chunk
        result += bytes(-len(result) % _CHUNK_BYTES)
        at = end
    return bytes(result[:limit])


def _chunk(raw: bytes, at: int, end: int) -> bytearray:
    """One chunk: groups of a byte of flags and eight literals or copies."""
    out = bytearray()
    shift, boundary = 12, 16  # bits of a copy's length, and how much is there when they change
    while at < end:
        flags = raw[at]
        at += 1
        if not flags:
            out += raw[at : min(at + 8, end)]
            at += 8
            continue
        for _ in range(8):
            if at >= end:
                break
            if not flags & 1:
                out.append(raw[at])
                at += 1
            else:
                if at + 2 > end:
                    raise _broken()
                token = raw[at] | raw[at + 1] << 8
                at += 2
                while len(out) > boundary:
                    boundary <<= 1
                    shift -= 1
                back = (token >> shift) + 1
                count = (token & ((1 << shift) - 1)) + 3
                if back > len(out):
                    raise _broken()
                if back >= count:
                    start = len(out) - back
                    out += out[start : start + count]
                else:
                    pattern = out[-back:]
                    out += (pattern * (count // back + 1))[:count]
            flags >>= 1
        if len(out) > _CHUNK_BYTES:
            raise _broken()
    if len(out) > _CHUNK_BYTES:
        raise _broken()
    return out


def _broken() -> UnsupportedFormatError:
    return UnsupportedFormatError(
        "The NTFS file system is damaged: compressed content is not what compression leaves."
    )
