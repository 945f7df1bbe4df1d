"""Entries of a directory as rows of bytes: small to keep, and read without being taken apart first.

A row is a head of fixed size, the name, a symlink's text, places (three numbers of
64 bits each) and extended attributes (lengths of name and value, then both), all
little-endian. The jailed parser packs rows, and its parent takes none that
`checked` has not looked at: whatever is in one may be a hostile image's choice.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atoll.filesystems.interface import Entry, EntryKind, Placed
from atoll.filesystems.wire import MAX_XATTR_BYTES, distrust

_HEAD = struct.Struct("<I BBBx HH II IIIII QQQ qqq III")
_PLACE = struct.Struct("<3Q")
_XATTR = struct.Struct("<HI")
_NANOS = 1_000_000_000
_KINDS = tuple(EntryKind)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS, 1)}
_FILE, _SYMLINK = _NUMBERS[EntryKind.FILE], _NUMBERS[EntryKind.SYMLINK]
_XATTRS_KNOWN, _PLACES_KNOWN = 1, 2
_MAX_NAME_BYTES = 3 * 255  # 255 UTF-16 units as UTF-8
_MAX_TARGET_BYTES = 64 << 10
_MAX_SECONDS = 1 << 40
_MAX_SIZE = 1 << 63

Xattrs = tuple[tuple[str, bytes], ...]


class Head(NamedTuple):
    """The fixed part of a row: lengths in bytes, `kind` from 1 in EntryKind's order, 0 for damaged."""

    length: int
    kind: int
    known: int
    places: int
    name: int
    mode: int
    target: int
    xattrs: int
    nlink: int
    uid: int
    gid: int
    major: int
    minor: int
    inode: int
    size: int
    allocated_bytes: int
    mtime: int
    atime: int
    ctime: int
    mtime_nanos: int
    atime_nanos: int
    ctime_nanos: int


class Row:
    """One entry; `head` has its numbers. It keeps the bytes alive that it was found in: see `alone`."""

    __slots__ = ("_at", "_raw", "head")

    def __init__(self, raw: bytes, at: int = 0) -> None:
        self._raw = raw
        self._at = at
        self.head = Head._make(_HEAD.unpack_from(raw, at))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    @property
    def raw(self) -> bytes:
        """The row itself."""
        return self._raw[self._at : self._at + self.head.length]

    def alone(self) -> "Row":
        """The same without what was around it."""
        return Row(self.raw)

    @property
    def kind(self) -> EntryKind | None:
        """None when the inode that the name stands for is damaged, and all else means nothing."""
        return _KINDS[self.head.kind - 1] if self.head.kind else None

    @property
    def inode(self) -> int:
        """The inode's number."""
        return self.head.inode

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.head.size

    @property
    def name(self) -> bytes:
        """The name as the guest wrote it; empty when it was asked for by number."""
        start = self._at + _HEAD.size
        return self._raw[start : start + self.head.name]

    @property
    def target(self) -> bytes:
        """The text of a symlink."""
        start = self._at + _HEAD.size + self.head.name
        return self._raw[start : start + self.head.target]

    @property
    def places(self) -> tuple[Placed, ...] | None:
        """See Entry."""
        if not self.head.known & _PLACES_KNOWN:
            return None
        start = self._at + _HEAD.size + self.head.name + self.head.target
        end = start + _PLACE.size * self.head.places
        return tuple(Placed(*place) for place in _PLACE.iter_unpack(self._raw[start:end]))

    @property
    def xattrs(self) -> Xattrs | None:
        """See Entry."""
        if not self.head.known & _XATTRS_KNOWN:
            return None
        if not self.head.xattrs:
            return ()
        end = self._at + self.head.length
        return tuple(_pairs(self._raw[end - self.head.xattrs : end]))


def pack(
    name: bytes, entry: Entry, xattrs: Xattrs | None, places: Sequence[Placed] | None
) -> bytes:
    """The row of an entry."""
    target = b"" if entry.target is None else entry.target.encode("utf-8", "surrogateescape")
    tail = name + target
    known = 0
    if places is not None:
        known = _PLACES_KNOWN
        for place in places:
            tail += _PLACE.pack(*place)
    attributes = b""
    if xattrs is not None:
        known |= _XATTRS_KNOWN
        for key, value in xattrs:
            encoded = key.encode("utf-8", "surrogateescape")
            attributes += _XATTR.pack(len(encoded), len(value)) + encoded + value
    mtime, mtime_nanos = divmod(entry.mtime_ns, _NANOS)
    atime, atime_nanos = divmod(entry.atime_ns, _NANOS)
    ctime, ctime_nanos = divmod(entry.ctime_ns, _NANOS)
    major, minor = entry.device or (0, 0)
    head = _HEAD.pack(
        _HEAD.size + len(tail) + len(attributes),
        *(_NUMBERS[entry.kind], known, len(places or ())),
        *(len(name), entry.mode, len(target), len(attributes)),
        *(entry.nlink, entry.uid, entry.gid, major, minor),
        *(entry.inode, entry.size, entry.allocated_bytes),
        *(mtime, atime, ctime, mtime_nanos, atime_nanos, ctime_nanos),
    )
    return head + tail + attributes


def pack_damaged(name: bytes) -> bytes:
    """The row of a name whose inode cannot be read."""
    return _HEAD.pack(_HEAD.size + len(name), 0, 0, 0, len(name), *(0,) * 17) + name


def starts(raw: bytes) -> Iterator[int]:
    """Where each row begins in what consists of rows alone."""
    at = 0
    while at < len(raw):
        yield at
        at += int.from_bytes(raw[at : at + 4], "little")


def checked(payload: bytes, volume_bytes: int, *, named: bool) -> Iterator[Row]:
    """The rows that a parser sent of a volume of that size; UnsupportedFormatError at the first
    that an honest one could not have sent."""
    at = 0
    while at < len(payload):
        if at + _HEAD.size > len(payload):
            raise distrust("a row that is cut off")
        row = Row(payload, at)
        head = row.head
        if head.length > len(payload) - at or head.length != (
            _HEAD.size + head.name + head.target + _PLACE.size * head.places + head.xattrs
        ):
            raise distrust("a row of the wrong length")
        name = row.name
        if not named:
            if name or not head.kind:
                raise distrust("a name where none was asked for")
        elif (
            not 0 < len(name) <= _MAX_NAME_BYTES
            or b"/" in name
            or b"\0" in name
            or name in (b".", b"..")
        ):
            raise distrust("an impossible name")
        if head.kind:
            _check(row, volume_bytes)
        elif head.length != _HEAD.size + head.name:
            raise distrust("details of what is damaged")
        yield row
        at += head.length


def _check(row: Row, volume_bytes: int) -> None:
    head = row.head
    if head.kind > len(_KINDS):
        raise distrust("an unknown kind of entry")
    if (
        head.mode >= 0o10000
        or head.size >= _MAX_SIZE
        or head.allocated_bytes >= _MAX_SIZE
        or head.inode == 0
        or head.mtime_nanos >= _NANOS
        or head.atime_nanos >= _NANOS
        or head.ctime_nanos >= _NANOS
        or not -_MAX_SECONDS < head.mtime < _MAX_SECONDS
        or not -_MAX_SECONDS < head.atime < _MAX_SECONDS
        or not -_MAX_SECONDS < head.ctime < _MAX_SECONDS
    ):
        raise distrust("a number out of range")
    if head.kind == _SYMLINK:
        if not 0 < head.target <= _MAX_TARGET_BYTES or b"\0" in row.target:
            raise distrust("an impossible symlink")
    elif head.target:
        raise distrust("a target of what is no symlink")
    if head.places:
        if head.kind != _FILE or not head.known & _PLACES_KNOWN:
            raise distrust("a layout of what is no file")
        end = 0
        for offset, length, at in row.places or ():
            if offset < end or not 0 < length <= head.size - offset:
                raise distrust("a layout outside its file")
            if length > volume_bytes - at:
                raise distrust("a layout outside the image")
            end = offset + length
    if head.xattrs:
        if not head.known & _XATTRS_KNOWN:
            raise distrust("malformed extended attributes")
        for key, value in row.xattrs or ():
            if not key or "\0" in key or len(value) > MAX_XATTR_BYTES:
                raise distrust("malformed extended attributes")


def _pairs(raw: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(raw):
        if at + _XATTR.size > len(raw):
            raise distrust("malformed extended attributes")
        name_length, value_length = _XATTR.unpack_from(raw, at)
        at += _XATTR.size
        value_at = at + name_length
        end = value_at + value_length
        if end > len(raw):
            raise distrust("malformed extended attributes")
        yield raw[at:value_at].decode("utf-8", "surrogateescape"), raw[value_at:end]
        at = end
