"""Where the content of an NTFS attribute lies, and its bytes, compressed or not."""

from collections.abc import Iterator

from atoll.filesystems import lznt1
from atoll.filesystems.interface import Data, Placed
from atoll.filesystems.ntfs_layout import (
    COMPRESSED,
    ENCRYPTED,
    Layout,
    Piece,
    Run,
    damaged,
    runs,
)
from atoll.model.errors import UnsupportedFormatError

_PIECE_BYTES = 1 << 20
_LZNT1 = 1
_MAX_UNIT_BYTES = 1 << 20


def layout_of(layout: Layout, parts: list[Piece]) -> Iterator[Placed | Data]:
    """Where the bytes of an attribute lie, ascending, and those that do not lie as they are.

    What was never written, though it has clusters, is left out as holes are: it reads as zeros.
    """
    if not parts:
        return
    first = parts[0]
    if first.flags & ENCRYPTED:
        raise UnsupportedFormatError(
            "The guest has encrypted it (EFS), so its content cannot be read; restore the whole"
            " disk instead."
        )
    if first.value is not None:
        if first.value:
            yield Data(0, first.value)
        return
    if first.initialized > first.size:
        raise damaged("a file has more content than its size")
    if first.flags & COMPRESSED:
        yield from _compressed(layout, parts)
        return
    size = layout.cluster_size
    for run in runs(layout, parts):
        offset = run.first * size
        length = min(run.clusters * size, first.initialized - offset)
        if length <= 0:
            return
        if run.at is not None:
            yield Placed(offset, length, run.at * size)


def content_of(layout: Layout, parts: list[Piece]) -> Iterator[Data]:
    """The bytes of an attribute, ascending, without holes, in pieces of at most 1 MiB."""
    for found in layout_of(layout, parts):
        if isinstance(found, Data):
            yield found
            continue
        for done in range(0, found.length, _PIECE_BYTES):
            count = min(_PIECE_BYTES, found.length - done)
            content = layout.blocks.read(found.at + done, count)
            if len(content) != count:
                raise damaged("a file lies outside the volume")
            yield Data(found.offset + done, content)


def _compressed(layout: Layout, parts: list[Piece]) -> Iterator[Placed | Data]:
    first = parts[0]
    unit = 1 << first.unit
    if first.flags & COMPRESSED != _LZNT1 or not 0 < unit * layout.cluster_size <= _MAX_UNIT_BYTES:
        raise UnsupportedFormatError(
            "It is compressed in a way that Atoll does not know; restore the whole disk instead."
        )
    size = layout.cluster_size
    for group in _units(runs(layout, parts), unit):
        offset = group[0].first * size
        if offset >= first.initialized:
            return
        if len(group) == 1 and not group[0].clusters % unit:
            if group[0].at is not None:
                length = min(group[0].clusters * size, first.initialized - offset)
                yield Placed(offset, length, group[0].at * size)
            continue
        filled = [run for run in group if run.at is not None]
        count = sum(run.clusters for run in filled)
        length = min(unit * size, first.initialized - offset)
        raw = b"".join(
            layout.blocks.read(run.at * size, run.clusters * size)
            for run in filled
            if run.at is not None
        )
        if count < unit:
            raw = lznt1.decompress(raw, length).ljust(length, b"\0") if count else b""
        if raw:
            yield Data(offset, raw[:length])


def _units(found: Iterator[Run], unit: int) -> Iterator[list[Run]]:
    """Runs cut where units of compression begin: single runs of whole units, or what makes up one."""
    group: list[Run] = []
    missing = unit
    for run in found:
        first, count, at = run
        while count:
            whole = count - count % unit if missing == unit else 0
            taken = whole or min(count, missing)
            piece = Run(first, taken, at)
            first, count = first + taken, count - taken
            at = None if at is None else at + taken
            if whole:
                yield [piece]
                continue
            group.append(piece)
            missing -= taken
            if not missing:
                yield group
                group, missing = [], unit
    if group:  # the last unit of a file can be cut short
        yield group
