"""BSON as far as commands and their answers need it (bsonspec.org, version 1.1)."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timestamp:
    """A place in the oplog: seconds since the epoch and a count within the second."""

    seconds: int
    count: int

    def __str__(self) -> str:
        return f"{self.seconds}:{self.count}"


def encode(document: Mapping[str, Any]) -> bytes:
    """A document of str, int, float, bool, None, bytes, Timestamp, mappings and sequences."""
    body = b"".join(_element(name, value) for name, value in document.items())
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def decode(data: bytes) -> dict[str, Any]:
    """The document at the start of `data`. Raises ValueError when it is none.

    Types that no Python type stands for come as their raw bytes or text.
    """
    try:
        document, end = _document(data, 0)
    except (struct.error, IndexError) as error:
        raise ValueError("the document ends too early") from error
    if end > len(data):
        raise ValueError("the document ends too early")
    return document


def _element(name: str, value: Any) -> bytes:
    kind, data = _value(value)
    return kind + name.encode() + b"\0" + data


def _value(value: Any) -> tuple[bytes, bytes]:
    if isinstance(value, bool):
        return b"\x08", bytes([value])
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return b"\x10", struct.pack("<i", value)
        return b"\x12", struct.pack("<q", value)
    if isinstance(value, float):
        return b"\x01", struct.pack("<d", value)
    if isinstance(value, str):
        text = value.encode() + b"\0"
        return b"\x02", struct.pack("<i", len(text)) + text
    if value is None:
        return b"\x0a", b""
    if isinstance(value, bytes):
        return b"\x05", struct.pack("<iB", len(value), 0) + value
    if isinstance(value, Timestamp):
        return b"\x11", struct.pack("<II", value.count, value.seconds)
    if isinstance(value, Mapping):
        return b"\x03", encode(value)
    if isinstance(value, Sequence):
        return b"\x04", encode({str(index): each for index, each in enumerate(value)})
    raise TypeError(f"{type(value).__name__} has no BSON type here")


def _document(data: bytes, start: int) -> tuple[dict[str, Any], int]:
    (length,) = struct.unpack_from("<i", data, start)
    end, at = start + length, start + 4
    found: dict[str, Any] = {}
    while data[at]:
        kind = data[at]
        name, at = _text(data, at + 1)
        found[name], at = _read(kind, data, at)
    if at + 1 != end:
        raise ValueError("a document is not as long as it says")
    return found, end


_FIXED = {0x01: "<d", 0x09: "<q", 0x10: "<i", 0x12: "<q"}
_RAW_BYTES = {0x07: 12, 0x13: 16}
_EMPTY = {0x06, 0x0A, 0x7F, 0xFF}


def _read(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in _FIXED:
        (value,) = struct.unpack_from(_FIXED[kind], data, at)
        return value, at + struct.calcsize(_FIXED[kind])
    if kind in _EMPTY:
        return None, at
    if kind in _RAW_BYTES:
        return data[at : at + _RAW_BYTES[kind]].hex(), at + _RAW_BYTES[kind]
    if kind == 0x08:
        return bool(data[at]), at + 1
    if kind == 0x11:
        count, seconds = struct.unpack_from("<II", data, at)
        return Timestamp(seconds, count), at + 8
    if kind in {0x03, 0x04}:
        document, end = _document(data, at)
        return (document if kind == 0x03 else list(document.values())), end
    (length,) = struct.unpack_from("<i", data, at)
    if kind in {0x02, 0x0D, 0x0E}:
        return data[at + 4 : at + 3 + length].decode(errors="replace"), at + 4 + length
    if kind == 0x05:
        return data[at + 5 : at + 5 + length], at + 5 + length
    if kind == 0x0B:
        pattern, at = _text(data, at)
        flags, at = _text(data, at)
        return f"/{pattern}/{flags}", at
    raise ValueError(f"an element has the unknown type {kind:#x}")


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode(errors="replace"), end + 1
