"""Does a volume add up: bitmaps against what files use, directories against descriptors."""

from collections.abc import Iterator
from pathlib import Path

from atoll_lab.vmfs.allocation import Pool
from atoll_lab.vmfs.device import Device
from atoll_lab.vmfs.directories import Directory
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import (
    ROOT,
    SYSTEM_FILES,
    Kind,
    Resource,
    block_number,
    inode_address,
    inode_number,
    resource_number,
)

_MAX_SENTENCES = 100
_ON_ITS_OWN = len(SYSTEM_FILES) + 1  # system files that need not be in the root


def check(image: Path) -> list[str]:
    """What is wrong with a volume, one sentence each, at most a hundred; empty when all is well.

    Every file block, sub-block and descriptor in use must be marked so, be used
    once, and nothing else be marked; counts must match bitmaps; every name must
    be found by its hash and mean a descriptor that is there, every descriptor
    have a name. Raises UnsupportedFormatError for what is no VMFS 6 volume.
    """
    with Device(image) as device:
        found = []
        for sentence in _Checker(FileTable(device)).findings():
            found.append(sentence)
            if len(found) == _MAX_SENTENCES:
                break
        return found


class _Checker:
    def __init__(self, table: FileTable) -> None:
        self._table = table
        self._pools = {
            kind: Pool(table, kind)
            for kind in (Resource.FILE_BLOCK, Resource.SUB_BLOCK, Resource.DESCRIPTOR)
        }
        self._users: dict[Resource, dict[int, int]] = {kind: {} for kind in self._pools}
        self._inodes: dict[int, Inode] = {}

    def findings(self) -> Iterator[str]:
        """All that is wrong."""
        for number in self._marked(Resource.DESCRIPTOR):
            address = inode_address(number)
            self._users[Resource.DESCRIPTOR][number] = address
            self._inodes[address] = self._table.inode(address)
        for inode in self._inodes.values():
            yield from self._check_pointers(inode)
        for kind in self._pools:
            yield from self._check_bitmap(kind)
        yield from self._check_names()

    def _marked(self, kind: Resource) -> Iterator[int]:
        pool = self._pools[kind]
        for number in range(pool.geometry.clusters):
            cluster = pool.cluster(number)
            for resource in range(cluster.total):
                if not cluster.is_free(resource):
                    yield number * pool.geometry.per_cluster + resource

    def _check_pointers(self, inode: Inode) -> Iterator[str]:
        if inode.is_what(Kind.RDM):
            return
        pointers, above = self._table.block_map(inode)
        for pointer in [*pointers.values(), *above]:
            kind = pointer & 7
            if kind == Resource.FILE_BLOCK:
                number = block_number(pointer)
            elif kind == Resource.SUB_BLOCK:
                per_cluster = self._pools[Resource.SUB_BLOCK].geometry.per_cluster
                number = resource_number(pointer, per_cluster)
            elif kind == Resource.POINTER_BLOCK_2:
                continue  # only system files use these, and they are not shared
            else:
                yield f"Descriptor {inode.address:#x} has a pointer {pointer:#x} of unknown kind."
                continue
            users = self._users[Resource(kind)]
            if number in users:
                name = self._pools[Resource(kind)].name
                yield (
                    f"Of the {name}, {number} belongs to descriptors {users[number]:#x} "
                    f"and {inode.address:#x}."
                )
            users[number] = inode.address

    def _check_bitmap(self, kind: Resource) -> Iterator[str]:
        pool, users = self._pools[kind], self._users[kind]
        marked = set(self._marked(kind))
        for number in sorted(users.keys() - marked):
            yield f"Of the {pool.name}, {number} is in use by {users[number]:#x} but marked free."
        for number in sorted(marked - users.keys()):
            yield f"Of the {pool.name}, {number} is marked as in use but belongs to no file."
        for number in range(pool.geometry.clusters):
            cluster = pool.cluster(number)
            free = sum(cluster.is_free(n) for n in range(cluster.total))
            if free != cluster.free:
                yield (
                    f"Cluster {number} of the {pool.name} counts {cluster.free} free, "
                    f"its bitmap {free}."
                )

    def _check_names(self) -> Iterator[str]:
        blocks, sub_blocks = self._pools[Resource.FILE_BLOCK], self._pools[Resource.SUB_BLOCK]
        named: set[int] = set()
        for inode in self._inodes.values():
            if not inode.is_directory:
                continue
            directory = Directory(self._table, inode, blocks, sub_blocks)
            entries = directory.entries()
            if directory.counted() != len(entries) + 2:
                yield (
                    f"Directory {inode.address:#x} counts {directory.counted()} entries "
                    f"and has {len(entries) + 2}."
                )
            for entry in entries:
                if entry.address not in self._inodes:
                    yield f"The name {entry.name} means {entry.address:#x}, which is not there."
                if directory.hashed(entry.name) != entry.location:
                    yield f"The name {entry.name} is not found by its hash."
                if entry.address in named:
                    yield f"Descriptor {entry.address:#x} has a second name, {entry.name}."
                named.add(entry.address)
        for address in sorted(self._inodes.keys() - named, key=inode_number):
            if inode_number(address) > _ON_ITS_OWN or not self._is_system(address):
                yield f"Descriptor {address:#x} has no name in any directory."

    def _is_system(self, address: int) -> bool:
        return inode_number(address) == ROOT or self._inodes[address].is_what(Kind.SYSTEM)
