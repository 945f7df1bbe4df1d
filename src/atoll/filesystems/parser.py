"""The jailed process: speaks on descriptor 0, reads the image through it, answers about files.

Started by `session.py` as `python -I -m atoll.filesystems.parser KIND SIZE MEMORY`
so that nothing of the parent's memory (keys, passwords) is in reach of the image.
"""

import importlib
import json
import os
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from atoll.filesystems import wire
from atoll.filesystems.interface import Data, Entry, Fault, Placed, Volume
from atoll.filesystems.jail import Confinement, allow_cpu, lock_down
from atoll.filesystems.tree import children, detailed, export, find, walk
from atoll.filesystems.wire import Kind
from atoll.model.errors import AtollError, UnsupportedFormatError

# The seam for further kinds: module and function `(Blocks) -> Volume`.
PARSERS = {
    "ext2": ("atoll.filesystems.ext4", "open_volume"),
    "ext3": ("atoll.filesystems.ext4", "open_volume"),
    "ext4": ("atoll.filesystems.ext4", "open_volume"),
    "xfs": ("atoll.filesystems.xfs", "open_volume"),
    "ntfs": ("atoll.filesystems.ntfs", "open_volume"),
    "fat": ("atoll.filesystems.fat", "open_volume"),
    "exfat": ("atoll.filesystems.exfat", "open_volume"),
    "btrfs": ("atoll.filesystems.btrfs", "open_volume"),
}
_BATCH_ENTRIES = 128
_BATCH_BYTES = 1 << 20
_BATCH_PLACES = 4096
_BATCH_ROWS_BYTES = 64 << 10
_MAX_ROW_BYTES = wire.MAX_FRAME_BYTES - 2 * _BATCH_BYTES
_CPU_PER_FRAME_SECONDS = 120.0
_CACHE_BLOCK_BYTES = 128 << 10
_CACHE_BLOCKS = 256


class Channel:
    """Frames over one descriptor, with nothing but read and write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one frame whole, and with that have earned more time to compute."""
        allow_cpu(_CPU_PER_FRAME_SECONDS)
        view = memoryview(struct.pack(wire.HEADER, kind, len(payload)) + payload)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def receive(self, kind: Kind) -> bytes:
        """The next frame, which must be of that kind; EOFError when the parent is gone."""
        got, length = struct.unpack(wire.HEADER, self._exactly(struct.calcsize(wire.HEADER)))
        if got != kind:
            raise EOFError
        return self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < length:
            piece = os.read(self._descriptor, length - len(pieces))
            if not piece:
                raise EOFError
            pieces += piece
        return bytes(pieces)


class ChannelBlocks:
    """The image behind the channel, cached in large aligned blocks."""

    def __init__(self, channel: Channel, size_bytes: int) -> None:
        self._channel = channel
        self._size = size_bytes
        self._cache: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Size of the image."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the image, fewer only past its end."""
        length = max(0, min(length, self._size - offset))
        if length > wire.MAX_READ_BYTES:
            raise UnsupportedFormatError("The file system has a structure too large to be one.")
        if length > _CACHE_BLOCK_BYTES:
            return self._ask(offset, length)  # file content: read once, not worth remembering
        pieces = []
        while length > 0:
            number, start = divmod(offset, _CACHE_BLOCK_BYTES)
            piece = self._block(number)[start : start + length]
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _block(self, number: int) -> bytes:
        block = self._cache.get(number)
        if block is None:
            offset = number * _CACHE_BLOCK_BYTES
            block = self._ask(offset, min(_CACHE_BLOCK_BYTES, self._size - offset))
            self._cache[number] = block
            if len(self._cache) > _CACHE_BLOCKS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(number)
        return block

    def _ask(self, offset: int, length: int) -> bytes:
        self._channel.send(Kind.BLOCKS, struct.pack("<QI", offset, length))
        answer = self._channel.receive(Kind.ANSWER)
        if len(answer) != length:
            raise EOFError
        return answer


