"""A file's pointers to its blocks: in its descriptor, or through pointer blocks above them."""

import struct

from atoll_lab.vmfs.allocation import Pool, runs_of
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import (
    FILE_BLOCK,
    POINTERS_PER_BLOCK,
    POINTERS_PER_INODE,
    SUB_BLOCK,
    TO_BE_ZEROED,
    Addressing,
    Resource,
    resource_number,
    resource_pointer,
)


class BlockMaps:
    """Writes pointers of files; pointer blocks are sub-blocks, as ESX makes them."""

    def __init__(self, table: FileTable, sub_blocks: Pool) -> None:
        self._table = table
        self._sub_blocks = sub_blocks

    def put(self, inode: Inode, size: int, pointers: dict[int, int]) -> None:
        """Put pointers into a descriptor, through new pointer blocks if they do not fit it."""
        blocks = -(-size // FILE_BLOCK)
        level, above = pointers, 0
        if blocks <= POINTERS_PER_INODE:
            kind = Addressing.FILE_BLOCKS
        elif blocks <= POINTERS_PER_INODE * POINTERS_PER_BLOCK:
            kind = Addressing.POINTER_BLOCKS
        else:
            kind = Addressing.DOUBLE
        for _ in range({Addressing.POINTER_BLOCKS: 1, Addressing.DOUBLE: 2}.get(kind, 0)):
            level = self._pointer_blocks(level)
            above += len(level)
        inode.set_pointers(level)
        inode.set("addressing", kind)
        inode.set("size", size)
        inode.set("pointer_blocks", above)
        inode.set_block_count(len(pointers))
        unwritten = sum(1 for p in pointers.values() if p >> 7 & TO_BE_ZEROED)
        inode.set("to_be_zeroed_count", unwritten)

    def _pointer_blocks(self, pointers: dict[int, int]) -> dict[int, int]:
        """Write pointers into new pointer blocks; returns the pointers to those."""
        tables: dict[int, bytearray] = {}
        for index, pointer in pointers.items():
            above, within = divmod(index, POINTERS_PER_BLOCK)
            table = tables.setdefault(above, bytearray(SUB_BLOCK))
            struct.pack_into("<Q", table, 8 * within, pointer)
        numbers = self._sub_blocks.allocate(len(tables))
        result: dict[int, int] = {}
        for (above, table), number in zip(sorted(tables.items()), numbers, strict=True):
            result[above] = self.sub_block_pointer(number)
            self._table.device.write(self._table.pointer_at(result[above]), bytes(table))
        return result

    def sub_block_pointer(self, number: int) -> int:
        """Pointer to a sub-block by its number."""
        per_cluster = self._sub_blocks.geometry.per_cluster
        return resource_pointer(Resource.SUB_BLOCK, number, per_cluster)

    def release(self, pointers: list[int]) -> None:
        """Give back the sub-blocks that pointers mean."""
        per_cluster = self._sub_blocks.geometry.per_cluster
        numbers = sorted(resource_number(pointer, per_cluster) for pointer in pointers)
        self._sub_blocks.release(runs_of(numbers))
