"""The frames between a jailed parser and its parent, and the check of everything that comes out.

A frame is one byte of kind, four of length (little-endian), and the payload.
The parent sends COMMAND (JSON `[verb, path]`) and ANSWER (bytes of the image).
The child sends HELLO, then for each command any number of BLOCKS requests
(`<QI`: offset, length) and records, and last END or ERROR. Whatever the child
says may have been said by a hostile image: `decode_*` accept only what an
honest parser could have sent.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum

from atoll.filesystems.interface import Data, Entry, EntryKind, Fault, Placed
from atoll.model.errors import UnsupportedFormatError

MAX_FRAME_BYTES = 8 << 20
MAX_READ_BYTES = 4 << 20
MAX_XATTR_BYTES = 64 << 10
MAX_TEXT_CHARACTERS = 1 << 16
"""The longest path; a guest's user can make longer ones, which a walk leaves out as Faults."""
HEADER = "<BI"
_MAX_NANOSECONDS = 1 << 66  # ext4 ends in 2446, XFS in 2486
_MAX_INODE = 1 << 64
_KINDS = {kind.value: kind for kind in EntryKind}
_PLACED = struct.Struct("<3Q")


class Kind(IntEnum):
    """What a frame carries."""

    COMMAND = 1
    ANSWER = 2
    HELLO = 3
    BLOCKS = 4
    ENTRIES = 5
    DATA = 6
    FAULT = 7
    END = 8
    ERROR = 9
    PLACES = 10
    ROWS = 11
    INODES = 12
    NAMES = 13


def encode_entry(entry: Entry) -> list[object]:
    """An Entry as a JSON row."""
    xattrs = entry.xattrs
    return [
        entry.path,
        entry.kind.value,
        entry.size,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.atime_ns,
        entry.ctime_ns,
        entry.nlink,
        entry.inode,
        entry.target,
        entry.device,
        None if xattrs is None else [(name, value.hex()) for name, value in xattrs],
        entry.allocated_bytes,
    ]


def decode_entries(payload: bytes) -> list[Entry]:
    """Rows as Entries; UnsupportedFormatError for anything an honest parser never sends."""
    return [_entry(row) for row in _rows(payload)]


def decode_text(payload: bytes, fields: int) -> list[str]:
    """A JSON list of exactly `fields` short strings."""
    row = _rows(payload)
    if len(row) != fields:
        raise distrust("a record of the wrong length")
    return [_text(value) for value in row]


def decode_fault(payload: bytes) -> Fault:
    """A Fault; its reason is cut to printable text."""
    row = _rows(payload)
    if len(row) != 3 or type(row[2]) is not bool:
        raise distrust("a malformed fault")
    return Fault(_text(row[0]), printable(_text(row[1])), row[2])


def decode_data(payload: bytes) -> Data:
    """Offset and bytes of a file."""
    if len(payload) < 9:
        raise distrust("a data record without data")
    return Data(int.from_bytes(payload[:8], "little"), payload[8:])


def encode_data(data: Data) -> bytes:
    """The payload of a DATA frame."""
    return data.offset.to_bytes(8, "little") + data.content


def encode_places(places: Sequence[Placed]) -> bytes:
    """The payload of a PLACES frame: three little-endian numbers of 64 bits for each."""
    return b"".join(_PLACED.pack(*place) for place in places)


def decode_places(payload: bytes) -> Iterator[Placed]:
    """Places as they were sent; whether they fit file and volume is the caller's to check."""
    if not payload or len(payload) % _PLACED.size:
        raise distrust("a malformed layout")
    return (Placed(*numbers) for numbers in _PLACED.iter_unpack(payload))


def printable(text: str) -> str:
    """A guest's or parser's words made fit for a message: one line, bounded, no control codes."""
    return "".join(c if c.isprintable() else "?" for c in text[:500])


def distrust(what: str) -> UnsupportedFormatError:
    """The error for what an honest parser never says."""
    return UnsupportedFormatError(
        f"The parser of the file system sent {what} and was stopped; the file system is damaged"
        " or hostile: restore the whole disk instead."
    )


def _rows(payload: bytes) -> list[object]:
    try:
        rows = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise distrust("a malformed record") from error
    if not isinstance(rows, list):
        raise distrust("a malformed record")
    return rows


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS:
        raise distrust("a malformed text")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise distrust("a malformed text") from error
    return value


def _number(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value < high:
        raise distrust("a number out of range")
    return value


def _path(value: object) -> str:
    path = _text(value)
    if path == "/":
        return path
    parts = path.split("/")
    if parts[0] or "\0" in path or any(part in ("", ".", "..") for part in parts[1:]):
        raise distrust("an impossible path")
    return path


def _entry(row: object) -> Entry:
    if not isinstance(row, list) or len(row) != 15:
        raise distrust("a malformed entry")
    target, device, xattrs, allocated = row[11:]
    if not isinstance(row[1], str) or row[1] not in _KINDS:
        raise distrust("an unknown kind of entry")
    mtime, atime, ctime = (
        _number(value, -_MAX_NANOSECONDS, _MAX_NANOSECONDS) for value in row[6:9]
    )
    if target is not None and (not _text(target) or "\0" in target):
        raise distrust("an impossible symlink")
    if device is not None:
        if not isinstance(device, list) or len(device) != 2:
            raise distrust("a malformed device number")
        device = (_number(device[0], 0, 1 << 32), _number(device[1], 0, 1 << 32))
    return Entry(
        _path(row[0]),
        _KINDS[row[1]],
        _number(row[2], 0, 1 << 63),
        _number(row[3], 0, 0o10000),
        _number(row[4], 0, 1 << 32),
        _number(row[5], 0, 1 << 32),
        mtime,
        atime,
        ctime,
        _number(row[9], 0, 1 << 32),
        _number(row[10], 1, _MAX_INODE),
        target,
        device,
        None if xattrs is None else _xattrs(xattrs),
        _number(allocated, 0, 1 << 63),
    )


def _xattrs(value: object) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(value, list):
        raise distrust("malformed extended attributes")
    result = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise distrust("malformed extended attributes")
        name, text = _text(pair[0]), pair[1]
        if not name or "\0" in name or not isinstance(text, str):
            raise distrust("malformed extended attributes")
        try:
            content = bytes.fromhex(text)
        except ValueError as error:
            raise distrust("malformed extended attributes") from error
        if len(content) > MAX_XATTR_BYTES:
            raise distrust("an extended attribute too large to exist")
        result.append((name, content))
    return tuple(result)
