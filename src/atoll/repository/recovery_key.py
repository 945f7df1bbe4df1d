"""256 random bits as text that people write down and type: eight groups of eight characters.

A group is Crockford's base 32 (https://www.crockford.com/base32.html) of five bytes: four of the secret
and their CRC-8, which begins with the group's number. Every wrong character and every two groups in each
other's place are noticed for certain, and the group is told.
"""

import re

from atoll.model.errors import RepositoryKeyError

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = str.maketrans("OIL", "011")
_GROUPS, _GROUP_CHARACTERS, _GROUP_BYTES = 8, 8, 4
SECRET_BYTES = _GROUPS * _GROUP_BYTES


def written(secret: bytes) -> str:
    """32 bytes as eight groups, joined by hyphens."""
    return "-".join(
        _group(number, secret[_GROUP_BYTES * (number - 1) : _GROUP_BYTES * number])
        for number in range(1, _GROUPS + 1)
    )


def understood(text: str) -> bytes:
    """The 32 bytes of what somebody typed; small letters, spaces and O for 0 are no matter.

    RepositoryKeyError says which group is wrong, and nothing of what was typed.
    """
    typed = re.sub(r"[\s-]+", "", text).upper().translate(_READ_AS)
    wanted = _GROUPS * _GROUP_CHARACTERS
    if len(typed) != wanted:
        raise RepositoryKeyError(
            f"The recovery key has {len(typed)} letters and digits and not {wanted}; compare it with "
            "what was written down."
        )
    secret = b""
    for number in range(1, _GROUPS + 1):
        group = typed[_GROUP_CHARACTERS * (number - 1) : _GROUP_CHARACTERS * number]
        part = _bytes(group)
        if part is None or part[-1] != _crc8(number, part[:-1]):
            raise RepositoryKeyError(
                f"Group {number} of the recovery key is mistyped; compare it with what was written "
                "down."
            )
        secret += part[:-1]
    return secret


def _group(number: int, part: bytes) -> str:
    value = int.from_bytes(part + bytes([_crc8(number, part)]), "big")
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(35, -1, -5))


def _bytes(group: str) -> bytes | None:
    value = 0
    for character in group:
        digit = _ALPHABET.find(character)
        if digit < 0:
            return None
        value = value << 5 | digit
    return value.to_bytes(_GROUP_BYTES + 1, "big")


def _crc8(start: int, data: bytes) -> int:
    """CRC-8 with the polynomial x^8 + x^2 + x + 1, highest bit first, nothing inverted."""
    crc = start
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc
