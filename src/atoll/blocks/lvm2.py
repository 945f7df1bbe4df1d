"""LVM2: the physical volume label, the volume group's text, and logical volumes as segments.

Format: lvm2 source, lib/format_text/layout.h (label, physical volume header,
metadata area) and lib/format_text/export.c (the text). The text is a ring: it
may run past the end of its area and go on behind the area's header.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dissect.volume.lvm.physical import parse_metadata

from atoll.model.readers import BlockReader

_SECTOR = 512
_LABEL_SECTORS = 4
_MAX_AREAS = 16
_MAX_TEXT_BYTES = 16 << 20
_MAX_SEGMENTS = 1 << 18
_MAX_HASHES = 16
_MDA_HEADER_BYTES = 512
_MDA_MAGIC = b" LVM2 x[5A%r0N*>"
_FIRST_LOCATION = 40


class PhysicalVolume(NamedTuple):
    """A physical volume on a disk: where it begins there, its id, its group's text if it has one."""

    offset: int
    length: int
    id: str
    text: str | None


class Segment(NamedTuple):
    """`length` bytes of a logical volume from `offset`, found at `disk_offset` of the disk."""

    offset: int
    length: int
    disk_offset: int


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A visible logical volume; `obstacle` says why there are no segments to read it by."""

    group: str
    name: str
    length: int
    segments: tuple[Segment, ...]
    obstacle: str


class _UnreadableError(Exception):
    """Why a logical volume cannot be laid out on this disk."""


def read_physical_volume(reader: BlockReader, offset: int, length: int) -> PhysicalVolume | None:
    """The physical volume in a range of the disk; None when there is none or it is damaged."""
    head = reader.read(offset, min(length, _LABEL_SECTORS * _SECTOR))
    for at in range(0, len(head) - 31, _SECTOR):
        if head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001":
            break
    else:
        return None
    (header,) = struct.unpack_from("<I", head, at + 20)
    body = reader.read(offset + at, min(length - at, 4096))[header:]
    if len(body) < 40:
        return None
    _, rest = _areas(body, 40)
    metadata, _ = _areas(body, rest)
    text = None
    for area_offset, area_size in metadata:
        if area_offset + area_size <= length:
            text = text or _text(reader, offset + area_offset, area_size)
    return PhysicalVolume(offset, length, body[:32].decode("ascii", "replace"), text)


def _areas(body: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """A list of (offset, size) that a pair of zeros ends, and where it ended."""
    areas: list[tuple[int, int]] = []
    while at + 16 <= len(body) and len(areas) < _MAX_AREAS:
        offset, size = struct.unpack_from("<QQ", body, at)
        at += 16
        if not offset and not size:
            break
        areas.append((offset, size))
    return areas, at


def _text(reader: BlockReader, area: int, area_size: int) -> str | None:
    header = reader.read(area, _MDA_HEADER_BYTES)
    if header[4:20] != _MDA_MAGIC or len(header) < _MDA_HEADER_BYTES:
        return None
    offset, size, _, flags = struct.unpack_from("<QQII", header, _FIRST_LOCATION)
    if flags & 1 or not 0 < size <= _MAX_TEXT_BYTES or not _MDA_HEADER_BYTES <= offset < area_size:
        return None
    if size > area_size - _MDA_HEADER_BYTES:
        return None
    before_end = min(size, area_size - offset)
    text = reader.read(area + offset, before_end)
    text += reader.read(area + _MDA_HEADER_BYTES, size - before_end)
    return text.rstrip(b"\0\n").decode("utf-8", "replace")


def logical_volumes(volumes: Sequence[PhysicalVolume]) -> list[LogicalVolume]:
    """The visible logical volumes of all groups whose text is on these physical volumes."""
    latest: dict[str, tuple[int, str, Mapping[str, object]]] = {}
    for volume in volumes:
        for name, group in _groups(volume.text or ""):
            seqno = _int(group, "seqno")
            known = latest.get(str(group.get("id")))
            if known is None or seqno > known[0]:
                latest[str(group.get("id"))] = (seqno, name, group)
    by_id = {volume.id: volume for volume in volumes}
    found: list[LogicalVolume] = []
    for _, name, group in latest.values():
        for label, entry in _sections(group, "logical_volumes"):
            status = entry.get("status")
            if isinstance(status, list) and "VISIBLE" in status:
                found.append(_logical_volume(name, group, label, entry, by_id))
    return found


def _groups(text: str) -> list[tuple[str, Mapping[str, object]]]:
    if any(line.count("#") > _MAX_HASHES for line in text.splitlines()):
        return []  # the parser tries every one of them as a comment, to the end of the line
    try:
        parsed = parse_metadata(text)
    except (ValueError, SyntaxError, KeyError, IndexError, TypeError, RecursionError, MemoryError):
        return []  # as vgscan: a group whose text is damaged is not there
    return [(name, value) for name, value in parsed.items() if isinstance(value, dict)]


def _sections(parent: Mapping[str, object], key: str) -> list[tuple[str, Mapping[str, object]]]:
    section = parent.get(key)
    if not isinstance(section, dict):
        return []
    return [(str(name), value) for name, value in section.items() if isinstance(value, dict)]


def _int(section: Mapping[str, object], key: str) -> int:
    value = section.get(key)
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0


def _logical_volume(
    group_name: str,
    group: Mapping[str, object],
    name: str,
    entry: Mapping[str, object],
    by_id: Mapping[str, PhysicalVolume],
) -> LogicalVolume:
    extent_bytes = _int(group, "extent_size") * _SECTOR
    places = {}
    for label, described in _sections(group, "physical_volumes"):
        volume = by_id.get(str(described.get("id")).replace("-", ""))
        if volume is not None:
            places[label] = (volume, _int(described, "pe_start") * _SECTOR)
    pieces: list[Segment] = []
    length, obstacle = 0, ""
    for number in range(1, min(_int(entry, "segment_count"), _MAX_SEGMENTS) + 1):
        segment = entry.get(f"segment{number}")
        if not isinstance(segment, dict):
            obstacle = obstacle or "its description is damaged"
            continue
        length = max(
            length,
            (_int(segment, "start_extent") + _int(segment, "extent_count")) * extent_bytes,
        )
        try:
            pieces += _laid_out(segment, extent_bytes, places)
        except _UnreadableError as error:
            obstacle = obstacle or str(error)
        if len(pieces) > _MAX_SEGMENTS:
            obstacle = "it has too many stripes"
            break
    pieces.sort()
    at = 0
    for piece in pieces:
        if piece.offset != at and not obstacle:
            obstacle = "its description has gaps"
        at = piece.offset + piece.length
    if not extent_bytes or (at != length and not obstacle):
        obstacle = obstacle or "its description is damaged"
    return LogicalVolume(group_name, name, length, () if obstacle else tuple(pieces), obstacle)


def _laid_out(
    segment: Mapping[str, object],
    extent_bytes: int,
    places: Mapping[str, tuple[PhysicalVolume, int]],
) -> list[Segment]:
    kind = segment.get("type")
    if kind != "striped":  # a linear segment is one with a single stripe
        raise _UnreadableError(f"segments of type {kind} are not read")
    stripes = segment.get("stripes")
    count = _int(segment, "stripe_count")
    if not isinstance(stripes, list) or len(stripes) != 2 * count or not count:
        raise _UnreadableError("its description is damaged")
    start = _int(segment, "start_extent") * extent_bytes
    total = _int(segment, "extent_count") * extent_bytes
    share = total // count
    origins: list[int] = []
    for label, extent in zip(stripes[::2], stripes[1::2], strict=True):
        if label not in places:
            raise _UnreadableError("it lies partly on another disk")
        volume, data_start = places[label]
        if not isinstance(extent, int) or extent < 0:
            raise _UnreadableError("its description is damaged")
        begin = data_start + extent * extent_bytes
        if begin + share > volume.length:
            raise _UnreadableError("it reaches past its physical volume")
        origins.append(volume.offset + begin)
    if count == 1:
        return [Segment(start, total, origins[0])]
    stripe = _int(segment, "stripe_size") * _SECTOR
    if not stripe or total // stripe > _MAX_SEGMENTS or share % stripe:
        raise _UnreadableError("its stripes are too many or uneven")
    return [
        Segment(start + n * stripe, stripe, origins[n % count] + n // count * stripe)
        for n in range(total // stripe)
    ]
