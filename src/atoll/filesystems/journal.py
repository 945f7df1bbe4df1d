"""Changes an ext3/ext4 journal (jbd2) still holds, laid over the image in memory; nothing is written.

What a mount would replay: transactions with a valid commit block, in sequence,
less the blocks later revoked. Source: kernel.org "Journal (jbd2)", fs/jbd2/recovery.c.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from atoll.filesystems.ext4_content import runs
from atoll.filesystems.ext4_layout import NEEDS_RECOVERY, Layout, damaged
from atoll.filesystems.interface import Blocks
from atoll.model.errors import UnsupportedFormatError

_MAGIC = 0xC03B3998
_DESCRIPTOR, _COMMIT, _SUPERBLOCK_V1, _SUPERBLOCK_V2, _REVOKE = 1, 2, 3, 4, 5
_64BIT, _ASYNC_COMMIT, _CHECKSUM_V2, _CHECKSUM_V3, _FAST_COMMIT = 0x2, 0x4, 0x8, 0x10, 0x20
_KNOWN = 0x1 | _64BIT | _CHECKSUM_V2 | _CHECKSUM_V3
_ESCAPED, _SAME_UUID, _LAST_TAG = 1, 2, 8


@dataclass(frozen=True, slots=True)
class Tag:
    """A block of the file system and the journal block that holds its newer content.

    `order` counts transactions, `sequence` is the journal's own, wrapping number.
    """

    target: int
    source: int
    escaped: bool
    order: int
    sequence: int
    checksum: int


def overlay(layout: Layout) -> "JournalOverlay | None":
    """The image as a mount would see it, or None when the journal holds nothing to replay.

    Raises UnsupportedFormatError for journals outside the file system, with
    features not known here, or damaged.
    """
    if not layout.has_journal or not layout.incompat & NEEDS_RECOVERY:
        return None
    if layout.journal_inode == 0:
        raise UnsupportedFormatError(
            "The ext4 file system was in use and keeps its journal on another device, so its files"
            " cannot be read as they were; restore the whole disk instead."
        )
    journal = _Journal(layout)
    if journal.start == 0:
        return None
    return JournalOverlay(layout.blocks, journal)


class _Journal:
    """The journal's own blocks, and the latest content each file system block has in them."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        inode = layout.inode(layout.journal_inode)
        self._runs = list(runs(layout, inode))
        head = self.block(0)
        self._length: int
        self._first: int
        self.start: int
        magic, kind, _, block_size, self._length, self._first, sequence, self.start = (
            struct.unpack_from(">8I", head)
        )
        if magic != _MAGIC or kind not in (_SUPERBLOCK_V1, _SUPERBLOCK_V2):
            raise damaged("its journal is not one")
        self.features = int.from_bytes(head[40:44], "big") if kind == _SUPERBLOCK_V2 else 0
        if self.features & ~_KNOWN:
            raise UnsupportedFormatError(
                "The ext4 file system was in use and its journal has features Atoll does not"
                f" replay ({self.features & ~_KNOWN:#x}); restore the whole disk instead."
            )
        if block_size != layout.block_size or not 0 < self._first < self._length:
            raise damaged("its journal contradicts itself")
        if self._length * block_size > inode.size or self.start >= self._length:
            raise damaged("its journal is larger than the file that holds it")
        self.checked = bool(self.features & (_CHECKSUM_V2 | _CHECKSUM_V3))
        self.seed = crc32c(0xFFFFFFFF, head[48:64]) if self.checked else 0
        self.latest: dict[int, Tag] = {}
        self._verified: set[Tag] = set()
        if self.start:
            self._scan(sequence)

    def block(self, number: int) -> bytes:
        """A block of the journal by its place in the journal."""
        for logical, count, physical in self._runs:
            if logical <= number < logical + count:
                return self.layout.read_blocks(physical + number - logical)
        raise damaged(f"its journal lacks block {number}")

    def newer(self, tag: Tag) -> bytes:
        """The content a tag promises; UnsupportedFormatError when it is not what was committed."""
        content = self.block(tag.source)
        if self.checked and tag not in self._verified:
            crc = crc32c(crc32c(self.seed, tag.sequence.to_bytes(4, "big")), content)
            wide = self.features & _CHECKSUM_V3
            if tag.checksum != (crc if wide else crc & 0xFFFF):
                raise damaged(f"its journal holds a broken copy of block {tag.target}")
            self._verified.add(tag)
        if tag.escaped:  # a block that began with the journal's magic was stored without it
            content = struct.pack(">I", _MAGIC) + content[4:]
        return content

    def _next(self, number: int, steps: int = 1) -> int:
        span = self._length - self._first
        return self._first + (number - self._first + steps) % span

    def _scan(self, sequence: int) -> None:
        """Collect committed transactions, from the oldest to the first that is not whole."""
        number, walked = self.start, 0
        tags: list[Tag] = []
        revoked: list[int] = []
        committed: list[Tag] = []
        revokes: dict[int, int] = {}
        order = 0  # of transactions: sequence numbers wrap, this does not
        # A journal of n blocks has at most n blocks in use; the bound ends what a forged one would not.
        while walked < self._length:
            block = self.block(number)
            magic, kind, stamp = struct.unpack_from(">3I", block)
            if magic != _MAGIC or stamp != sequence:
                break
            used = 1
            if kind == _DESCRIPTOR:
                if not self._tail_is_valid(block):
                    break
                added = list(self._tags(block, number, order, sequence))
                tags += added
                used += len(added)
            elif kind == _REVOKE:
                if not self._tail_is_valid(block):
                    break
                revoked += self._revoked(block)
            elif kind == _COMMIT:
                if not self._commit_is_valid(block):
                    break
                committed += tags
                revokes.update((target, order) for target in revoked)
                tags, revoked = [], []
                sequence = (sequence + 1) & 0xFFFFFFFF
                order += 1
            else:
                break
            number = self._next(number, used)
            walked += used
        for tag in committed:
            if revokes.get(tag.target, -1) < tag.order:
                self.latest[tag.target] = tag

    def _tags(self, block: bytes, number: int, order: int, sequence: int) -> Iterator[Tag]:
        wide = bool(self.features & _64BIT)
        if self.features & _CHECKSUM_V3:
            size = 16
        else:
            size = 8 + 4 * wide + 2 * bool(self.features & _CHECKSUM_V2)
        at = 12
        end = len(block) - 4 * self.checked
        while at + size <= end:
            high = 0
            if size == 16:
                low, flags, high, checksum = struct.unpack_from(">4I", block, at)
            else:
                low, checksum, flags = struct.unpack_from(">IHH", block, at)
                if wide:
                    (high,) = struct.unpack_from(">I", block, at + 8)
            target = low | high << 32 if wide else low
            if not 0 <= target < self.layout.block_count:
                raise damaged(f"its journal changes block {target}, outside the file system")
            number = self._next(number)
            yield Tag(target, number, bool(flags & _ESCAPED), order, sequence, checksum)
            at += size + (0 if flags & _SAME_UUID else 16)
            if flags & _LAST_TAG:
                return

    def _revoked(self, block: bytes) -> list[int]:
        (used,) = struct.unpack_from(">I", block, 12)
        form = ">Q" if self.features & _64BIT else ">I"
        step = struct.calcsize(form)
        end = min(used, len(block) - 4 * self.checked)
        places = range(16, end - step + 1, step)
        return [struct.unpack_from(form, block, at)[0] for at in places]

    def _tail_is_valid(self, block: bytes) -> bool:
        if not self.checked:
            return True
        return crc32c(self.seed, block[:-4] + bytes(4)) == int.from_bytes(block[-4:], "big")

    def _commit_is_valid(self, block: bytes) -> bool:
        if not self.checked:
            return True
        expected = int.from_bytes(block[16:20], "big")
        return crc32c(self.seed, block[:16] + bytes(4) + block[20:]) == expected


