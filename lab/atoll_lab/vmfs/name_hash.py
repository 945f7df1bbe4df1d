"""The hash VMFS 6 files directory entries under: Jenkins' lookup8 over a padded name.

Bob Jenkins, "lookup8.c" (public domain), mixing 64-bit words; the padding and
the seed are those dissect.vmfs documents for `Fil3LookupIntVMFS6`.
"""

import struct

_MASK = (1 << 64) - 1
_PADDING = (0x739A75C28E61B017).to_bytes(8, "little")
_GOLDEN = 0x9E3779B97F4A7C13
_SEED = 42
_SHIFTS = ((43, 9, 8), (38, 23, 5), (35, 49, 11), (12, 18, 22))
_WORDS = 32
MAX_NAME_BYTES = 127


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for right, left, last in _SHIFTS:
        a = ((a - b - c) ^ (c >> right)) & _MASK
        b = ((b - c - a) ^ (a << left)) & _MASK
        c = ((c - a - b) ^ (b >> last)) & _MASK
    return a, b, c


def name_hash(name: bytes) -> int:
    """64-bit hash of an encoded file name of at most 127 bytes."""
    key = bytearray(8 * _WORDS)
    key[: len(name)] = name
    for at in range((len(name) + 8) & ~7, MAX_NAME_BYTES, 8):
        key[at : at + 8] = _PADDING
    words = struct.unpack(f"<{_WORDS}Q", key)
    a, b, c = _SEED, _SEED, _GOLDEN
    for at in range(0, _WORDS - 2, 3):
        a, b, c = _mix(
            (a + words[at]) & _MASK, (b + words[at + 1]) & _MASK, (c + words[at + 2]) & _MASK
        )
    a, b, c = (a + words[-2]) & _MASK, (b + words[-1]) & _MASK, (c + _WORDS) & _MASK
    return _mix(a, b, c)[2]
