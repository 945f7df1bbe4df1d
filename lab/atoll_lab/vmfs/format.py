"""Making an empty VMFS 6 volume on a LUN image.

The layout is that of a volume made by ESX 7, with smaller system files: LVM
header and one physical extent table, file system descriptor, heartbeats, then
the system files from block 7 on. The file system descriptor is written last,
so a volume half made is none.
"""

import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from atoll_lab.vmfs.allocation import Pool, small_block_bit
from atoll_lab.vmfs.device import Device
from atoll_lab.vmfs.directories import EMPTY_BYTES, Directory, empty_directory
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.gpt import FIRST_BYTE, TAIL_BYTES, write_table
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import (
    BLOCKS_PER_CLUSTER,
    CLUSTER_GROUP,
    CLUSTER_MAGIC,
    DESCRIPTOR,
    FBB,
    FDC,
    FILE_BLOCK,
    FIRST_DESCRIPTORS,
    HEARTBEATS,
    INODE_BYTES,
    JBC,
    LVM_HEADER,
    LVM_MAGIC,
    METADATA,
    MIB,
    PB2,
    PBC,
    PHYSICAL_EXTENT,
    POINTERS_PER_INODE,
    RESOURCE_MAGIC,
    ROOT,
    SBC,
    SDD,
    SUB_BLOCK,
    SYSTEM_FILES,
    UNMAP,
    VH,
    VMFS_MAGIC,
    VOLUME_START,
    Addressing,
    Kind,
    Resource,
    block_pointer,
    inode_address,
)

_FIRST_INODE = FIRST_DESCRIPTORS + CLUSTER_GROUP + 8 * 2 * METADATA
_LARGE_GROUP_BYTES = 0x110000
_LARGE_PER_GROUP = 128
_SYSTEM_INODES = 10
_HEARTBEAT_SLOTS = 1024
_HEARTBEAT_CLEAR = 0xABCDEF01
_SMALL_HEADER = 0x1000
_LOCK = {
    Resource.FILE_BLOCK: 0x10C00002,
    Resource.SUB_BLOCK: 0x10C00003,
    Resource.DESCRIPTOR: 0x10C00005,
    Resource.POINTER_BLOCK_2: 0x10C00006,
    Resource.JOURNAL_BLOCK: 0x10C00007,
    Resource.LARGE_BLOCK: 0x10C00008,
}


@dataclass(frozen=True)
class _PlainFile:
    """A resource file of one cluster group; sizes in bytes, `first_used` resources are owned."""

    number: int
    kind: Resource
    per_cluster: int
    clusters: int
    resource_bytes: int
    flags: int
    first_used: int = 0

    @property
    def group_bytes(self) -> int:
        """Headers and resources of the group."""
        per_cluster = 2 * METADATA + self.per_cluster * self.resource_bytes
        return self.clusters * per_cluster


_PLAIN = (
    _PlainFile(FDC, Resource.DESCRIPTOR, 256, 8, INODE_BYTES, 4, _SYSTEM_INODES),
    _PlainFile(SBC, Resource.SUB_BLOCK, 256, 8, SUB_BLOCK, 4),
    _PlainFile(PB2, Resource.POINTER_BLOCK_2, 32, 8, SUB_BLOCK, 4),
    _PlainFile(JBC, Resource.JOURNAL_BLOCK, 8, 4, 2 * MIB, 0),
)