class JournalOverlay:
    """The image with newer blocks taken from where the journal keeps them."""

    def __init__(self, blocks: Blocks, journal: _Journal) -> None:
        self._blocks = blocks
        self._journal = journal
        self._block_size = journal.layout.block_size

    @property
    def size_bytes(self) -> int:
        """Size of the image."""
        return self._blocks.size_bytes

    def newer(self, block: int) -> bytes | None:
        """What a block of the file system has in the journal; None when it is as on the image."""
        tag = self._journal.latest.get(block)
        return None if tag is None else self._journal.newer(tag)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the image as a mount would see them."""
        raw = self._blocks.read(offset, length)
        first, last = offset // self._block_size, (offset + len(raw) - 1) // self._block_size
        changed = [n for n in range(first, last + 1) if n in self._journal.latest] if raw else []
        if not changed:
            return raw
        result = bytearray(raw)
        for number in changed:
            newer = self._journal.newer(self._journal.latest[number])
            at = number * self._block_size - offset
            begin, end = max(0, at), min(len(result), at + self._block_size)
            result[begin:end] = newer[begin - at : end - at]
        return bytes(result)


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(crc: int, data: bytes) -> int:
    """CRC-32C (Castagnoli) without final inversion, as jbd2 chains it."""
    table = _CRC_TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc
