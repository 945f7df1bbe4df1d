"""VMFS 5 and 6 volumes read from LUN snapshots: directories, small files and disk maps.

dissect.vmfs understands the metadata; this module bounds what it is fed and
says what is wrong in one sentence. Disks are never read through it: their
blocks are placed on the LUNs once, then read from there.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dissect.vmfs.vmfs import VMFS

from atoll.blocks.chains import Level, read_chain
from atoll.blocks.cowd import open_cowd
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.grains import Grains, delta_damaged, overlaid, read_grains, require_blocks
from atoll.blocks.ranges import Int64Array, overlapping_pairs
from atoll.blocks.readers import MappedReader
from atoll.blocks.sesparse import open_sesparse
from atoll.blocks.vmdk import ExtentKind, FileExtent
from atoll.blocks.vmfs_devices import MAX_READ_BYTES, VolumeExtents, assemble, damage_named
from atoll.blocks.vmfs_runs import file_runs
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.model.readers import BlockReader

_MAX_ENTRIES = 200_000
_MAX_BLOCK_BYTES = 1 << 30
_SECTOR = 512


def open_volumes(luns: Mapping[str, BlockReader]) -> list["VmfsVolume"]:
    """All VMFS volumes on these LUNs, keyed by LUN name; extents are matched by what they say.

    LUNs without VMFS are passed over. Raises UnsupportedFormatError when a
    volume is damaged, lacks an extent, or has one twice. The readers must stay
    open as long as the volumes are used.
    """
    return [VmfsVolume(extents, luns) for extents in assemble(luns)]


class VmfsVolume:
    """One VMFS volume. Thread-safe; paths are `/folder/name` or `folder/name` inside it."""

    def __init__(self, extents: VolumeExtents, luns: Mapping[str, BlockReader]) -> None:
        """`luns` are readers of the LUNs that it lies on, and maybe others, by name."""
        self._extents = extents
        self._readers = {name: luns[name] for name in extents.luns}
        self._lock = threading.Lock()  # dissect's streams have one position each
        self._runs = np.array(extents.runs, dtype=np.int64).reshape(-1, 4)
        with damage_named(f"The VMFS volume on LUN {', '.join(extents.luns)}"):
            fs = VMFS(extents.volume.open())
            _check_geometry(fs)
            _check_descriptor(fs.root)
            self._label = str(fs.label)
            self._uuid = str(fs.uuid)
            self._fs = fs

    @property
    def uuid(self) -> str:
        """The file system's UUID as ESX writes it, e.g. `5f3a…-…-…-…`."""
        return self._uuid

    @property
    def label(self) -> str:
        """The datastore's name as the volume itself has it."""
        return self._label

    @property
    def version(self) -> int:
        """5 or 6."""
        return 6 if self._fs.is_vmfs6 else 5

    @property
    def luns(self) -> tuple[str, ...]:
        """Names of the LUNs the volume is made of, in the order of its extents."""
        return self._extents.luns

    def listdir(self, path: str = "/") -> list[str]:
        """Names in a directory, sorted, without `.` and `..`.

        Raises NotFoundInPointError, UnsupportedFormatError.
        """
        with self._lock, damage_named(f"Directory {path} of datastore {self.label}"):
            return sorted(self._entries(self._find(path), path))

    def read_file(self, path: str, max_bytes: int) -> bytes:
        """All of a small file, such as a .vmx; UnsupportedFormatError when it is larger."""
        with self._lock, damage_named(f"File {path} of datastore {self.label}"):
            descriptor = self._find(path)
            if not descriptor.is_file() or descriptor.size > max_bytes:
                raise UnsupportedFormatError(
                    f"{path} of datastore {self.label} is no file of up to {max_bytes} bytes; "
                    "check the path."
                )
            with descriptor.open() as stream:
                return bytes(stream.read(descriptor.size))

    def disk_map(self, path: str, raw: DiskMap | None = None) -> DiskMap:
        """Where the disk lies whose VMDK descriptor is at `path`, e.g. `/db1/db1.vmdk`.

        A disk with VMware snapshots is that delta and all disks below it, as one
        map. `raw` is the map of the LUN below a raw device mapping. Raises
        UnsupportedFormatError for disks of other kinds and for deltas that cannot
        be believed, NotFoundInPointError when a file is missing.
        """
        below: DiskMap | None = None
        for level in reversed(read_chain(self, path)):
            kinds = {extent.kind for extent in level.descriptor.extents}
            if kinds <= {ExtentKind.FLAT, ExtentKind.ZERO}:
                below = self._mapped(level.path, level.descriptor.extents)
            elif kinds == {ExtentKind.RAW}:
                below = _mapped_raw(level, raw)
            else:
                below = self._with_grains(level, below)
        assert below is not None, "a chain has a base"
        return below

    def file_map(self, path: str) -> DiskMap:
        """Where any regular or system file lies, as if it were a disk of the file's size.

        Raises as `disk_map`.
        """
        with self._lock, damage_named(f"File {path} of datastore {self.label}"):
            size = int(self._find(path).size)
        return self._mapped(path, [FileExtent(path.rpartition("/")[2], size, 0)])

    def _with_grains(self, level: Level, below: DiskMap | None) -> DiskMap:
        """A disk whose extents are sparse files, on the one below it."""
        size, at = level.descriptor.size_bytes, 0
        made = below
        for extent in level.descriptor.extents:
            path = f"{level.path.rpartition('/')[0]}/{extent.file}"
            file_map = self.file_map(path)
            try:
                grains = _shifted(self._grains(extent, path, file_map), at)
                made = overlaid(made, grains, file_map, size)
            except ValueError as error:
                raise delta_damaged(path, error) from error
            at += extent.length
        assert made is not None, "a descriptor has extents"
        return made

    def _grains(self, extent: FileExtent, path: str, file_map: DiskMap) -> Grains:
        reader = MappedReader(file_map, self._readers)
        if extent.kind is ExtentKind.COWD:
            file = open_cowd(reader)
        elif extent.kind is ExtentKind.SESPARSE:
            file = open_sesparse(reader, path)
        else:
            raise ValueError("its descriptor mixes deltas with other extents")
        if file.size_bytes != extent.length:
            raise ValueError(
                f"it is for {file.size_bytes} bytes of a disk where its descriptor says "
                f"{extent.length}"
            )
        grains = read_grains(file, reader)
        require_blocks(file, file_map)
        return grains

    def _mapped(self, path: str, extents: Sequence[FileExtent]) -> DiskMap:
        folder = path.rpartition("/")[0]
        columns: list[tuple[Int64Array, ...]] = []
        size = 0
        for extent in extents:
            if extent.file:
                columns.append(self._extent_rows(f"{folder}/{extent.file}", extent, size))
            size += extent.length
        disk_offset, length, lun, lun_offset = (
            np.concatenate([np.zeros(0, dtype=np.int64), *(c[n] for c in columns)])
            for n in range(4)
        )
        with damage_named(f"Disk {path} of datastore {self.label}"):
            return DiskMap.joined(size, self.luns, disk_offset, length, lun, lun_offset)

    def _extent_rows(self, path: str, extent: FileExtent, at: int) -> tuple[Int64Array, ...]:
        """Rows of a disk map for one flat file, which begins `at` bytes into the disk."""
        with self._lock, damage_named(f"File {path} of datastore {self.label}"):
            descriptor = self._find(path)
            if descriptor.is_rdm() or not descriptor.is_file():
                raise UnsupportedFormatError(
                    f"{path} of datastore {self.label} is a raw device mapping or no file at all, "
                    "where a disk's data should be; check the VM's disk in vCenter."
                )
            if descriptor.size < extent.file_offset + extent.length:
                raise UnsupportedFormatError(
                    f"{path} of datastore {self.label} is shorter than its disk; "
                    "check the VM's disk on the ESX host."
                )
            runs = file_runs(descriptor)
            first, end = extent.file_offset, extent.file_offset + extent.length
            begin = np.clip(runs.file_offset, first, end)
            finish = np.clip(runs.file_offset + runs.length, first, end)
            keep = finish > begin
            volume_offset = (runs.volume_offset + begin - runs.file_offset)[keep]
            begin, length = begin[keep], (finish - begin)[keep]
            piece, length, lun, lun_offset = self._on_luns(volume_offset, length)
            return begin[piece[0]] + piece[1] + (at - first), length, lun, lun_offset

    def _on_luns(
        self, offset: Int64Array, length: Int64Array
    ) -> tuple[tuple[Int64Array, Int64Array], Int64Array, Int64Array, Int64Array]:
        """Volume ranges cut at the volume's runs: ((range, bytes into it), length, LUN, LUN offset)."""
        run_start, run_end = self._runs[:, 0], self._runs[:, 0] + self._runs[:, 1]
        end = offset + length
        if len(offset) and (offset.min() < 0 or end.max() > run_end[-1] or end.min() < 0):
            raise ValueError("it has blocks past the end of the volume")
        i, j = overlapping_pairs(offset, end, run_start, run_end)
        begin = np.maximum(offset[i], run_start[j])
        cut = np.minimum(end[i], run_end[j]) - begin
        return (
            (i, begin - offset[i]),
            cut,
            self._runs[j, 2],
            self._runs[j, 3] + begin - run_start[j],
        )

    def _find(self, path: str) -> Any:
        """The file descriptor at a path, walking directories by listing them.

        dissect's own look-up follows hash chains, which on a damaged volume
        need not end; listings always do.
        """
        descriptor = self._fs.root
        for name in path.split("/"):
            if not name:
                continue
            entry = self._entries(descriptor, path).get(name)
            if entry is None:
                raise NotFoundInPointError(
                    f"Datastore {self.label} has no {path}; check the path, it may have moved."
                )
            descriptor = entry.file_descriptor
            _check_descriptor(descriptor)
        return descriptor

    def _entries(self, descriptor: Any, path: str) -> dict[str, Any]:
        if not descriptor.is_dir():
            raise NotFoundInPointError(
                f"{path} of datastore {self.label} is not within a directory; check the path."
            )
        found: dict[str, Any] = {}
        for count, entry in enumerate(descriptor.iterdir()):
            if count >= _MAX_ENTRIES:
                raise ValueError(f"a directory has more than {_MAX_ENTRIES} entries")
            if entry.name not in (".", ".."):
                found[entry.name] = entry
        return found