def _records(
    volume: Volume, verb: str, where: str | int
) -> Iterator[Entry | Data | Placed | Fault | bytes]:
    """What answers a question; bytes are rows (see `rows.py`)."""
    path = where if isinstance(where, str) else "/"
    inode = where if isinstance(where, int) else find(volume, path)
    match verb:
        case "node":
            yield detailed(volume, b"", volume.entry(inode, path))
        case "attributes":
            yield replace(volume.entry(inode, path), xattrs=volume.xattrs(inode))
        case "children":
            yield from children(volume, inode)
        case "layout":
            yield volume.entry(inode, path)
            yield from volume.layout(inode)
        case "stat":
            yield volume.entry(inode, path)
        case "xattrs":
            yield replace(volume.entry(inode, path), xattrs=volume.xattrs(inode))
        case "list":
            yield from walk(volume, inode, path, deep=False)
        case "walk":
            yield from walk(volume, inode, path, deep=True)
        case "read":
            yield volume.entry(inode, path)
            yield from volume.content(inode)
        case "export":
            yield from export(volume, inode, path)
        case _:
            raise EOFError


def _answer(channel: Channel, volume: Volume, verb: str, where: str | int) -> None:
    batch: list[bytes] = []
    places: list[Placed] = []
    rows = bytearray()
    size = 0

    def flush() -> None:
        nonlocal size
        if rows:
            channel.send(Kind.ROWS, bytes(rows))
            rows.clear()
        if places:
            channel.send(Kind.PLACES, wire.encode_places(places))
            places.clear()
        if batch:
            channel.send(Kind.ENTRIES, b"[" + b",".join(batch) + b"]")
            batch.clear()
            size = 0

    def fault(about: Fault) -> None:
        channel.send(Kind.FAULT, json.dumps(about).encode())

    for record in _records(volume, verb, where):
        if isinstance(record, bytes):
            rows += record
            if len(rows) >= _BATCH_ROWS_BYTES:
                flush()
        elif isinstance(record, Placed):
            if batch:
                flush()
            places.append(record)
            if len(places) >= _BATCH_PLACES:
                flush()
        elif isinstance(record, Entry):
            row = json.dumps(wire.encode_entry(record)).encode()
            too_large = len(row) > _MAX_ROW_BYTES
            if too_large:  # a hundred attributes of 64 KiB are possible, and fit no frame
                row = json.dumps(wire.encode_entry(replace(record, xattrs=()))).encode()
            batch.append(row)
            size += len(row)
            # Names and attributes can be large; a batch must stay below the limit of a frame.
            if len(batch) >= _BATCH_ENTRIES or size >= _BATCH_BYTES or too_large:
                flush()
            if too_large:
                fault(Fault(record.path, "the attributes are too large together", True))
        else:
            flush()
            if isinstance(record, Data):
                channel.send(Kind.DATA, wire.encode_data(record))
            else:
                fault(record)
    flush()
    channel.send(Kind.END)


def _refusal(error: Exception) -> list[str]:
    if isinstance(error, AtollError):
        return [error.code, str(error)]
    if isinstance(error, MemoryError):
        return ["unsupported-format", "The file system needs more memory than a parser may use."]
    # A parser that stumbles over hostile bytes may raise anything; all of it means one thing.
    return ["unsupported-format", f"The file system is damaged ({type(error).__name__}: {error})."]


Extra = Callable[[Volume], Iterator[tuple[Kind, bytes]]]
"""What answers a question with frames of its own."""


def main(extra: Mapping[str, Extra] = MappingProxyType({})) -> None:
    """Serve commands, and these by their verbs, until the parent closes the channel."""
    kind, size, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    module, function = PARSERS[kind]
    open_volume = getattr(importlib.import_module(module), function)
    channel = Channel(0)
    try:
        lock_down(Confinement(memory))
        allow_cpu(_CPU_PER_FRAME_SECONDS)
        volume: Volume = open_volume(ChannelBlocks(channel, size))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - reported to the parent, whatever it is
        channel.send(Kind.ERROR, json.dumps(_refusal(error)).encode())
        return
    hello = [volume.kind, volume.label, volume.uuid, volume.journal]
    channel.send(Kind.HELLO, json.dumps(hello).encode())
    while True:
        try:
            verb, where = json.loads(channel.receive(Kind.COMMAND))
            if verb in extra:
                for frame in extra[verb](volume):
                    channel.send(*frame)
                channel.send(Kind.END)
            else:
                _answer(channel, volume, verb, where)
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - reported to the parent, whatever it is
            channel.send(Kind.ERROR, json.dumps(_refusal(error)).encode())


if __name__ == "__main__":
    main()
