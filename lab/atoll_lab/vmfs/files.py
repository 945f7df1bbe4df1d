"""File descriptors on a volume, and the content of metadata files through their pointers."""

import struct
from dataclasses import dataclass
from functools import cache

from atoll.model.errors import UnsupportedFormatError
from atoll_lab.vmfs.device import Device
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import (
    CLUSTER_GROUP,
    DESCRIPTOR,
    FBB,
    FDC,
    FILE_BLOCK,
    FIRST_DESCRIPTORS,
    INODE_BYTES,
    INODE_MAGIC,
    INODES_PER_CLUSTER,
    LOCAL_VMFS_MAGIC,
    METADATA,
    PB2,
    POINTERS_PER_BLOCK,
    RESOURCE_MAGIC,
    SBC,
    SUB_BLOCK,
    VMFS_MAGIC,
    Addressing,
    Resource,
    block_number,
    inode_address,
    inode_number,
    resource_number,
)

_CHILD_HEADER = 0x1000  # of the small blocks, in .fbb.sf behind that of the large ones


@dataclass(frozen=True)
class Geometry:
    """How a resource file is cut up (FS3_ResFileMetadata); counts, and sizes in bytes."""

    per_cluster: int
    clusters_per_group: int
    first_group: int
    resource_bytes: int
    group_bytes: int
    count: int
    parent_per_cluster: int
    parent_clusters_per_group: int
    parent_group_bytes: int

    def resource_at(self, number: int) -> int:
        """Where a resource's bytes are in its file."""
        cluster, resource = divmod(number, self.per_cluster)
        group, within = divmod(cluster, self.clusters_per_group)
        headers = self.clusters_per_group * 2 * METADATA
        return (
            self.first_group
            + group * self.group_bytes
            + headers
            + (within * self.per_cluster + resource) * self.resource_bytes
        )

    def cluster_at(self, cluster: int) -> int:
        """Where a cluster's lock and metadata blocks are in its file.

        Clusters of small blocks lie in the data part of the large blocks' groups.
        """
        if self.parent_per_cluster:
            per_group = self.parent_clusters_per_group * self.parent_per_cluster
            group, within = divmod(cluster, per_group)
            headers = self.parent_clusters_per_group * 2 * METADATA
            return (
                self.first_group + group * self.parent_group_bytes + headers + within * 2 * METADATA
            )
        group, within = divmod(cluster, self.clusters_per_group)
        return self.first_group + group * self.group_bytes + within * 2 * METADATA

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return -(-self.count // self.per_cluster) if self.per_cluster else 0


class FileTable:
    """The files of one volume by descriptor address."""

    def __init__(self, device: Device) -> None:
        self.device = device
        head = device.read(DESCRIPTOR, 512)
        magic, major = struct.unpack_from("<II", head)
        (block,) = struct.unpack_from("<Q", head, 0xA1)
        (alignment,) = struct.unpack_from("<I", head, 0x134)
        known = magic in (VMFS_MAGIC, LOCAL_VMFS_MAGIC) and major >= 24
        if not known or block != FILE_BLOCK or alignment != METADATA:
            raise UnsupportedFormatError(
                f"{device.image} is not the VMFS 6 volume the lab makes; format it first."
            )
        self.geometry = cache(self._geometry)

    def _geometry(self, kind: Resource) -> Geometry:
        number, at = {
            Resource.FILE_BLOCK: (FBB, _CHILD_HEADER),
            Resource.LARGE_BLOCK: (FBB, 0),
            Resource.DESCRIPTOR: (FDC, 0),
            Resource.SUB_BLOCK: (SBC, 0),
            Resource.POINTER_BLOCK_2: (PB2, 0),
        }[kind]
        h = struct.unpack("<22I", self.read(self.system(number), at, 88))
        if h[8] != RESOURCE_MAGIC:
            raise UnsupportedFormatError(f"{self.device.image} has a damaged resource file.")
        return Geometry(h[0], h[1], h[2], h[3], h[4], h[5] | h[7] << 32, h[14], h[15], h[16])

    def system(self, number: int) -> Inode:
        """A system file, or the root; they are at a fixed place."""
        at = FIRST_DESCRIPTORS + CLUSTER_GROUP + 8 * 2 * METADATA + number * INODE_BYTES
        return self._load(at, inode_address(number))

    def inode_at(self, number: int) -> int:
        """Volume offset of a descriptor."""
        if number < INODES_PER_CLUSTER:
            return FIRST_DESCRIPTORS + CLUSTER_GROUP + 8 * 2 * METADATA + number * INODE_BYTES
        geometry = self.geometry(Resource.DESCRIPTOR)
        return self.locate(self.system(FDC), geometry.resource_at(number))

    def inode(self, address: int) -> Inode:
        """Read a descriptor."""
        return self._load(self.inode_at(inode_number(address)), address)

    def _load(self, at: int, address: int) -> Inode:
        inode = Inode(at, self.device.read(at, INODE_BYTES))
        if inode.address != address or inode.get("signature") != INODE_MAGIC:
            raise UnsupportedFormatError(
                f"{self.device.image} has no file descriptor {address:#x}; check the volume."
            )
        return inode

    def save(self, inode: Inode) -> None:
        """Write a descriptor."""
        self.device.write(inode.offset, bytes(inode.raw))

    def pointer_at(self, pointer: int) -> int:
        """Volume offset of what a pointer means."""
        kind = pointer & 7
        if kind == Resource.FILE_BLOCK:
            return block_number(pointer) * FILE_BLOCK
        if kind in (Resource.SUB_BLOCK, Resource.POINTER_BLOCK_2):
            geometry = self.geometry(Resource(kind))
            file = self.system(SBC if kind == Resource.SUB_BLOCK else PB2)
            number = resource_number(pointer, geometry.per_cluster)
            return self.locate(file, geometry.resource_at(number))
        raise UnsupportedFormatError(
            f"{self.device.image} has a pointer {pointer:#x} of a kind the lab does not write."
        )

    def locate(self, inode: Inode, offset: int) -> int:
        """Volume offset of a byte of a metadata file, which has no holes."""
        index, within = offset >> inode.shift, offset & ((1 << inode.shift) - 1)
        if inode.addressing in (Addressing.FILE_BLOCKS, Addressing.SUB_BLOCKS):
            pointer = inode.pointers[index]
        elif inode.addressing in (Addressing.POINTER_BLOCKS, Addressing.POINTER_BLOCKS_2):
            above = inode.pointers[index // POINTERS_PER_BLOCK]
            at = self.pointer_at(above) + index % POINTERS_PER_BLOCK * 8
            (pointer,) = struct.unpack("<Q", self.device.read(at, 8))
        else:
            pointer = 0
        if not pointer:
            raise UnsupportedFormatError(
                f"{self.device.image} has a metadata file with a hole at {offset}."
            )
        return self.pointer_at(pointer) + within

    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Read from a metadata file."""
        parts: list[bytes] = []
        while length:
            size = min(length, (1 << inode.shift) - offset % (1 << inode.shift))
            parts.append(self.device.read(self.locate(inode, offset), size))
            offset, length = offset + size, length - size
        return b"".join(parts)

    def write(self, inode: Inode, offset: int, data: bytes) -> None:
        """Write into a metadata file that has the blocks for it."""
        while data:
            size = min(len(data), (1 << inode.shift) - offset % (1 << inode.shift))
            self.device.write(self.locate(inode, offset), data[:size])
            offset, data = offset + size, data[size:]

    def block_map(self, inode: Inode) -> tuple[dict[int, int], list[int]]:
        """(pointer of each block that is there by its index, pointers to all pointer blocks)."""
        if inode.addressing in (Addressing.RESIDENT, Addressing.NONE):
            return {}, []
        depth = {
            Addressing.POINTER_BLOCKS: 1,
            Addressing.POINTER_BLOCKS_2: 1,
            Addressing.DOUBLE: 2,
        }.get(Addressing(inode.addressing), 0)
        level = {index: p for index, p in enumerate(inode.pointers) if p}
        above: list[int] = []
        for _ in range(depth):
            below: dict[int, int] = {}
            for index, pointer in level.items():
                above.append(pointer)
                raw = self.device.read(self.pointer_at(pointer), SUB_BLOCK)
                table = struct.unpack(f"<{POINTERS_PER_BLOCK}Q", raw)
                base = index * POINTERS_PER_BLOCK
                below.update((base + n, p) for n, p in enumerate(table) if p)
            level = below
        return level, above
