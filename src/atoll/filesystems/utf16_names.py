"""Names that Windows keeps in UTF-16, as the bytes they have here: UTF-8, whatever they hold.

Windows checks no surrogates, so a name may hold a lone one. It becomes the three bytes that UTF-8
would have for it (which is called WTF-8, and what ntfs-3g does), so two names never become one.
"""

import codecs

MAX_NAME_BYTES = 3 * 255
"""Of a name of 255 UTF-16 units, the longest that NTFS, FAT and exFAT have."""

codecs.lookup("utf-16-le")  # loads it: in the jail nothing can be


def to_bytes(raw: bytes) -> bytes:
    """UTF-16, little-endian, as bytes of a path; a trailing odd byte is left out."""
    try:
        return raw.decode("utf-16-le").encode()
    except UnicodeError:
        whole = raw[: len(raw) & ~1]
        return whole.decode("utf-16-le", "surrogatepass").encode("utf-8", "surrogatepass")


def to_text(raw: bytes) -> str:
    """The same as a path's text: what is not UTF-8 is surrogate-escaped."""
    return to_bytes(raw).decode("utf-8", "surrogateescape")


def is_possible(name: bytes) -> bool:
    """Whether a directory here can have such a name in it."""
    return (
        0 < len(name) <= MAX_NAME_BYTES
        and b"/" not in name
        and b"\0" not in name
        and name not in (b".", b"..")
    )
