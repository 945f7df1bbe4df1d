"""Files and virtual disks on a lab volume: making, growing, moving and deleting them.

Each change is made in an order that a crash can at worst leak blocks by: space
is taken before anything points to it, and given back after nothing does.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Literal, NamedTuple, Self

from atoll_lab.vmfs.allocation import Pool, Run, runs_of
from atoll_lab.vmfs.block_maps import BlockMaps
from atoll_lab.vmfs.descriptor import descriptor_text, flat_name, is_data, resized
from atoll_lab.vmfs.device import Device, data_ranges
from atoll_lab.vmfs.directories import EMPTY_BYTES, Directory, Entry, empty_directory
from atoll_lab.vmfs.files import FileTable
from atoll_lab.vmfs.inode import Inode
from atoll_lab.vmfs.layout import (
    FILE_BLOCK,
    INODES_PER_CLUSTER,
    RESIDENT_BYTES,
    ROOT,
    SUB_BLOCK,
    TO_BE_ZEROED,
    Addressing,
    Kind,
    Resource,
    block_number,
    block_pointer,
    inode_address,
    inode_number,
)
from atoll_lab.vmfs.name_hash import MAX_NAME_BYTES
from atoll_lab.vmfs.placement import Placement

Layout = Literal["thick", "thin", "fragmented", "lazy"]
_LARGE_FILE = 9  # the flags ESX gives to files of whole blocks


class DiskExtent(NamedTuple):
    """`length` bytes of a disk from `file_offset`, on the LUN at `lun_offset`."""

    file_offset: int
    length: int
    lun_offset: int


class Volume:
    """A volume on an image, for one user at a time; paths begin at its root.

    Only metadata and new disks are written here, so a guest may go on writing
    to a disk on the same LUN meanwhile. Wrong paths raise FileNotFoundError,
    FileExistsError and their like, a full volume PoolFullError.
    """

    def __init__(self, image: Path) -> None:
        self._device = Device(image)
        try:
            self._table = FileTable(self._device)
            self._blocks = Pool(self._table, Resource.FILE_BLOCK)
            self._sub_blocks = Pool(self._table, Resource.SUB_BLOCK)
            self._inodes = Pool(self._table, Resource.DESCRIPTOR, reserved=INODES_PER_CLUSTER)
            self._placement = Placement(self._device, self._blocks)
            self._maps = BlockMaps(self._table, self._sub_blocks)
        except BaseException:
            self._device.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Put everything on stable storage and let others in."""
        self._device.close()

    def listdir(self, path: str = "/") -> list[str]:
        """Names in a directory, sorted, without the system files."""
        names = (entry.name for entry in self._directory(path).entries() if entry.kind != 5)
        return sorted(names)

    def mkdir(self, path: str) -> None:
        """A new directory; its parent must be there."""
        parent, name = self._parent(path)
        if parent.find(name) is not None:
            raise FileExistsError(17, "there is a file of that name", path)
        with self._attempt():
            numbers = self._sub_blocks.allocate(-(-EMPTY_BYTES // SUB_BLOCK))
            inode = self._new_inode(
                Kind.DIRECTORY, Addressing.SUB_BLOCKS, 16, 0o40755, parent.inode.address
            )
        inode.set_pointers({n: self._maps.sub_block_pointer(b) for n, b in enumerate(numbers)})
        inode.set_block_count(len(numbers))
        inode.set("size", EMPTY_BYTES)
        inode.set("links", 2)
        self._table.write(
            inode, 0, empty_directory(inode.address, parent.inode.address, Kind.DIRECTORY)
        )
        self._table.save(inode)
        parent.add(name, inode.address, Kind.DIRECTORY, inode.get("generation"))
        self._add_links(parent.inode.address, 1)

    def write_file(self, path: str, data: bytes) -> None:
        """A small file with this content; one that is there is replaced at one stroke."""
        parent, name = self._parent(path)
        old = parent.find(name)
        if old is not None and old.kind != Kind.FILE:
            raise IsADirectoryError(21, "it is not a file", path)
        with self._attempt():
            inode = self._new_file(data, parent.inode.address)
        if old is None:
            parent.add(name, inode.address, Kind.FILE, inode.get("generation"))
        else:
            parent.point(name, inode.address, inode.get("generation"))
            self._discard(old.address)

    def read_file(self, path: str) -> bytes:
        """Content of a small file."""
        inode = self._file(path)
        if inode.addressing == Addressing.RESIDENT:
            return inode.resident
        return self._table.read(inode, 0, inode.size)

    def create_disk(
        self, path: str, size_bytes: int, content: Path | None, layout: Layout = "thick"
    ) -> list[DiskExtent]:
        """A virtual disk: the descriptor at `path` and its data beside it; returns where it lies.

        `content` (a sparse file no longer than the disk) is copied in, holes
        staying holes. `thick` has all its blocks, in one run if the volume has
        one so long; `fragmented` has them in small pieces all over; `thin` has
        only those with data; `lazy` has all, those without data marked "to be
        zeroed" (only for disks that no guest writes to through the LUN).
        """
        parent, name = self._parent(path)
        if not name.endswith(".vmdk"):
            raise ValueError(f"{path} does not end in .vmdk")
        flat = name.removesuffix(".vmdk") + "-flat.vmdk"
        for taken in (name, flat):
            if parent.find(taken) is not None:
                raise FileExistsError(17, "there is a file of that name", path)
        text = descriptor_text(flat, size_bytes, thin=layout == "thin")
        source = os.open(content, os.O_RDONLY | os.O_CLOEXEC) if content is not None else -1
        try:
            with self._attempt():
                data = self._fill_disk(parent, size_bytes, source, layout)
                descriptor = self._new_file(text, parent.inode.address)
        finally:
            if source >= 0:
                os.close(source)
        parent.add(flat, data.address, Kind.FILE, data.get("generation"))
        parent.add(name, descriptor.address, Kind.FILE, descriptor.get("generation"))
        return self._extents(data)

    def grow_disk(self, path: str, size_bytes: int) -> list[DiskExtent]:
        """Make a disk larger; new blocks follow the last if they are free. Thin stays thin."""
        flat, text = self._flat(path), self.read_file(path)
        if size_bytes < flat.size:
            raise ValueError(f"{path} has {flat.size} bytes and does not shrink to {size_bytes}")
        grown = resized(text, size_bytes)
        pointers, above = self._table.block_map(flat)
        old_count, new_count = -(-flat.size // FILE_BLOCK), -(-size_bytes // FILE_BLOCK)
        if len(pointers) == old_count and b"ddb.thinProvisioned" not in text:
            after = block_number(pointers[old_count - 1]) + 1 if old_count else None
            with self._attempt():
                runs = self._placement.place(new_count - old_count, after)
                blocks = [block for run in runs for block in _blocks(run)]
                pointers |= {old_count + n: block_pointer(b) for n, b in enumerate(blocks)}
                self._maps.put(flat, size_bytes, pointers)
        else:
            self._maps.put(flat, size_bytes, pointers)
        self._table.save(flat)
        self._maps.release(above)
        self.write_file(path, grown)
        return self._extents(flat)

    def move_disk(self, path: str) -> list[DiskExtent]:
        """Put a disk's blocks elsewhere on the volume, in one run if there is one; nothing else."""
        flat = self._flat(path)
        pointers, above = self._table.block_map(flat)
        with self._attempt():
            runs = self._placement.place(len(pointers))
            targets = [block for run in runs for block in _blocks(run)]
            moved: dict[int, int] = {}
            for (index, pointer), target in zip(sorted(pointers.items()), targets, strict=True):
                source = block_number(pointer) * FILE_BLOCK
                self._device.copy_within(source, FILE_BLOCK, target * FILE_BLOCK)
                moved[index] = block_pointer(target, pointer >> 7 & TO_BE_ZEROED)
            self._maps.put(flat, flat.size, moved)
        self._table.save(flat)
        self._maps.release(above)
        self._blocks.release(runs_of([block_number(pointer) for pointer in pointers.values()]))
        return self._extents(flat)

    def delete(self, path: str) -> None:
        """Remove a file, an empty directory, or a disk with its data; absent is success."""
        try:
            parent, name = self._parent(path)
        except FileNotFoundError:
            return
        entry = parent.find(name)
        if entry is None:
            return
        if entry.kind == Kind.DIRECTORY:
            if self._directory(path).entries():
                raise OSError(39, "the directory is not empty", path)
            parent.remove(name)
            self._discard(entry.address)
            self._add_links(parent.inode.address, -1)
            return
        flat = self._flat_entry(parent, path)
        if flat is not None:  # the data first: a descriptor without data can be deleted again
            parent.remove(flat.name)
            self._discard(flat.address)
        parent.remove(name)
        self._discard(entry.address)

    def rename(self, path: str, new_path: str) -> None:
        """Give a file another name, also in another directory; a directory stays in its parent.

        A disk's descriptor and data are two files; only the one named is renamed.
        """
        parent, name = self._parent(path)
        target, new_name = self._parent(new_path)
        entry = parent.find(name)
        if entry is None:
            raise FileNotFoundError(2, "there is no file of that name", path)
        same = parent.inode.address == target.inode.address
        if entry.kind == Kind.DIRECTORY and not same:
            raise OSError(18, "a directory cannot move to another one", path)
        target = parent if same else target
        generation = self._table.inode(entry.address).get("generation")
        target.add(new_name, entry.address, entry.kind, generation)
        parent.remove(name)
        if not same:
            inode = self._table.inode(entry.address)
            inode.set("parent", target.inode.address)
            self._table.save(inode)

    def extents(self, path: str) -> list[DiskExtent]:
        """Where a disk (its descriptor) or any other file of whole blocks lies on the LUN."""
        parent, _ = self._parent(path)
        flat = self._flat_entry(parent, path)
        return self._extents(self._table.inode(flat.address) if flat else self._file(path))

    def _new_file(self, data: bytes, address: int) -> Inode:
        """A file with this content that no directory names yet."""
        if len(data) <= RESIDENT_BYTES:
            inode = self._new_inode(Kind.FILE, Addressing.RESIDENT, 16, 0o600, address)
            inode.set_resident(data)
        elif len(data) <= SUB_BLOCK:
            inode = self._new_inode(Kind.FILE, Addressing.SUB_BLOCKS, 16, 0o600, address)
            inode.set_pointers({0: self._maps.sub_block_pointer(*self._sub_blocks.allocate(1))})
            inode.set_block_count(1)
            inode.set("size", len(data))
            self._table.write(inode, 0, data.ljust(SUB_BLOCK, b"\0"))
        else:
            inode = self._new_inode(Kind.FILE, Addressing.FILE_BLOCKS, 20, 0o600, address)
            inode.set("flags", _LARGE_FILE)
            blocks = [
                b
                for run in self._placement.place(-(-len(data) // FILE_BLOCK))
                for b in _blocks(run)
            ]
            self._maps.put(inode, len(data), {n: block_pointer(b) for n, b in enumerate(blocks)})
            for n, block in enumerate(blocks):
                piece = data[n * FILE_BLOCK : (n + 1) * FILE_BLOCK]
                self._device.write(block * FILE_BLOCK, piece)
        self._table.save(inode)
        return inode

    def _fill_disk(self, parent: Directory, size: int, source: int, layout: Layout) -> Inode:
        data = [] if source < 0 else list(data_ranges(source, 0, os.fstat(source).st_size))
        if data and data[-1][0] + data[-1][1] > size:
            raise ValueError(f"the content does not fit a disk of {size} bytes")
        filled = {
            block
            for at, length in data
            for block in range(at // FILE_BLOCK, (at + length - 1) // FILE_BLOCK + 1)
        }
        wanted = sorted(filled) if layout == "thin" else list(range(-(-size // FILE_BLOCK)))
        if layout == "fragmented":
            runs = self._placement.scatter(len(wanted))
        else:
            runs = self._placement.place(len(wanted))
        blocks = dict(zip(wanted, (b for run in runs for b in _blocks(run)), strict=True))
        for at, length in data:
            for block in range(at // FILE_BLOCK, (at + length - 1) // FILE_BLOCK + 1):
                begin = max(at, block * FILE_BLOCK)
                end = min(at + length, (block + 1) * FILE_BLOCK)
                target = blocks[block] * FILE_BLOCK + begin % FILE_BLOCK
                self._device.copy_in(source, begin, end - begin, target)
        inode = self._new_inode(Kind.FILE, Addressing.FILE_BLOCKS, 20, 0o600, parent.inode.address)
        inode.set("flags", _LARGE_FILE)
        lazy = layout == "lazy"
        pointers = {
            index: block_pointer(block, TO_BE_ZEROED if lazy and index not in filled else 0)
            for index, block in blocks.items()
        }
        self._maps.put(inode, size, pointers)
        self._table.save(inode)
        return inode

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        """Making something nothing points to yet: an error gives all it took back."""
        with self._blocks.attempt(), self._sub_blocks.attempt(), self._inodes.attempt():
            yield

    def _discard(self, address: int) -> None:
        """Give back a file that no directory names any more."""
        inode = self._table.inode(address)
        pointers, above = self._table.block_map(inode)
        self._inodes.release([Run(inode_number(address), 1)])
        own = [p for p in pointers.values() if p & 7 == Resource.SUB_BLOCK]
        self._maps.release(above + own)
        numbers = [block_number(p) for p in pointers.values() if p & 7 == Resource.FILE_BLOCK]
        self._blocks.release(runs_of(sorted(numbers)))

    def _new_inode(
        self, kind: Kind, addressing: Addressing, shift: int, mode: int, parent: int
    ) -> Inode:
        (number,) = self._inodes.allocate(1)
        generation = int.from_bytes(os.urandom(3), "little") + 1
        at = self._table.inode_at(number)
        return Inode.fresh(
            inode_address(number), at, kind, addressing, shift, mode, parent, generation
        )

    def _extents(self, inode: Inode) -> list[DiskExtent]:
        pointers, _ = self._table.block_map(inode)
        found: list[DiskExtent] = []
        for index, pointer in sorted(pointers.items()):
            at, place = index * FILE_BLOCK, self._device.base + block_number(pointer) * FILE_BLOCK
            length = min(FILE_BLOCK, inode.size - at)
            last = found[-1] if found else None
            if last and (last.file_offset + last.length, last.lun_offset + last.length) == (
                at,
                place,
            ):
                found[-1] = DiskExtent(last.file_offset, last.length + length, last.lun_offset)
            else:
                found.append(DiskExtent(at, length, place))
        return found

    def _flat_entry(self, parent: Directory, path: str) -> Entry | None:
        """The data of the disk whose descriptor is at `path`; None when that is none."""
        name = PurePosixPath(path).name
        if not name.endswith(".vmdk") or is_data(name):
            return None
        return parent.find(flat_name(self.read_file(path), path))

    def _flat(self, path: str) -> Inode:
        parent, _ = self._parent(path)
        entry = self._flat_entry(parent, path)
        if entry is None:
            raise FileNotFoundError(2, "there is no virtual disk of that name", path)
        return self._table.inode(entry.address)

    def _file(self, path: str) -> Inode:
        parent, name = self._parent(path)
        entry = parent.find(name)
        if entry is None:
            raise FileNotFoundError(2, "there is no file of that name", path)
        return self._table.inode(entry.address)

    def _parent(self, path: str) -> tuple[Directory, str]:
        pure = PurePosixPath("/", path)
        if not 0 < len(pure.name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"{path!r} does not end in a file name of 1 to 127 bytes")
        return self._directory(str(pure.parent)), pure.name

    def _directory(self, path: str) -> Directory:
        inode = self._table.inode(inode_address(ROOT))
        for name in PurePosixPath("/", path).parts[1:]:
            entry = self._open_directory(inode).find(name)
            if entry is None:
                raise FileNotFoundError(2, "there is no directory of that name", path)
            inode = self._table.inode(entry.address)
            if not inode.is_directory:
                raise NotADirectoryError(20, "it is not a directory", path)
        return self._open_directory(inode)

    def _open_directory(self, inode: Inode) -> Directory:
        return Directory(self._table, inode, self._blocks, self._sub_blocks)

    def _add_links(self, address: int, change: int) -> None:
        inode = self._table.inode(address)
        inode.set("links", inode.get("links") + change)
        self._table.save(inode)


def _blocks(run: Run) -> range:
    return range(run.first, run.first + run.length)