def _shifted(grains: Grains, by: int) -> Grains:
    return grains if not by else grains._replace(disk_offset=grains.disk_offset + by)


def _mapped_raw(level: Level, raw: DiskMap | None) -> DiskMap:
    """The LUN of a raw device mapping, as much of it as the mapping shows."""
    size = level.descriptor.size_bytes
    if raw is None:
        raise UnsupportedFormatError(
            f"{level.path} is a raw device mapping, whose data is on a LUN of its own; "
            "run again, so that vCenter is asked which."
        )
    if raw.size_bytes < size:
        raise UnsupportedFormatError(
            f"{level.path} maps {size} bytes of a LUN that has {raw.size_bytes}; "
            "rescan the hosts and run again."
        )
    return raw.rearranged(size, [(0, size, 0)])


def _is_power_of_two(value: int, low: int, high: int) -> bool:
    return low <= value <= high and value & (value - 1) == 0


def _check_geometry(fs: Any) -> None:
    if not _is_power_of_two(int(fs.file_block_size), 64 << 10, 8 << 20):
        raise ValueError(f"it has blocks of {fs.file_block_size} bytes")
    if fs.is_vmfs6:
        if not _is_power_of_two(int(fs.md_alignment), _SECTOR, 64 << 10):
            raise ValueError(f"its metadata is aligned to {fs.md_alignment} bytes")
        if int(fs.descriptor.sfbToLfbShift) > 16:
            raise ValueError("its large blocks are too large")
        if int(fs.resources.SFB.metadata.resourcesPerCluster) > 1 << 13:
            raise ValueError("its clusters are too large")


def _check_descriptor(descriptor: Any) -> None:
    """Reject a descriptor whose sizes would send dissect reading for ever."""
    metadata = descriptor.metadata
    if int(metadata.descAddr) != int(descriptor.address):
        raise ValueError("a file descriptor is not the one its directory entry means")
    block = int(metadata.blockSize)
    if not _is_power_of_two(block, _SECTOR, _MAX_BLOCK_BYTES):
        raise ValueError(f"a file has blocks of {block} bytes")
    if 1 << int(metadata.blockOffsetShift) != block:
        raise ValueError("a file's block size and shift differ")
    if descriptor.is_dir() and descriptor.size > MAX_READ_BYTES:
        raise ValueError(f"a directory is {descriptor.size} bytes long")
