"""Device mapper by its ioctls (linux/dm-ioctl.h): no program is run and nothing waits for udev."""

import fcntl
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EBUSY, EEXIST, ENXIO
from functools import cache
from pathlib import Path

SECTOR = 512

_VERSION = (4, 0, 0)
_HEADER = struct.Struct("=3IIIIiIIIQ128s129s7x")
"""version (3), data_size, data_start, target_count, open_count, flags, event_nr, padding, dev,
name, uuid."""
_TARGET = struct.Struct("=QQiI16s")
"""sector_start, length, status, next, target_type; the parameters follow."""
_NAME = struct.Struct("=QI")
"""dev, next; the name follows."""

_LIST_DEVICES, _CREATE, _REMOVE, _SUSPEND_OR_RESUME, _STATUS = 2, 3, 4, 6, 7
_LOAD, _TABLE_STATUS, _MESSAGE = 9, 12, 14
_READ_ONLY, _SUSPENDED, _STATUS_TABLE = 1 << 0, 1 << 1, 1 << 4
_ACTIVE_PRESENT, _BUFFER_FULL = 1 << 5, 1 << 8
_ROOM_BYTES = 16 << 10
_REMOVE_SECONDS = 5.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Device:
    """A mapped device. `active` when it has a table; `uuid` is what its maker called it."""

    name: str
    uuid: str
    minor: int
    active: bool
    suspended: bool
    open_count: int

    @property
    def path(self) -> Path:
        """Its node; the kernel's own, so that it is there before udev knows of the device."""
        return Path(f"/dev/dm-{self.minor}")


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a table: what a range of sectors is mapped to."""

    start: int
    length: int
    kind: str
    parameters: str


def names() -> list[str]:
    """All mapped devices of the machine."""
    _, data = _call(_LIST_DEVICES, room=_ROOM_BYTES)
    found, at = [], 0
    while at + _NAME.size <= len(data):
        device, step = _NAME.unpack_from(data, at)
        if device:
            found.append(_text(data[at + _NAME.size :]))
        if not step:
            break
        at += step
    return found


def find(name: str) -> Device | None:
    """The device of that name, or None."""
    try:
        header, _ = _call(_STATUS, name)
    except OSError as error:
        if error.errno == ENXIO:
            return None
        raise
    return _device(header)


def table(name: str) -> list[Target]:
    """The device's active table; empty when it has none."""
    return list(_targets(*_call(_TABLE_STATUS, name, flags=_STATUS_TABLE, room=_ROOM_BYTES)))


def status(name: str) -> list[Target]:
    """What the device's targets say about themselves, as `parameters`."""
    return list(_targets(*_call(_TABLE_STATUS, name, room=_ROOM_BYTES)))


def ensure(name: str, uuid: str, target: Target, *, read_only: bool = False) -> Device:
    """The device with this table: made, changed while it is in use, or as it is."""
    found = find(name)
    if found is None:
        try:
            _call(_CREATE, name, uuid=uuid)
        except OSError as error:
            if error.errno not in (EBUSY, EEXIST):  # another helper made it this instant
                raise
    elif found.active and table(name) == [target]:
        return found
    kind = target.kind.encode()
    # Aligned to 8 bytes, as the kernel asks of each target with its parameters.
    parameters = target.parameters.encode() + b"\0"
    parameters += bytes(-len(parameters) % 8)
    payload = _TARGET.pack(target.start, target.length, 0, 0, kind) + parameters
    _call(_LOAD, name, flags=_READ_ONLY if read_only else 0, payload=payload, targets=1)
    resume(name)
    made = find(name)
    if made is None:
        raise FileNotFoundError(ENXIO, os.strerror(ENXIO), name)
    return made


def suspend(name: str) -> None:
    """Hold back all I/O; on return none is under way."""
    _call(_SUSPEND_OR_RESUME, name, flags=_SUSPENDED)


def resume(name: str) -> None:
    """Let I/O go on, with the table loaded last. Harmless when it goes on already."""
    _call(_SUSPEND_OR_RESUME, name)


def remove(name: str) -> None:
    """Remove the device; absent is success. EBUSY when it stays open."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            _call(_REMOVE, name)
        except OSError as error:
            if error.errno == ENXIO:
                return
            # udev looks into a device that appeared or changed, for a moment.
            if error.errno != EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def message(name: str, text: str) -> None:
    """Tell the device's target something; OSError with what it makes of it."""
    _call(_MESSAGE, name, payload=struct.pack("=Q", 0) + text.encode() + b"\0")


def _call(
    number: int,
    name: str = "",
    *,
    uuid: str = "",
    flags: int = 0,
    payload: bytes = b"",
    targets: int = 0,
    room: int = 0,
) -> tuple[tuple[int | bytes, ...], bytes]:
    """Header and data of the answer; the room for it grows until it fits."""
    while True:
        size = _HEADER.size + max(len(payload), room)
        buffer = bytearray(size)
        _HEADER.pack_into(
            buffer, 0, *_VERSION, size, _HEADER.size, targets, 0, flags, 0, 0, 0,
            name.encode(), uuid.encode(),
        )  # fmt: skip
        buffer[_HEADER.size : _HEADER.size + len(payload)] = payload
        command = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | number
        fcntl.ioctl(control(), command, buffer, True)
        header = _HEADER.unpack_from(buffer)
        if not header[7] & _BUFFER_FULL:
            return header, bytes(buffer[header[4] : header[3]])
        room = 2 * max(room, _ROOM_BYTES)


@cache
def control() -> int:
    """The open control device, kept for as long as this process lives."""
    return os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)


def _device(header: tuple[int | bytes, ...]) -> Device:
    flags, number = int(header[7]), int(header[10])
    return Device(
        name=_text(bytes(header[11])),
        uuid=_text(bytes(header[12])),
        minor=number & 0xFF | number >> 12 & 0xFFF00,
        active=bool(flags & _ACTIVE_PRESENT),
        suspended=bool(flags & _SUSPENDED),
        open_count=int(header[6]),
    )


def _targets(header: tuple[int | bytes, ...], data: bytes) -> Iterator[Target]:
    at = 0
    for _ in range(int(header[5])):
        start, length, _, following, kind = _TARGET.unpack_from(data, at)
        yield Target(start, length, _text(kind), _text(data[at + _TARGET.size :]).strip())
        at = following  # counted from the first target


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode()
