"""The records of an XFS log that a mount would replay, and the committed transactions in them.

Finds the head (where the next record would go) by the cycle number that each sector begins with,
steps back over what was being written in a crash, and takes the tail from the last whole record.
Source: XFS Algorithms & Data Structures, "Journaling Log"; fs/xfs/xfs_log_recover.c.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from atoll.filesystems.crc32c import crc32c
from atoll.filesystems.interface import Blocks
from atoll.filesystems.xfs_superblock import Geometry, damaged, refused

SECTOR = 512
_MAGIC = b"\xfe\xed\xba\xbe"
_LITTLE_ENDIAN = 1  # XLOG_FMT_LINUX_LE
_CYCLES_BYTES = 32 << 10  # of data whose first words one header has room for
_MAX_IN_FLIGHT = 8
_MAX_RECORD_SECTORS, _MAX_RECORD_BYTES = (256 << 10) // SECTOR, 256 << 10
_HEAD_SIZES = (328, 324)  # of a header as 64-bit and 32-bit kernels add it up
_OPERATION = struct.Struct(">IIBBxx")
_CLIENTS = (0x69, 0xAA)
_START, _COMMIT, _CONTINUE, _CONTINUED, _END, _UNMOUNT = 1, 2, 4, 8, 16, 32
_TRANSACTION_MAGIC = b"NART"
_TRANSACTION_HEAD_BYTES = 16
_MAX_PENDING_BYTES = 96 << 20
_MAX_PENDING = 1 << 16


class Header(NamedTuple):
    """A record's header; `length` is of its data, `heads` counts its header sectors."""

    version: int
    length: int
    lsn: int
    tail: int
    checksum: int
    operations: int
    form: int
    uuid: bytes
    size: int
    heads: int

    @property
    def sectors(self) -> int:
        """The whole record."""
        return self.heads + -(-self.length // SECTOR)


@dataclass(slots=True)
class Transaction:
    """Items of one committed transaction, each as its regions.

    `lsn` is the cycle and sector of the record that it began in.
    """

    lsn: int
    items: list[list[bytes]] = field(default_factory=list)
    head: bytearray = field(default_factory=bytearray)
    wanted: int = 0  # regions of the last item
    held_bytes: int = 0


class Log:
    """The log inside a file system."""

    def __init__(self, blocks: Blocks, known: Geometry) -> None:
        self._blocks = blocks
        self._known = known
        self._size = known.log_bytes // SECTOR
        self._held = 0

    def transactions(self) -> Iterator[Transaction]:
        """What is committed and perhaps not yet in its place, oldest first.

        Nothing after a clean unmount. UnsupportedFormatError where the kernel would not replay the log.
        """
        head = self._find_head()
        if head is None:
            return
        last = self._last_record(head, self._size)
        if last is None:
            raise damaged("its log has no record")
        at, header = last
        if self._unmounted(at, header, head):
            return
        tail = self._tail(header)
        # The last records may have been under way when the machine stopped.
        broken = self._first_broken(head, tail)
        if broken is not None:
            head = broken
            last = self._last_record(head, self._size)
            if last is None:
                raise damaged("its log has no whole record")
            at, header = last
            if self._unmounted(at, header, head):
                return
            tail = self._tail(header)
            if tail == head:
                raise damaged("its log has nothing whole left that a mount would replay")
        yield from self._replay(tail, head)

    def _read(self, sector: int, count: int) -> bytes:
        """Sectors of the log, which goes on with its first behind its last."""
        sector %= self._size
        there = min(count, self._size - sector)
        raw = self._blocks.read(self._known.log_start + sector * SECTOR, there * SECTOR)
        if there < count:
            raw += self._blocks.read(self._known.log_start, (count - there) * SECTOR)
        if len(raw) != count * SECTOR:
            raise damaged("its log is larger than the partition it is in")
        return raw

    def _cycle(self, sector: int) -> int:
        return _cycle_of(self._read(sector, 1))

    def _find_head(self) -> int | None:
        """The sector that the next record would begin in; None for a log that was never written."""
        size = self._size
        first, last = self._cycle(0), self._cycle(size - 1)
        if not first:
            return None
        scan = min(_MAX_IN_FLIGHT * _MAX_RECORD_SECTORS, size)
        if not last:
            if first != 1:
                raise damaged("its log is not one")
            head = self._boundary(0, size - 1, 0)
            start = max(0, head - scan)
            head = self._first_with(start, head, 0, head)
            return self._whole(head, start)
        if first == last:
            head, stop = size, last - 1
        else:
            head, stop = self._boundary(0, size - 1, last), last
        if head >= scan:
            head = self._first_with(head - scan, head, stop, head)
        else:
            # Around the end of the log first: what was not written there has an older number still.
            hole = self._first_with(size - (scan - head), size, stop - 1, -1)
            head = hole if hole >= 0 else self._first_with(0, head, stop, head)
        return self._whole(head, head - _MAX_RECORD_SECTORS) % size

    def _boundary(self, first: int, last: int, cycle: int) -> int:
        """About where sectors of that cycle number begin, of which `last` is one."""
        while last - first > 1:
            middle = (first + last) // 2
            if self._cycle(middle) == cycle:
                last = middle
            else:
                first = middle
        return last

    def _first_with(self, start: int, end: int, cycle: int, otherwise: int) -> int:
        """The first sector of a range with that cycle number."""
        step = _MAX_RECORD_SECTORS
        for at in range(start, end, step):
            raw = self._read(at, min(step, end - at))
            for place in range(0, len(raw), SECTOR):
                if _cycle_of(raw[place : place + SECTOR]) == cycle:
                    return at + place // SECTOR
        return otherwise

    def _whole(self, head: int, start: int) -> int:
        """`head`, or where the record begins that is cut off there; `start` may be below 0."""
        last = self._last_record(head, head - start)
        if last is None:
            raise damaged("its log has no record before its head")
        at, header = last
        distance = (head - at) % self._size or self._size
        return head if header.sectors == distance else at

    def _last_record(self, head: int, within: int) -> tuple[int, Header] | None:
        """The record that begins last before `head`, at most `within` sectors before it."""
        end = head
        left = min(within, self._size)
        while left > 0:
            count = min(left, _MAX_RECORD_SECTORS)
            raw = self._read(end - count, count)
            for place in range(count - 1, -1, -1):
                if raw[place * SECTOR : place * SECTOR + 4] == _MAGIC:
                    return (end - count + place) % self._size, self._header(end - count + place)
            end -= count
            left -= count
        return None

    def _header(self, sector: int) -> Header:
        raw = self._read(sector, 1)
        if raw[:4] != _MAGIC:
            raise damaged("a record of its log is not one")
        version, length, lsn, tail = struct.unpack_from(">IIQQ", raw, 8)
        checksum = int.from_bytes(raw[32:36], "little")
        (operations,) = struct.unpack_from(">I", raw, 40)
        form, uuid, size = struct.unpack_from(">I16sI", raw, 300)
        heads = 1
        if version == 2 and self._known.log_v2 and size > _CYCLES_BYTES:
            heads = -(-size // _CYCLES_BYTES)
        if version not in (1, 2) or length > _MAX_RECORD_BYTES or size > _MAX_RECORD_BYTES:
            raise damaged("a record of its log has an impossible size")
        if uuid not in (self._known.uuid, bytes(16)):
            raise damaged("its log belongs to another file system")
        return Header(version, length, lsn, tail, checksum, operations, form, uuid, size, heads)

    def _tail(self, header: Header) -> int:
        tail = header.tail & 0xFFFFFFFF
        if tail >= self._size:
            raise damaged("its log begins outside itself")
        return tail

    def _unmounted(self, at: int, header: Header, head: int) -> bool:
        """Whether the last record says that all is in its place."""
        if header.operations != 1 or (at + header.sectors - head) % self._size:
            return False
        operation = self._read(at + header.heads, 1)
        return bool(operation[9] & _UNMOUNT)

    def _first_broken(self, head: int, tail: int) -> int | None:
        """The first record, of those that may have been under way together, that did not get there whole."""
        records: list[int] = []
        at = head
        while len(records) < _MAX_IN_FLIGHT and (at - tail) % self._size:
            found = self._last_record(at, (at - tail) % self._size)
            if found is None:
                break
            at = found[0]
            records.append(at)
        for at in reversed(records):
            header = self._header(at)
            if header.sectors > (head - at) % self._size or not self._sound(at, header):
                return at
        return None

    def _sound(self, at: int, header: Header) -> bool:
        return self._data(at, header) is not None

    def _data(self, at: int, header: Header) -> bytes | None:
        """A record's data as it was before each sector was stamped; None when its checksum is wrong."""
        raw = self._read(at, header.sectors)
        packed = raw[header.heads * SECTOR :]
        if (header.checksum or self._known.checked) and not _is_whole(raw, packed, header):
            return None
        data = bytearray(packed)
        for number in range(len(data) // SECTOR):
            part, index = divmod(number, _CYCLES_BYTES // SECTOR)
            if part >= header.heads:
                return None
            # The first header keeps them behind its fields, the others behind a cycle number.
            place = 44 + 4 * index if not part else part * SECTOR + 4 + 4 * index
            data[number * SECTOR : number * SECTOR + 4] = raw[place : place + 4]
        return bytes(data[: header.length])

    def _replay(self, tail: int, head: int) -> Iterator[Transaction]:
        pending: dict[int, Transaction] = {}
        left = (head - tail) % self._size
        at = tail
        while left > 0:
            header = self._header(at)
            if header.form != _LITTLE_ENDIAN:
                raise refused(
                    "was in use on a machine of another kind, and its log is not replayed"
                )
            if header.uuid != self._known.uuid:
                raise damaged("its log belongs to another file system")
            data = self._data(at, header) if header.sectors <= left else None
            if data is None:
                raise damaged("a record of its log is broken, which a mount would refuse as well")
            yield from self._operations(header, data, pending)
            at = (at + header.sectors) % self._size
            left -= header.sectors

    def _operations(
        self, header: Header, data: bytes, pending: dict[int, Transaction]
    ) -> Iterator[Transaction]:
        at = 0
        for _ in range(header.operations):
            if at + _OPERATION.size > len(data):
                break
            number, length, client, flags = _OPERATION.unpack_from(data, at)
            at += _OPERATION.size
            if client not in _CLIENTS or at + length > len(data):
                raise damaged("a record of its log has a broken operation")
            part = data[at : at + length]
            at += length
            transaction = pending.get(number)
            if transaction is None:
                if flags & _START:
                    if len(pending) >= _MAX_PENDING:
                        raise damaged("its log has more transactions at once than can be")
                    pending[number] = Transaction(header.lsn)
                continue  # before the tail lie the ends of what is in its place
            flags &= ~_END
            if flags & _CONTINUED:
                flags &= ~_CONTINUE
            if flags in (0, _CONTINUE):
                self._hold(_add(transaction, part))
            elif flags == _CONTINUED:
                self._hold(_continue(transaction, part))
            elif flags == _COMMIT:
                self._held -= transaction.held_bytes
                yield pending.pop(number)
            elif flags != _UNMOUNT:
                raise damaged("a record of its log has an unknown operation")

    def _hold(self, added: int) -> None:
        self._held += added
        if self._held > _MAX_PENDING_BYTES:
            raise refused("was in use, and its log holds transactions too large to be replayed")


def _cycle_of(sector: bytes) -> int:
    """A sector's cycle number: its first word, or the second of a record's header."""
    at = 4 if sector[:4] == _MAGIC else 0
    return int.from_bytes(sector[at : at + 4])


def _is_whole(raw: bytes, packed: bytes, header: Header) -> bool:
    for size in _HEAD_SIZES:
        parts = [raw[:32], bytes(4), raw[36:size]]
        # Only those further headers count that the data needs.
        used = min(header.heads, -(-header.length // _CYCLES_BYTES))
        parts += [raw[n * SECTOR : n * SECTOR + 260] for n in range(1, used)]
        if crc32c(b"".join([*parts, packed[: header.length]])) == header.checksum:
            return True
    return False


def _add(transaction: Transaction, part: bytes) -> int:
    """Begin a region; returns the bytes that are kept of it."""
    if not part:
        return 0
    if len(transaction.head) < _TRANSACTION_HEAD_BYTES:
        if transaction.head or part[:4] != _TRANSACTION_MAGIC:
            raise damaged("a transaction in its log has no beginning")
        transaction.head += part
        return 0
    items = transaction.items
    if not items or len(items[-1]) == transaction.wanted:
        # Whatever an item is, its first region has the number of its regions behind its type.
        transaction.wanted = int.from_bytes(part[2:4], "little")
        if not 0 < transaction.wanted <= 2048:
            raise damaged("a transaction in its log has an impossible item")
        items.append([])
    items[-1].append(part)
    transaction.held_bytes += len(part) + 64
    return len(part) + 64


def _continue(transaction: Transaction, part: bytes) -> int:
    """Add to a region that began in the record before."""
    if len(transaction.head) < _TRANSACTION_HEAD_BYTES:
        transaction.head += part
        return 0
    if not transaction.items:
        raise damaged("a transaction in its log goes on without a beginning")
    last = transaction.items[-1]
    last[-1] += part
    transaction.held_bytes += len(part)
    return len(part)
