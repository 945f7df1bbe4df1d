"""An array's SCSI disk: the commands of SPC-4 and SBC-3 that hosts and proxies use."""

import struct
from dataclasses import dataclass

from array_blocks import Blocks

_BLOCK = 512
_ILLEGAL, _NO_FIELD, _NO_COMMAND, _OUT_OF_RANGE, _NO_UNIT = 5, 0x2400, 0x2000, 0x2100, 0x2500


@dataclass(frozen=True)
class Answer:
    """Data, or (sense key, code and qualifier)."""

    data: bytes = b""
    sense: tuple[int, int] | None = None


@dataclass(frozen=True)
class Disk:
    """A LUN over an image. `thin` when unmapped blocks are told of and read as zeros."""

    blocks: Blocks
    key: str
    naa: str
    serial: str
    vendor: str
    product: str
    thin: bool = True

    def size(self) -> int:
        return self.blocks.size(self.key)


def report_luns(command: bytes, disks: dict[int, Disk]) -> Answer:
    numbers = b"".join(struct.pack(">H6x", _shown(number)) for number in sorted(disks))
    return _cut(command, 6, struct.pack(">I4x", len(numbers)) + numbers)


def no_such_unit(command: bytes) -> Answer:
    if command[0] == 0x12 and not command[1] & 1:
        return Answer(
            _standard_inquiry("", "", kind=0x7F)[: struct.unpack_from(">H", command, 3)[0]]
        )
    return Answer(sense=(_ILLEGAL, _NO_UNIT))


def execute(disk: Disk, command: bytes, data: bytes) -> Answer:
    code = command[0]
    if code in (0x00, 0x35, 0x91):  # TEST UNIT READY, SYNCHRONIZE CACHE
        return Answer()
    if code == 0x12:
        return _inquiry(disk, command)
    if code == 0x25:
        last = min(disk.size() // _BLOCK - 1, 0xFFFFFFFF)
        return Answer(struct.pack(">II", last, _BLOCK))
    if code == 0x9E:
        return _service_action(disk, command)
    if code in (0x1A, 0x5A):  # MODE SENSE
        return Answer(bytes([3, 0, 0, 0]) if code == 0x1A else bytes([0, 6, 0, 0, 0, 0, 0, 0]))
    if code in (0x28, 0x88):
        place = _range(disk, command, code == 0x88)
        return place if isinstance(place, Answer) else Answer(disk.blocks.read(disk.key, *place))
    if code in (0x2A, 0x8A):
        place = _range(disk, command, code == 0x8A)
        if isinstance(place, Answer):
            return place
        disk.blocks.write(disk.key, place[0], data[: place[1]])
        return Answer()
    if code == 0x42:
        return _unmap(disk, data)
    return Answer(sense=(_ILLEGAL, _NO_COMMAND))


def _range(disk: Disk, command: bytes, long: bool) -> tuple[int, int] | Answer:
    lba, count = (
        struct.unpack_from(">QI", command, 2)
        if long
        else (struct.unpack_from(">I", command, 2)[0], struct.unpack_from(">H", command, 7)[0])
    )
    if (lba + count) * _BLOCK > disk.size():
        return Answer(sense=(_ILLEGAL, _OUT_OF_RANGE))
    return lba * _BLOCK, count * _BLOCK


def _unmap(disk: Disk, data: bytes) -> Answer:
    if not disk.thin:
        return Answer(sense=(_ILLEGAL, _NO_COMMAND))
    for at in range(8, 8 + struct.unpack_from(">H", data, 2)[0], 16):
        lba, count = struct.unpack_from(">QI", data, at)
        if (lba + count) * _BLOCK > disk.size():
            return Answer(sense=(_ILLEGAL, _OUT_OF_RANGE))
        if count:
            disk.blocks.unmap(disk.key, lba * _BLOCK, count * _BLOCK)
    return Answer()


def _service_action(disk: Disk, command: bytes) -> Answer:
    action = command[1] & 0x1F
    if action == 0x10:
        flags = 0xC0 if disk.thin else 0
        body = struct.pack(">QIBBB17x", disk.size() // _BLOCK - 1, _BLOCK, 0, 3, flags)
        return _cut(command, 10, body)
    if action == 0x12 and disk.thin:
        lba = struct.unpack_from(">Q", command, 2)[0]
        position, size, ranges = lba * _BLOCK, disk.size(), []
        for extent in disk.blocks.mapped(disk.key):
            if extent.end <= position:
                continue
            if extent.offset > position:
                ranges.append((position, extent.offset - position, 1))
            start = max(extent.offset, position)
            ranges.append((start, extent.end - start, 0))
            position = extent.end
        if position < size:
            ranges.append((position, size - position, 1))
        body = b"".join(
            struct.pack(">QIB3x", start // _BLOCK, min(length // _BLOCK, 0xFFFFFFFF), state)
            for start, length, state in ranges
        )
        return _cut(command, 10, struct.pack(">I4x", len(body) + 4) + body)
    return Answer(sense=(_ILLEGAL, _NO_FIELD))


def _inquiry(disk: Disk, command: bytes) -> Answer:
    page, length = command[2], struct.unpack_from(">H", command, 3)[0]
    if not command[1] & 1:
        return Answer(_standard_inquiry(disk.vendor, disk.product)[:length])
    if page == 0x00:
        body = bytes([0x00, 0x80, 0x83, 0xB0, 0xB2])
    elif page == 0x80:
        body = disk.serial.encode()
    elif page == 0x83:
        name = f"{disk.vendor:<8}{disk.product}:{disk.serial}".encode()
        body = bytes([2, 1, 0, len(name)]) + name
        body += bytes([1, 3, 0, 16]) + bytes.fromhex(disk.naa.removeprefix("naa."))
    elif page == 0xB0:
        body = struct.pack(">BBHIIIIIIIQ20x", 0, 1, 8, 8192, 2048, 0, 0x200000, 256, 8, 0, 0)
    elif page == 0xB2:
        body = bytes([0, 0x84 if disk.thin else 0, 2 if disk.thin else 0, 0])
    else:
        return Answer(sense=(_ILLEGAL, _NO_FIELD))
    return Answer((bytes([0, page]) + struct.pack(">H", len(body)) + body)[:length])


def _standard_inquiry(vendor: str, product: str, kind: int = 0) -> bytes:
    names = f"{vendor:<8}{product:<16}{'8888':<4}".encode()
    return bytes([kind, 0, 6, 0x12, 31, 0, 0, 2]) + names


def _cut(command: bytes, at: int, body: bytes) -> Answer:
    return Answer(body[: struct.unpack_from(">I", command, at)[0]])


def _shown(number: int) -> int:
    """A LUN's first level: peripheral addressing below 256, flat above (SAM-5, 4.7)."""
    return number if number < 256 else 0x4000 | number
