"""VMFS 6 directories: a hash table over blocks of entries, with link groups where names collide.

Structures: dissect.vmfs, `FS6_DirHeader`, `FS6_DirEntry`, `FS6_DirLinkGroup`
and the description in `descriptor.py`. Blocks are 4 KiB; block 0, behind the
64 KiB header, is the allocation map with four bits a block.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from atoll.model.errors import UnsupportedFormatError
from atoll_lab.vmfs.allocation import Pool
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import (
    METADATA,
    POINTERS_PER_INODE,
    ROOT,
    SYSTEM_FILES,
    Kind,
    Resource,
    block_pointer,
    inode_address,
    resource_pointer,
)
from atoll_lab.vmfs.name_hash import name_hash

HEADER_BYTES = 0x10000
EMPTY_BYTES = HEADER_BYTES + METADATA
_VERSION = 0xF50001
_SELF_ENTRY, _PARENT_ENTRY, _HASH_TABLE = 0x3B8, 0x4D8, 0x5F8
_HASH_SLOTS, _ROOT_RESERVED = 16001, 28
_FIRST_SYSTEM_HASH = 0x3E66
_BLOCK_HEADER = 64
_ENTRIES, _LINK_GROUPS, _LINKS = 1, 2, 12
_ENTRY_BYTES, _ENTRY_SLOTS = 288, 14
_GROUP_BYTES, _GROUP_SLOTS = 84, 48
_MAP_BLOCK = 3


class Location(NamedTuple):
    """A slot of a block, as the hash table and link groups code it; `kind` 0 is nowhere."""

    kind: int
    block: int
    slot: int

    def packed(self) -> int:
        """The coded form."""
        return self.kind | self.block << 2 | self.slot << 24


def _location(coded: int) -> Location:
    return Location(coded & 3, (coded >> 2) & 0x3FFFFF, coded >> 24)


class Entry(NamedTuple):
    """A name in a directory."""

    name: str
    address: int
    kind: int
    link_hash: int
    location: Location


def empty_directory(address: int, parent: int, kind: Kind) -> bytes:
    """The first bytes of a directory with nothing but itself and its parent."""
    image = bytearray(EMPTY_BYTES)
    struct.pack_into("<IIII", image, 0, _VERSION, 2, 2, 1)
    for at, target, name, type_ in (
        (_SELF_ENTRY, address, b".", kind),
        (_PARENT_ENTRY, parent, b"..", Kind.DIRECTORY),
    ):
        struct.pack_into("<IIIHHQ", image, at, type_, target, 1, 0, 0, at)
        image[at + 24 : at + 24 + len(name)] = name
    struct.pack_into("<HHHH", image, HEADER_BYTES, 0, _MAP_BLOCK, 0, 0)
    image[HEADER_BYTES + _BLOCK_HEADER :] = b"\x88" * (METADATA - _BLOCK_HEADER)  # not written yet
    image[HEADER_BYTES + _BLOCK_HEADER] = _MAP_BLOCK << 4 | 0x8
    return bytes(image)


class Directory:
    """One directory; every change is on disk when the call returns, the hash table last."""

    def __init__(self, table: FileTable, inode: Inode, blocks: Pool, sub_blocks: Pool) -> None:
        self._table = table
        self._inode = inode
        self._blocks = blocks
        self._sub_blocks = sub_blocks
        self._is_root = inode.address == inode_address(ROOT)

    @property
    def inode(self) -> Inode:
        """The directory's own descriptor."""
        return self._inode

    def entries(self) -> list[Entry]:
        """All names but `.` and `..`, in the order they lie."""
        found: list[Entry] = []
        for block in self._blocks_of(_ENTRIES):
            raw = self._read(self._block_at(block), METADATA)
            for slot in range(_ENTRY_SLOTS):
                if not self._is_free(raw, slot):
                    at = _BLOCK_HEADER + slot * _ENTRY_BYTES
                    kind, address, _, _, link_hash = struct.unpack_from("<IIIHH", raw, at)
                    name = raw[at + 24 : at + 280].split(b"\0")[0].decode("utf-8", "replace")
                    where = Location(_ENTRIES, block, slot)
                    found.append(Entry(name, address, kind, link_hash, where))
        return found

    def find(self, name: str) -> Entry | None:
        """The entry of that name, by looking at all of them."""
        return next((entry for entry in self.entries() if entry.name == name), None)

    def hashed(self, name: str) -> Location:
        """Where the hash table says a name is; kind 0 when it says nowhere."""
        index, link_hash, _ = self._hashes(name)
        where = self._hash_slot(index)
        while where.kind == _LINK_GROUPS:
            links, following = self._links(where)
            where = next((loc for loc, value in links if value == link_hash), following)
        return where

    def add(self, name: str, address: int, kind: int, generation: int) -> None:
        """Enter a name that is not there yet."""
        if self.find(name) is not None:
            raise FileExistsError(17, "there is a file of that name", name)
        index, link_hash, low = self._hashes(name)
        where, header = self._spare_slot(_ENTRIES, _ENTRY_SLOTS)
        at = self._block_at(where.block) + _BLOCK_HEADER + where.slot * _ENTRY_BYTES
        head = struct.pack("<IIIHHQ", kind, address, generation, low, link_hash, at)
        self._write(at, head + name.encode().ljust(256, b"\0") + bytes(8))
        self._claim(where, header)
        self._link(index, where, link_hash)
        self._count(1)

    def remove(self, name: str) -> Entry:
        """Strike a name out; FileNotFoundError when it is not there."""
        entry = self.find(name)
        if entry is None:
            raise FileNotFoundError(2, "there is no file of that name", name)
        self._unlink(self._hashes(name)[0], entry.location)
        self._free_slot(entry.location)
        self._count(-1)
        return entry

    def point(self, name: str, address: int, generation: int) -> None:
        """Let an existing name mean another file."""
        entry = self.find(name)
        if entry is None:
            raise FileNotFoundError(2, "there is no file of that name", name)
        where = entry.location
        at = self._block_at(where.block) + _BLOCK_HEADER + where.slot * _ENTRY_BYTES
        self._write(at + 4, struct.pack("<II", address, generation))

    def counted(self) -> int:
        """How many entries the header says there are, `.` and `..` included."""
        return int(struct.unpack("<I", self._read(4, 4))[0])

    def _hashes(self, name: str) -> tuple[int, int, int]:
        """(index in the hash table, link hash, low half); system files have fixed places."""
        if self._is_root and name in SYSTEM_FILES:
            return _FIRST_SYSTEM_HASH + SYSTEM_FILES.index(name), 0, 0
        value = name_hash(name.encode())
        slots = _HASH_SLOTS - _ROOT_RESERVED if self._is_root else _HASH_SLOTS
        return value % slots, value >> 16 & 0xFFFF, value & 0xFFFF

    def _link(self, index: int, where: Location, link_hash: int) -> None:
        old = self._hash_slot(index)
        if not old.kind:
            self._set_hash_slot(index, where)
        elif old.kind == _ENTRIES:
            at = self._block_at(old.block) + _BLOCK_HEADER + old.slot * _ENTRY_BYTES
            (old_hash,) = struct.unpack("<H", self._read(at + 14, 2))
            group, header = self._spare_slot(_LINK_GROUPS, _GROUP_SLOTS)
            self._set_links(group, index, [(old, old_hash), (where, link_hash)])
            self._claim(group, header)
            self._set_hash_slot(index, group)
        else:
            links, _ = self._links(old)
            if len(links) == _LINKS:
                raise UnsupportedFormatError(
                    f"More than {_LINKS} names share the hash {index:#x}; choose another name."
                )
            self._set_links(old, index, [*links, (where, link_hash)])

    def _unlink(self, index: int, where: Location) -> None:
        old = self._hash_slot(index)
        if old == where:
            self._set_hash_slot(index, Location(0, 0, 0))
        elif old.kind == _LINK_GROUPS:
            links, following = self._links(old)
            if following.kind:
                raise UnsupportedFormatError(
                    f"Names under the hash {index:#x} go on in a second group, which the lab "
                    "does not write; change this directory on an ESX host."
                )
            kept = [link for link in links if link[0] != where]
            if kept:
                self._set_links(old, index, kept)
            else:
                self._set_hash_slot(index, Location(0, 0, 0))
                self._free_slot(old)

    def _links(self, group: Location) -> tuple[list[tuple[Location, int]], Location]:
        """((location, link hash) of each link, where the next group is)."""
        raw = self._read(self._group_at(group), _GROUP_BYTES)
        total, free = raw[2], raw[3]
        links = []
        for n in range(min(total - free, _LINKS)):
            coded, value = struct.unpack_from("<IH", raw, 6 + 6 * n)
            links.append((_location(coded), value))
        return links, _location(struct.unpack_from("<I", raw, 0x4E)[0])

    def _set_links(self, group: Location, index: int, links: list[tuple[Location, int]]) -> None:
        raw = bytearray(_GROUP_BYTES)
        struct.pack_into("<HBBB", raw, 0, index, _LINKS, _LINKS - len(links), len(links))
        for n, (where, value) in enumerate(links):
            struct.pack_into("<IH", raw, 6 + 6 * n, where.packed(), value)
        self._write(self._group_at(group), bytes(raw))

    def _group_at(self, group: Location) -> int:
        return self._block_at(group.block) + _BLOCK_HEADER + group.slot * _GROUP_BYTES

    def _hash_slot(self, index: int) -> Location:
        return _location(struct.unpack("<I", self._read(_HASH_TABLE + 4 * index, 4))[0])

    def _set_hash_slot(self, index: int, where: Location) -> None:
        self._write(_HASH_TABLE + 4 * index, struct.pack("<I", where.packed()))

    def _count(self, change: int) -> None:
        entries, allocated = struct.unpack("<II", self._read(4, 8))
        self._write(4, struct.pack("<II", entries + change, allocated + change))

    @staticmethod
    def _block_at(block: int) -> int:
        return HEADER_BYTES + block * METADATA

    @staticmethod
    def _is_free(header: bytes | bytearray, slot: int) -> bool:
        return bool(header[8 + slot // 8] >> slot % 8 & 1)

    def _blocks_of(self, kind: int) -> Iterator[int]:
        """Blocks of a kind that have been written."""
        block_map = self._read(HEADER_BYTES + _BLOCK_HEADER, METADATA - _BLOCK_HEADER)
        for block in range((self._inode.size - HEADER_BYTES) // METADATA):
            state = block_map[block // 2] >> (0 if block % 2 else 4) & 0xF
            if not state & 8 and state & 3 == kind:
                yield block

    def _spare_slot(self, kind: int, slots: int) -> tuple[Location, bytearray]:
        """A free slot and its block's header; nobody owns it until it is claimed."""
        for block in self._blocks_of(kind):
            header = bytearray(self._read(self._block_at(block), _BLOCK_HEADER))
            for slot in range(slots):
                if self._is_free(header, slot):
                    return Location(kind, block, slot), header
        header = bytearray(_BLOCK_HEADER)
        struct.pack_into("<HHHH", header, 0, 1, kind, slots, slots)
        header[8:16] = ((1 << slots) - 1).to_bytes(8, "little")
        return Location(kind, self._grow(), 0), header

    def _claim(self, where: Location, header: bytearray) -> None:
        header[8 + where.slot // 8] &= ~(1 << where.slot % 8) & 0xFF
        self._save_slots(where.kind, where.block, header, -1)

    def _free_slot(self, where: Location) -> None:
        header = bytearray(self._read(self._block_at(where.block), _BLOCK_HEADER))
        header[8 + where.slot // 8] |= 1 << where.slot % 8
        self._save_slots(where.kind, where.block, header, 1)

    def _save_slots(self, kind: int, block: int, header: bytearray, change: int) -> None:
        (free,) = struct.unpack_from("<H", header, 6)
        struct.pack_into("<H", header, 6, free + change)
        self._write(self._block_at(block), bytes(header))
        at = HEADER_BYTES + _BLOCK_HEADER + block // 2
        state = kind | (4 if free + change else 0)
        (old,) = self._read(at, 1)
        both = old & 0xF0 | state if block % 2 else old & 0x0F | state << 4
        self._write(at, bytes((both,)))

    def _grow(self) -> int:
        """Append a block; returns its number."""
        inode = self._inode
        size, shift = inode.size, inode.shift
        if (size + METADATA - 1) >> shift > (size - 1) >> shift:
            index = (size + METADATA - 1) >> shift
            if index >= POINTERS_PER_INODE:
                raise UnsupportedFormatError("The directory is full; make another one.")
            wide = shift == 20
            pool = self._blocks if wide else self._sub_blocks
            (number,) = pool.allocate(1)
            pointer = (
                block_pointer(number)
                if wide
                else resource_pointer(Resource.SUB_BLOCK, number, pool.geometry.per_cluster)
            )
            pointers = {n: p for n, p in enumerate(inode.pointers) if p}
            inode.set_pointers({**pointers, index: pointer})
            inode.set_block_count(len(pointers) + 1)
        inode.set("size", size + METADATA)
        block = (size - HEADER_BYTES) // METADATA
        self._table.save(inode)
        self._write(size, bytes(METADATA))
        return block

    def _read(self, offset: int, length: int) -> bytes:
        return self._table.read(self._inode, offset, length)

    def _write(self, offset: int, data: bytes) -> None:
        self._table.write(self._inode, offset, data)
