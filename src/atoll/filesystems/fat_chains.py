"""Clusters and the chains they form in a file allocation table, for FAT12, FAT16, FAT32 and exFAT."""

import calendar
from array import array
from collections import OrderedDict
from collections.abc import Iterator

from atoll.filesystems.interface import Blocks, Data, EntryKind, Placed
from atoll.model.errors import UnsupportedFormatError

FIRST_CLUSTER = 2
DIRECTORY_MODE, FILE_MODE, READ_ONLY_MODE = 0o700, 0o600, 0o400
"""There are no owners and no rights on FAT: only who restores may read."""
READ_ONLY, HIDDEN, SYSTEM, LABEL, DIRECTORY = 0x01, 0x02, 0x04, 0x08, 0x10
_TABLE_BYTES = 64 << 10
_CACHED_PIECES = 256
_PIECE_BYTES = 1 << 20


class Chains:
    """The clusters of one volume.

    `width` is 12, 16 or 32 bits of an entry of the table, which begins at byte `table_at` and is
    `table_bytes` long; `mask` are the bits of an entry that count.
    """

    def __init__(
        self,
        blocks: Blocks,
        name: str,
        table: tuple[int, int, int, int],
        heap_at: int,
        cluster_size: int,
        cluster_count: int,
    ) -> None:
        self.blocks = blocks
        self.heap_at = heap_at
        self.cluster_size = cluster_size
        self._name = name
        self._table_at, table_bytes, self._width, self._mask = table
        inside = max(0, blocks.size_bytes - heap_at) // cluster_size
        self.cluster_count = min(cluster_count, inside, table_bytes * 8 // self._width)
        self._small = b""
        if self._width == 12:
            self._small = blocks.read(self._table_at, min(table_bytes, 6144))
        self._pieces: OrderedDict[int, array[int]] = OrderedDict()

    def damaged(self, what: str) -> UnsupportedFormatError:
        """The error for a structure that contradicts itself or its surroundings."""
        return UnsupportedFormatError(f"The {self._name} file system is damaged: {what}.")

    def place(self, cluster: int) -> int:
        """Where a cluster lies on the volume, in bytes."""
        if not FIRST_CLUSTER <= cluster < FIRST_CLUSTER + self.cluster_count:
            raise self.damaged(f"a chain leads to cluster {cluster}, which there is not")
        return self.heap_at + (cluster - FIRST_CLUSTER) * self.cluster_size

    def cluster_at(self, place: int) -> int:
        """The cluster that a byte of the volume lies in."""
        return (place - self.heap_at) // self.cluster_size + FIRST_CLUSTER

    def following(self, cluster: int) -> int | None:
        """What follows a cluster in its chain; None at the end."""
        if self._width == 12:
            at = cluster * 3 // 2
            pair = int.from_bytes(self._small[at : at + 2], "little")
            value = pair >> 4 if cluster & 1 else pair & 0xFFF
        else:
            size = self._width // 8
            number, index = divmod(cluster, _TABLE_BYTES // size)
            piece = self._piece(number, size)
            value = piece[index] & self._mask if index < len(piece) else 0
        return None if value >= self._mask & ~7 else value

    def _piece(self, number: int, size: int) -> "array[int]":
        piece = self._pieces.get(number)
        if piece is None:
            raw = self.blocks.read(self._table_at + number * _TABLE_BYTES, _TABLE_BYTES)
            piece = array("H" if size == 2 else "I", raw[: len(raw) - len(raw) % size])
            self._pieces[number] = piece
            if len(self._pieces) > _CACHED_PIECES:
                self._pieces.popitem(last=False)
        return piece

    def chain(self, first: int, limit: int) -> Iterator[int]:
        """The clusters of a chain, at most `limit`; one that turns back on itself is damage."""
        cluster: int | None = first
        mark, steps, power = first, 0, 1  # Brent's way to notice a circle
        for _ in range(limit):
            if cluster is None:
                return
            yield cluster
            cluster = self.following(cluster)
            if cluster == mark:
                raise self.damaged(f"the chain from cluster {first} turns back on itself")
            steps += 1
            if steps == power and cluster is not None:
                mark, steps, power = cluster, 0, power * 2

    def placed(self, first: int, length: int, contiguous: bool = False) -> Iterator[Placed]:
        """Where the `length` bytes of a chain lie, in as few pieces as there can be."""
        if not length:
            return
        count = -(-length // self.cluster_size)
        if contiguous:
            self.place(first + count - 1)
            yield Placed(0, length, self.place(first))
            return
        if count > self.cluster_count:
            raise self.damaged("a file is larger than its volume")
        offset = begin = 0
        at = end = -1
        for cluster in self.chain(first, count):
            place = self.place(cluster)
            if place != end:
                if offset > begin:
                    yield Placed(begin, offset - begin, at)
                begin, at = offset, place
            offset += self.cluster_size
            end = place + self.cluster_size
        if offset < length:
            raise self.damaged("a file has fewer clusters than its size needs")
        yield Placed(begin, length - begin, at)

    def content(self, first: int, length: int, contiguous: bool = False) -> Iterator[Data]:
        """Those bytes, in pieces of at most 1 MiB."""
        for offset, size, at in self.placed(first, length, contiguous):
            for done in range(0, size, _PIECE_BYTES):
                count = min(_PIECE_BYTES, size - done)
                content = self.blocks.read(at + done, count)
                if len(content) != count:
                    raise self.damaged("a file lies outside the volume")
                yield Data(offset + done, content)

    def rounded(self, size: int) -> int:
        """Bytes in whole clusters."""
        return -(-size // self.cluster_size) * self.cluster_size


def nanoseconds(date: int, time: int, hundredths: int = 0, quarters: int = 0) -> int:
    """A date and time of FAT as nanoseconds since 1970; `quarters` of an hour east of UTC.

    A day that no calendar has is taken as Linux takes it: counted on from the first of the month.
    """
    month = min(max(date >> 5 & 15, 1), 12)
    start = calendar.timegm((1980 + (date >> 9), month, 1, time >> 11, time >> 5 & 63, 0))
    days = max(date & 31, 1) - 1
    seconds = start + days * 86400 + (time & 31) * 2 - quarters * 900
    return seconds * 1_000_000_000 + hundredths * 10_000_000


def mode_of(attributes: int) -> int:
    """The mode that stands for a file's attributes."""
    if attributes & DIRECTORY:
        return DIRECTORY_MODE
    return READ_ONLY_MODE if attributes & READ_ONLY else FILE_MODE


def kind_of(attributes: int) -> EntryKind:
    """File or directory; there is nothing else."""
    return EntryKind.DIRECTORY if attributes & DIRECTORY else EntryKind.FILE


def xattrs_of(attributes: int) -> tuple[tuple[str, bytes], ...]:
    """What a mode does not say of the attributes, as Samba keeps it."""
    if attributes & (HIDDEN | SYSTEM):
        return (("user.DOSATTRIB", f"0x{attributes & 0x3F:x}".encode()),)
    return ()
