"""Where a VMFS file's blocks lie on its volume, worked out for whole pointer blocks at a time.

The bits of an address are those dissect.vmfs documents in `address.py`. A
pointer of zero is a hole. A block marked "to be zeroed" is allocated but reads
as zeros, so it is a hole to a reader too.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dissect.vmfs.c_vmfs import FS3_AddrType, FS3_ZeroLevelAddrType

from atoll.blocks.ranges import Int64Array
from atoll.model.errors import UnsupportedFormatError

_Pointers = npt.NDArray[np.int64]
_FILE_BLOCK, _SUB_BLOCK, _LARGE_BLOCK = 1, 2, 7
_MAX_POINTERS = 1 << 27
_MAX_SUB_BLOCKS = 1 << 16
_ALL_TO_BE_ZEROED = 0xFF


class Runs(NamedTuple):
    """Columns of what is mapped of a file, in order: file offset, length, volume offset (bytes)."""

    file_offset: Int64Array
    length: Int64Array
    volume_offset: Int64Array


def file_runs(descriptor: Any) -> Runs:
    """The runs of a regular file given by its dissect.vmfs file descriptor.

    Raises UnsupportedFormatError for what no reader knows how to interpret, and
    whatever dissect raises on damaged metadata.
    """
    size = int(descriptor.size)
    if size == 0:
        return _runs([], [], [])
    if descriptor.zla == FS3_ZeroLevelAddrType.FILE_DESCRIPTOR_RESIDENT:
        return _resident(descriptor, size)
    shift = int(descriptor.metadata.blockOffsetShift)
    blocks = -(-size >> shift)
    if blocks > _MAX_POINTERS:
        raise UnsupportedFormatError(
            f"A file of {size} bytes in {1 << shift} byte blocks is more than is believable; "
            "check the volume with voma on the ESX host."
        )
    runs: list[tuple[Int64Array, Int64Array]] = []
    for first, pointers in _leaves(descriptor, blocks):
        used = pointers[: blocks - first]
        at = np.flatnonzero(used)
        if len(at):
            file_offset = (first + at) << shift
            live, volume_offset = _resolve(descriptor, used[at], file_offset, shift)
            runs.append((file_offset[live], volume_offset[live]))
    if not runs:
        return _runs([], [], [])
    file_offset = np.concatenate([r[0] for r in runs])
    volume_offset = np.concatenate([r[1] for r in runs])
    return _joined(file_offset, volume_offset, 1 << shift, size)


def _runs(*columns: list[int]) -> Runs:
    return Runs(*(np.array(column, dtype=np.int64) for column in columns))


def _joined(file_offset: Int64Array, volume_offset: Int64Array, block: int, size: int) -> Runs:
    if not len(file_offset):
        return _runs([], [], [])
    breaks = (np.diff(file_offset) != block) | (np.diff(volume_offset) != block)
    first = np.flatnonzero(np.concatenate(([True], breaks)))
    counts = np.diff(np.concatenate((first, [len(file_offset)])))
    length = np.minimum(counts * block, size - file_offset[first])
    return Runs(file_offset[first], length, volume_offset[first])


def _resident(descriptor: Any, size: int) -> Runs:
    """A small file lies inside its own descriptor."""
    fs = descriptor.vmfs
    if size > fs._fd_data_size:
        raise UnsupportedFormatError(
            f"A file of {size} bytes is said to fit a descriptor of {fs._fd_data_size}; "
            "check the volume with voma on the ESX host."
        )
    at = fs.resources.FD.resolve_address(descriptor.address) + fs._fd_data_offset
    return _runs([0], [size], [at])


def _leaves(descriptor: Any, blocks: int) -> Iterator[tuple[int, _Pointers]]:
    """(number of the first block, pointers to blocks) in order, holes above the leaves left out."""
    kind = descriptor.zla
    top = np.array(list(descriptor.blocks), dtype=np.uint64).view(np.int64)
    if kind in (FS3_ZeroLevelAddrType.FILE_BLOCK, FS3_ZeroLevelAddrType.SUB_BLOCK):
        yield 0, top
    elif kind in (FS3_ZeroLevelAddrType.POINTER_BLOCK, FS3_ZeroLevelAddrType.POINTER2_BLOCK):
        yield from _below(descriptor.vmfs, top, 0, 1, blocks)
    elif kind == FS3_ZeroLevelAddrType.POINTER_BLOCK_DOUBLE:
        yield from _below(descriptor.vmfs, top, 0, 2, blocks)
    else:
        raise UnsupportedFormatError(
            f"A file is addressed in a way Atoll does not know (type {int(kind):#x}); "
            "report it with the ESX version."
        )


def _below(
    fs: Any, pointers: _Pointers, first: int, depth: int, blocks: int
) -> Iterator[tuple[int, _Pointers]]:
    per_block = fs._ptr_block_num_ptrs
    span = per_block**depth
    for index in np.flatnonzero(pointers).tolist():
        begin = first + index * span
        if begin >= blocks:
            return
        address = int(pointers[index]) & (1 << 64) - 1
        width = np.dtype("<u4" if fs.is_vmfs5 else "<u8")
        raw = bytes(fs.resources.read(address))[: per_block * width.itemsize]
        if len(raw) != per_block * width.itemsize:
            raise EOFError("a pointer block is cut short")
        below = np.frombuffer(raw, dtype=width).astype(np.uint64).view(np.int64)
        if depth == 1:
            yield begin, below
        else:
            yield from _below(fs, below, begin, depth - 1, blocks)


def _resolve(
    descriptor: Any, pointers: _Pointers, file_offset: Int64Array, shift: int
) -> tuple[npt.NDArray[np.bool_], Int64Array]:
    """(not to be zeroed, volume offset) of each pointer, none of them zero."""
    fs = descriptor.vmfs
    kind = pointers & 7
    unknown = np.setdiff1d(kind, (_FILE_BLOCK, _SUB_BLOCK, _LARGE_BLOCK))
    if len(unknown) or (fs.is_vmfs5 and bool(np.any(kind == _LARGE_BLOCK))):
        raise UnsupportedFormatError(
            f"A file has block addresses of unknown types {sorted(set(kind.tolist()))}; "
            "check the volume with voma on the ESX host."
        )
    offset = np.zeros(len(pointers), dtype=np.int64)
    live = np.ones(len(pointers), dtype=np.bool_)
    file_blocks, large = kind == _FILE_BLOCK, kind == _LARGE_BLOCK
    block_shift = int(fs._file_block_size_shift)
    p = pointers[file_blocks]
    within = file_offset[file_blocks] & ((1 << block_shift) - 1)
    if fs.is_vmfs5:
        offset[file_blocks] = (((p >> 6) & 0x3FFFFFF) << block_shift) + within
        live[file_blocks] = (p >> 5) & 1 == 0
    else:
        per_cluster = int(fs.resources.SFB.metadata.resourcesPerCluster)
        block = ((p >> 15) & 0x7FFFFFFF) * per_cluster + ((p >> 51) & 0x1FFF)
        offset[file_blocks] = (block << block_shift) + within
        large_shift = block_shift + int(fs.descriptor.sfbToLfbShift)
        within = file_offset[large] & ((1 << large_shift) - 1)
        offset[large] = (((pointers[large] >> 15) & 0x7FFFFFFF) << large_shift) + within
        marked = file_blocks | large
        live[marked] = _to_be_read(descriptor, pointers[marked], shift)
    _resolve_sub_blocks(fs, pointers, file_offset, kind == _SUB_BLOCK, offset)
    return live, offset


def _to_be_read(descriptor: Any, pointers: _Pointers, shift: int) -> npt.NDArray[np.bool_]:
    """Which VMFS 6 blocks hold data; eight bits say which eighths are still to be zeroed.

    Where the file's granularity is the block, any bit means all of it. Finer
    marks have never been seen in the wild: which bit is which eighth is not
    known for sure, so a partly set mask is refused instead of guessed.
    """
    marks = (pointers >> 7) & _ALL_TO_BE_ZEROED
    partly = (marks != 0) & (marks != _ALL_TO_BE_ZEROED)
    large = pointers & 7 == _LARGE_BLOCK
    finer = large | (int(descriptor.metadata.tbzGranularityShift) < shift)
    if bool(np.any(partly & finer)):
        raise UnsupportedFormatError(
            "A disk has blocks of which a part is still to be zeroed, which Atoll cannot place; "
            "inflate the disk or exclude it from the job."
        )
    return np.asarray(marks == 0)


def _resolve_sub_blocks(
    fs: Any,
    pointers: _Pointers,
    file_offset: Int64Array,
    chosen: npt.NDArray[np.bool_],
    offset: Int64Array,
) -> None:
    """Sub-blocks lie inside a system file, so each is looked up by itself; files of them are small."""
    at = np.flatnonzero(chosen)
    if len(at) > _MAX_SUB_BLOCKS:
        raise UnsupportedFormatError(
            f"A file claims {len(at)} sub-blocks, more than a volume has; "
            "check the volume with voma on the ESX host."
        )
    resource = fs.resources.get(FS3_AddrType.SUB_BLOCK)
    within = (1 << int(fs._sub_block_size_shift)) - 1
    for i in at.tolist():
        address = int(pointers[i]) & (1 << 64) - 1
        offset[i] = resource.resolve_address(address) + (int(file_offset[i]) & within)