def format_volume(
    image: Path, size_bytes: int, label: str, naa: bytes | None = None, gpt: bool = True
) -> None:
    """Make an empty VMFS 6 volume on a LUN of `size_bytes`, in place; what was there is gone.

    The image is made or grown to that size if need be and stays sparse. `naa` is
    the LUN's identity (up to 28 bytes) as the volume remembers it; without one
    it gets a random one. `gpt` False puts the volume on the bare LUN, as tools
    that know no partitions want it. ValueError below 531 MiB, for a label over
    127 bytes and for more than the largest volume the lab makes (about 18 TiB).
    """
    if len(label.encode()) > 127:
        raise ValueError(f"the label {label!r} is longer than 127 bytes")
    start = FIRST_BYTE if gpt else 0
    partition = size_bytes - start - (TAIL_BYTES if gpt else 0)
    logical = (partition - VOLUME_START) // PHYSICAL_EXTENT * PHYSICAL_EXTENT
    if logical < 2 * PHYSICAL_EXTENT:
        raise ValueError(f"a LUN of {size_bytes} bytes is too small for a VMFS 6 volume")
    _Formatter(logical // FILE_BLOCK)  # refuses sizes before anything is touched
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size_bytes:
            os.truncate(fd, size_bytes)
    finally:
        os.close(fd)
    with Device(image, start) as device:
        device.clear(-device.base, size_bytes)
        if gpt:
            fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
            try:
                partition = write_table(fd, size_bytes)
            finally:
                os.close(fd)
        identity = (naa or b"\x60" + os.urandom(15))[:28]
        _Formatter(logical // FILE_BLOCK).write(device, partition, label, identity)


def _new_uuid() -> bytes:
    """A VMware UUID: time, random bits, and a locally administered MAC address."""
    return struct.pack("<I", int(time.time())) + os.urandom(6) + b"\x02\x1a\xb0\x00\x00\x01"


def _uuid_text(raw: bytes) -> str:
    low, high, random, mac = struct.unpack("<IIH6s", raw)
    return f"{low:08x}-{high:08x}-{random:04x}-{mac.hex()}"


def _resource_header(
    per_cluster: int,
    clusters_per_group: int,
    resource_bytes: int,
    group_bytes: int,
    count: int,
    groups: int,
    flags: int,
    affinity: int,
    bits: int,
    child: int = 0,
    parent: tuple[int, int, int] = (0, 0, 0),
    converted: int = 0,
) -> bytes:
    """FS3_ResFileMetadata."""
    return struct.pack(
        "<17I16xI",
        per_cluster,
        clusters_per_group,
        CLUSTER_GROUP,
        resource_bytes,
        group_bytes,
        count & 0xFFFFFFFF,
        groups,
        count >> 32,
        RESOURCE_MAGIC,
        1,
        flags,
        affinity,
        bits,
        child,
        *parent,
        converted,
    )


def _cluster(kind: Resource, at: int, number: int, total: int, free: int) -> bytearray:
    """A cluster's lock and metadata blocks, its bitmap still all used."""
    raw = bytearray(2 * METADATA)
    struct.pack_into("<IQ", raw, 0, _LOCK[kind], at)
    struct.pack_into("<Q", raw, 0x1C, 1)
    struct.pack_into("<IIQHH", raw, METADATA + 0x10, CLUSTER_MAGIC, 0, number, total, free)
    struct.pack_into("<I", raw, METADATA + 0x30, 1)
    return raw


class _Formatter:
    """The places of all system files on a volume of `blocks` blocks, and the writing of them."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._large = -(-blocks // BLOCKS_PER_CLUSTER)
        self._large_clusters = -(-self._large // 16)
        groups = -(-self._large_clusters // 8)
        in_last = self._large - (groups - 1) * _LARGE_PER_GROUP
        self._large_groups = groups
        self._sizes = {
            FBB: CLUSTER_GROUP
            + (groups - 1) * _LARGE_GROUP_BYTES
            + 0x10000
            + in_last * 2 * METADATA,
            PBC: CLUSTER_GROUP,
            VH: 7 * MIB,
            SDD: EMPTY_BYTES,
            UNMAP: 0,
            ROOT: EMPTY_BYTES,
        } | {plain.number: CLUSTER_GROUP + plain.group_bytes for plain in _PLAIN}
        # .vh.sf covers what lies before block 7, .fdc.sf begins there: both are found by place
        self._places: dict[int, list[int]] = {VH: list(range(7)), UNMAP: []}
        following = 8
        for number in (FDC, FBB, PBC, SBC, PB2, SDD, JBC, ROOT):
            count = -(-self._sizes[number] // FILE_BLOCK)
            first = [7] if number == FDC else []
            self._places[number] = [
                *first,
                *range(following, following + count - len(first)),
            ]
            following += count - len(first)
            if count > POINTERS_PER_INODE:
                raise ValueError(f"a volume of {blocks} MiB is larger than the lab makes")
        self._used = following

    def write(self, device: Device, partition: int, label: str, naa: bytes) -> None:
        """Write everything; the file system descriptor last."""
        volume_id = _new_uuid()
        self._write_lvm(device, partition, naa, volume_id)
        for slot in range(_HEARTBEAT_SLOTS):
            at = HEARTBEATS + slot * METADATA
            device.write(at, struct.pack("<IQ", _HEARTBEAT_CLEAR, at))
        for number in range(_SYSTEM_INODES):
            self._write_inode(device, number)
        self._write_resources(device)
        self._write_file_blocks(device)
        root, sdd = inode_address(ROOT), inode_address(SDD)
        self._put(device, ROOT, 0, empty_directory(root, root, Kind.DIRECTORY))
        self._put(device, SDD, 0, empty_directory(sdd, root, Kind.SYSTEM))
        self._write_descriptor(device, label, volume_id)
        self._name_system_files(device)

    def _at(self, number: int, offset: int) -> int:
        return self._places[number][offset // FILE_BLOCK] * FILE_BLOCK + offset % FILE_BLOCK

    def _put(self, device: Device, number: int, offset: int, data: bytes) -> None:
        """Write into a system file; nothing written here crosses a block."""
        device.write(self._at(number, offset), data)

    def _write_lvm(self, device: Device, partition: int, naa: bytes, volume_id: bytes) -> None:
        logical = self._blocks * FILE_BLOCK
        extents, now = logical // PHYSICAL_EXTENT, int(time.time()) * 10**6
        head = bytearray(512)
        struct.pack_into("<IIIBB", head, 0, LVM_MAGIC, 6, 0x15, 1, len(naa))
        head[0x2E : 0x2E + len(naa)] = naa
        struct.pack_into("<IQIIIQQ", head, 0x5A, 512, partition, 1, 1, 0, 3, VOLUME_START)
        head[0x82:0x92] = _new_uuid()
        struct.pack_into("<QQ", head, 0x92, now, now)
        struct.pack_into("<III", head, 0xCA, METADATA, extents, 0)
        entry = bytearray(512)
        struct.pack_into("<QQI", entry, 0, logical, 2, 1)
        entry[0x14 : 0x14 + 35] = _uuid_text(volume_id).encode()[:35]
        entry[0x54:0x64] = volume_id
        struct.pack_into("<IQ", entry, 0x64, 1, now)
        struct.pack_into("<IIQQQI", entry, 0x70, 0, extents, 0, extents - 1, now, 1)
        struct.pack_into("<I", entry, 0x110, 1)
        device.write_partition(LVM_HEADER + METADATA, bytes(entry))
        device.write_partition(LVM_HEADER + 0x7F000, f"naa.{naa.hex()}:1".encode())
        device.write_partition(LVM_HEADER + 0x81000, b"\x01")
        run = struct.pack("<BIIQQQI", 1, 0, 0, VOLUME_START, 0, logical, 1)
        device.write_partition(LVM_HEADER + 0x82000, run)
        device.write_partition(LVM_HEADER, bytes(head))

    def _write_descriptor(self, device: Device, label: str, volume_id: bytes) -> None:
        now = int(time.time())
        d = bytearray(512)
        struct.pack_into("<IIB", d, 0, VMFS_MAGIC, 24, 82)
        d[9:25] = _new_uuid()
        struct.pack_into("<I", d, 0x19, 0x4006)
        d[0x1D : 0x1D + len(label.encode())] = label.encode()
        struct.pack_into("<IQII", d, 0x9D, 512, FILE_BLOCK, now, 1)
        d[0xB1:0xC1] = volume_id
        struct.pack_into("<I", d, 0xC1, 1)
        struct.pack_into("<IIII", d, 0xD1, CLUSTER_GROUP, 8, SUB_BLOCK, 0x40)
        struct.pack_into("<QI", d, 0xE1, _FIRST_INODE + PB2 * INODE_BYTES, inode_address(PB2))
        sdd = _FIRST_INODE + SDD * INODE_BYTES
        struct.pack_into("<QQI", d, 0xFD, 1, sdd, inode_address(SDD))
        struct.pack_into("<H", d, 0x112, 1)
        shifts = (512, METADATA, 9, 0, 0, 16, 44, 0, MIB, 2 * MIB, 16000, 4000)
        struct.pack_into("<IIHHHHHHIIII", d, 0x130, *shifts)
        device.write(DESCRIPTOR, bytes(d))

    def _write_inode(self, device: Device, number: int) -> None:
        directory = number in (ROOT, SDD)
        mode = 0o1755 if number == ROOT else 0o40700 if directory else 0o400
        inode = Inode.fresh(
            inode_address(number),
            _FIRST_INODE + number * INODE_BYTES,
            Kind.DIRECTORY if number == ROOT else Kind.SYSTEM,
            Addressing.FILE_BLOCKS,
            20,
            mode,
            0,
            1,
        )
        places = self._places[number]
        inode.set("size", self._sizes[number])
        inode.set("links", 3 if number == ROOT else 2 if directory else 1)
        inode.set_pointers({n: block_pointer(block) for n, block in enumerate(places)})
        inode.set_block_count(len(places))
        device.write(inode.offset, bytes(inode.raw))

    def _write_resources(self, device: Device) -> None:
        self._put(
            device, PBC, 0, _resource_header(0, 8, SUB_BLOCK, CLUSTER_GROUP, 0, 0, 4, 1 << 16, 1)
        )
        for plain in _PLAIN:
            count = plain.per_cluster * plain.clusters
            head = _resource_header(
                plain.per_cluster,
                plain.clusters,
                plain.resource_bytes,
                plain.group_bytes,
                count,
                1,
                plain.flags,
                plain.per_cluster | 1 << 16,
                1,
            )
            self._put(device, plain.number, 0, head)
            for number in range(plain.clusters):
                at = CLUSTER_GROUP + number * 2 * METADATA
                used = plain.first_used if number == 0 else 0
                total = plain.per_cluster
                where = self._at(plain.number, at)
                raw = _cluster(plain.kind, where, number, total, total - used)
                bits = (1 << total) - (1 << used)
                raw[METADATA + 0x80 : METADATA + 0x80 + total // 8] = bits.to_bytes(
                    total // 8, "little"
                )
                self._put(device, plain.number, at, bytes(raw))

    def _write_file_blocks(self, device: Device) -> None:
        """The bitmaps of all blocks: every large block is split into small ones from the start."""
        large = _resource_header(
            16,
            8,
            0x2000,
            _LARGE_GROUP_BYTES,
            self._large,
            self._large_groups,
            0x35,
            0x348 | 0x34 << 16,
            3,
            child=_SMALL_HEADER,
        )
        small = _resource_header(
            BLOCKS_PER_CLUSTER,
            8,
            0,
            CLUSTER_GROUP,
            self._blocks,
            -(-self._large // 8),
            0x2A,
            0xD8 | 1 << 16,
            2,
            parent=(16, 8, _LARGE_GROUP_BYTES),
            converted=self._large,
        )
        self._put(device, FBB, 0, large)
        self._put(device, FBB, _SMALL_HEADER, small)
        for number in range(self._large_clusters):
            group, within = divmod(number, 8)
            at = CLUSTER_GROUP + group * _LARGE_GROUP_BYTES + within * 2 * METADATA
            count = min(16, self._large - number * 16)
            raw = _cluster(Resource.LARGE_BLOCK, self._at(FBB, at), number, count, 0)
            struct.pack_into("<H", raw, METADATA + 0x2A, 7)
            split = sum(0b100 << 3 * n for n in range(count))
            raw[METADATA + 0x80 : METADATA + 0x86] = split.to_bytes(6, "little")
            for n in range(count):
                raw[METADATA + 0xE0 + 8 * n] = 0xFF
            self._put(device, FBB, at, bytes(raw))
        for number in range(self._large):
            group, within = divmod(number, _LARGE_PER_GROUP)
            at = CLUSTER_GROUP + group * _LARGE_GROUP_BYTES + 0x10000 + within * 2 * METADATA
            total = min(BLOCKS_PER_CLUSTER, self._blocks - number * BLOCKS_PER_CLUSTER)
            used = max(0, min(total, self._used - number * BLOCKS_PER_CLUSTER))
            raw = _cluster(Resource.FILE_BLOCK, self._at(FBB, at), number, total, total - used)
            struct.pack_into("<H", raw, METADATA + 0x2A, 0x100)
            for block in range(used, total):
                byte, shift = small_block_bit(block)
                raw[METADATA + byte] |= 1 << shift
            self._put(device, FBB, at, bytes(raw))

    @staticmethod
    def _name_system_files(device: Device) -> None:
        table = FileTable(device)
        blocks = Pool(table, Resource.FILE_BLOCK)
        root = Directory(table, table.system(ROOT), blocks, Pool(table, Resource.SUB_BLOCK))
        for number, name in enumerate(SYSTEM_FILES, 1):
            root.add(name, inode_address(number), Kind.SYSTEM, 1)
