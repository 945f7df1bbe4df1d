"""On-disk constants of VMFS 6 and the coding of its addresses.

Names and meanings follow the structures published with dissect.vmfs
(`c_vmfs.py`, `c_lvm.py`, `address.py`); values were checked against volumes
that an ESX host wrote.
"""

import uuid
from enum import IntEnum

MIB = 1 << 20
FILE_BLOCK = MIB
METADATA = 4096
SUB_BLOCK = 64 << 10
PHYSICAL_EXTENT = 256 * MIB
LVM_HEADER = MIB
VOLUME_START = 17 * MIB  # first physical extent, from the start of the partition
DESCRIPTOR = 2 * MIB  # file system descriptor, from the start of the volume
HEARTBEATS = 3 * MIB
FIRST_DESCRIPTORS = 7 * MIB  # block 0 of .fdc.sf
INODE_BYTES = 2 * METADATA
CLUSTER_GROUP = 0x10000  # where clusters begin in a resource file
POINTERS_PER_INODE = 320
POINTERS_PER_BLOCK = SUB_BLOCK // 8
BLOCKS_PER_CLUSTER = 512
INODES_PER_CLUSTER = 256
RESIDENT_BYTES = METADATA - 512
VMFS_TYPE = uuid.UUID("aa31e02a-400f-11db-9590-000c2911d1b8")
TO_BE_ZEROED = 0xFF

LVM_MAGIC = 0xC001D00D
VMFS_MAGIC = 0x2FABF15E
LOCAL_VMFS_MAGIC = 0x2FABF15F
RESOURCE_MAGIC = 0x72666D64
CLUSTER_MAGIC = 0x72636D64
INODE_MAGIC = 0x66646D64


class Kind(IntEnum):
    """What a file descriptor describes."""

    DIRECTORY = 2
    FILE = 3
    SYMLINK = 4
    SYSTEM = 5
    RDM = 6


class Addressing(IntEnum):
    """How a file's pointers are to be read."""

    NONE = 0
    FILE_BLOCKS = 1
    SUB_BLOCKS = 2
    POINTER_BLOCKS = 3
    POINTER_BLOCKS_2 = 5
    DOUBLE = 0x10D0
    RESIDENT = 0x10D1


class Resource(IntEnum):
    """Type bits of an address."""

    FILE_BLOCK = 1
    SUB_BLOCK = 2
    POINTER_BLOCK = 3
    DESCRIPTOR = 4
    POINTER_BLOCK_2 = 5
    JOURNAL_BLOCK = 6
    LARGE_BLOCK = 7


SYSTEM_FILES = (
    ".fbb.sf",
    ".fdc.sf",
    ".pbc.sf",
    ".sbc.sf",
    ".vh.sf",
    ".pb2.sf",
    ".sdd.sf",
    ".jbc.sf",
    ".unmap.sf",
)
ROOT = 0
FBB, FDC, PBC, SBC, VH, PB2, SDD, JBC, UNMAP = range(1, 10)


def inode_address(number: int) -> int:
    """Address of the number-th file descriptor."""
    cluster, resource = divmod(number, INODES_PER_CLUSTER)
    return Resource.DESCRIPTOR | (cluster & 0xFFFF) << 6 | (resource & 0x3FF) << 22


def inode_number(address: int) -> int:
    """Number of the file descriptor at an address."""
    return ((address >> 6) & 0xFFFF) * INODES_PER_CLUSTER + ((address >> 22) & 0x3FF)


def block_pointer(block: int, to_be_zeroed: int = 0) -> int:
    """Pointer to a file block by its number on the volume."""
    cluster, resource = divmod(block, BLOCKS_PER_CLUSTER)
    return Resource.FILE_BLOCK | to_be_zeroed << 7 | cluster << 15 | resource << 51


def block_number(pointer: int) -> int:
    """Volume block a file-block pointer means."""
    return ((pointer >> 15) & 0x7FFFFFFF) * BLOCKS_PER_CLUSTER + ((pointer >> 51) & 0x1FFF)


def resource_pointer(kind: Resource, number: int, per_cluster: int) -> int:
    """Pointer to a sub-block or pointer block by its number."""
    cluster, resource = divmod(number, per_cluster)
    return kind | cluster << 6 | resource << 56


def resource_number(pointer: int, per_cluster: int) -> int:
    """Number of the sub-block or pointer block a pointer means."""
    return ((pointer >> 6) & 0xFFFFFFFFF) * per_cluster + (pointer >> 56)
