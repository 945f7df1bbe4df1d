"""One VMFS 6 file descriptor (FS3_FileMetadata and its pointers) in memory."""

import struct
import time
from typing import Self

from atoll_lab.vmfs.layout import (
    INODE_BYTES,
    INODE_MAGIC,
    METADATA,
    POINTERS_PER_INODE,
    Addressing,
    Kind,
    Resource,
)

_LOCK_MAGIC = 0x10C00001
_POINTERS_AT = INODE_BYTES - 8 * POINTERS_PER_INODE
_RESIDENT_AT = METADATA + 512
_FIELDS = {
    "address": (0x00, "<I"),
    "generation": (0x04, "<I"),
    "links": (0x08, "<I"),
    "kind": (0x0C, "<I"),
    "flags": (0x10, "<I"),
    "size": (0x14, "<Q"),
    "block_size": (0x1C, "<Q"),
    "block_count": (0x24, "<Q"),
    "mode": (0x40, "<I"),
    "addressing": (0x44, "<I"),
    "to_be_zeroed_count": (0x48, "<I"),
    "new_since_epoch": (0x50, "<I"),
    "pointer_blocks": (0x5C, "<I"),
    "signature": (0x64, "<I"),
    "parent": (0x70, "<I"),
    "shift": (0x89, "<B"),
}


class Inode:
    """A file descriptor at `offset` of the volume; `get` and `set` work on its named fields."""

    def __init__(self, offset: int, raw: bytes | bytearray) -> None:
        self.offset = offset
        self.raw = bytearray(raw)

    @classmethod
    def fresh(
        cls,
        address: int,
        offset: int,
        kind: Kind,
        addressing: Addressing,
        shift: int,
        mode: int,
        parent: int,
        generation: int,
    ) -> Self:
        """An empty descriptor of a file without blocks."""
        raw = bytearray(INODE_BYTES)
        struct.pack_into("<IQ", raw, 0, _LOCK_MAGIC, offset)
        struct.pack_into("<Q", raw, 0x1C, 1)
        now = int(time.time())
        struct.pack_into("<III", raw, METADATA + 0x2C, now, now, now)
        struct.pack_into("<I", raw, METADATA + 0x68, address)
        struct.pack_into("<I", raw, METADATA + 0x6C, 20)
        self = cls(offset, raw)
        self.set("address", address)
        self.set("generation", generation)
        self.set("links", 1)
        self.set("kind", kind)
        self.set("block_size", 1 << shift)
        self.set("shift", shift)
        self.set("mode", mode)
        self.set("addressing", addressing)
        self.set("signature", INODE_MAGIC)
        self.set("parent", parent)
        return self

    def get(self, field: str) -> int:
        """Value of a field."""
        at, form = _FIELDS[field]
        return int(struct.unpack_from(form, self.raw, METADATA + at)[0])

    def set(self, field: str, value: int) -> None:
        """Change a field in memory."""
        at, form = _FIELDS[field]
        struct.pack_into(form, self.raw, METADATA + at, value)

    @property
    def address(self) -> int:
        """The descriptor's own address."""
        return self.get("address")

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self.get("size")

    @property
    def shift(self) -> int:
        """log2 of the bytes one pointer stands for."""
        return self.get("shift")

    @property
    def addressing(self) -> int:
        """How the pointers are to be read."""
        return self.get("addressing")

    @property
    def pointers(self) -> list[int]:
        """The pointers held in the descriptor itself; zero is none."""
        return list(struct.unpack_from(f"<{POINTERS_PER_INODE}Q", self.raw, _POINTERS_AT))

    def set_pointers(self, pointers: dict[int, int]) -> None:
        """Replace all pointers held in the descriptor itself."""
        table = [0] * POINTERS_PER_INODE
        for index, pointer in pointers.items():
            table[index] = pointer
        struct.pack_into(f"<{POINTERS_PER_INODE}Q", self.raw, _POINTERS_AT, *table)

    @property
    def resident(self) -> bytes:
        """Content of a file small enough to lie in its descriptor."""
        return bytes(self.raw[_RESIDENT_AT : _RESIDENT_AT + self.size])

    def set_resident(self, data: bytes) -> None:
        """Put a small file's content into its descriptor."""
        self.raw[_RESIDENT_AT:] = data.ljust(INODE_BYTES - _RESIDENT_AT, b"\0")
        self.set("size", len(data))

    def set_block_count(self, count: int, new: int | None = None) -> None:
        """Blocks the file has; `new` are those of them that count as new, all by default."""
        self.set("block_count", count)
        self.set("new_since_epoch", (count if new is None else new) & 0xFFFFFFFF)

    def is_what(self, *kinds: Kind) -> bool:
        """Whether the descriptor is of one of these kinds."""
        return self.get("kind") in kinds

    @property
    def is_directory(self) -> bool:
        """Whether it holds directory blocks; .sdd.sf is a system file and yet a directory."""
        return self.is_what(Kind.DIRECTORY) or (
            self.is_what(Kind.SYSTEM) and self.get("mode") & 0o170000 == 0o040000
        )


def is_descriptor_address(address: int) -> bool:
    """Whether an address can be that of a file descriptor."""
    return address & 7 == Resource.DESCRIPTOR
