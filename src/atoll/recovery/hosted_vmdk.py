"""Writing a disk as a VMDK in the forms of VMware's hosted products: flat or sparse, whole or split.

Source: VMware, "Virtual Disk Format 5.0", sections "The Descriptor File" and
"Hosted Sparse Extents". The sizes of split extents are those VMware's own tools write.
"""

import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from atoll.blocks.vmdk import descriptor_text
from atoll.model.errors import RestoreTargetError
from atoll.model.extents import Extent, merge
from atoll.model.readers import BlockReader
from atoll.recovery.ordered_reads import READERS, grains_with_data, read_ahead

SECTOR = 512
GRAIN_BYTES = 64 << 10
SPLIT_SPARSE_SECTORS = 4192256
SPLIT_FLAT_SECTORS = 4193792

_ENTRIES = 512  # of a grain table
_TABLE_SECTORS = _ENTRIES * 4 // SECTOR
_GRAIN_SECTORS = GRAIN_BYTES // SECTOR
_DESCRIPTOR_SECTORS = 20
_MAX_SPARSE_SECTORS = 0xFFFF0000  # a grain's place is a number of 32 bits
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_NEWLINE_TEST, _REDUNDANT_TABLES = 1, 2


@dataclass(frozen=True, slots=True)
class VmdkForm:
    """`monolithic` is one extent, else pieces below 2 GiB; `flat` has every byte at its place."""

    monolithic: bool
    flat: bool

    @property
    def create_type(self) -> str:
        """What the descriptor calls it."""
        extent = "Flat" if self.flat else "Sparse"
        return f"monolithic{extent}" if self.monolithic else f"twoGbMaxExtent{extent}"


def write_vmdk(
    reader: BlockReader,
    directory: Path,
    stem: str,
    form: VmdkForm,
    progress: Callable[[int], None],
) -> None:
    """Write `STEM.vmdk` and the extents beside it; none of the files may be there.

    All are on disk at the end, the descriptor last. `progress` receives how many
    bytes of the disk are done. What a failure leaves is the caller's to remove.
    RestoreTargetError for what no such file can hold; OSError and the reader's errors pass.
    """
    size = reader.size_bytes
    if size % SECTOR or not size:
        raise RestoreTargetError(
            f"{stem} has {size} bytes, not a whole number of sectors, which no VMDK can have; "
            "restore it as a raw image."
        )
    if form.monolithic and not form.flat and size // SECTOR > _MAX_SPARSE_SECTORS:
        raise RestoreTargetError(
            f"{stem} is too large for one sparse file; export it split (-M 0) or flat (-F 1)."
        )
    extents = _extents(size, stem, form)
    lines = [
        f'RW {extent.length // SECTOR} {"FLAT" if form.flat else "SPARSE"} "{name}"'
        f"{' 0' if form.flat else ''}"
        for name, extent in extents
    ]
    text = descriptor_text(size, form.create_type, lines, hardware_version=4)
    holes = merge(reader.holes())
    with ThreadPoolExecutor(READERS) as pool:
        for name, extent in extents:
            with _Created(directory / name) as descriptor:
                sink: _Flat | _Sparse
                if form.flat:
                    sink = _Flat(descriptor, extent)
                else:
                    sink = _Sparse(descriptor, extent, text if form.monolithic else b"")
                pieces = read_ahead(reader, holes, extent, GRAIN_BYTES, pool, lambda _, data: data)
                for piece, content in pieces:
                    sink.write(piece.offset - extent.offset, content)
                    progress(piece.end)
                sink.finish()
            progress(extent.end)
    if form.flat or not form.monolithic:
        with _Created(directory / f"{stem}.vmdk") as descriptor:
            descriptor.write(text)


def _extents(size: int, stem: str, form: VmdkForm) -> list[tuple[str, Extent]]:
    """Names and ranges of the files with the disk's bytes."""
    if form.monolithic:
        return [(f"{stem}-flat.vmdk" if form.flat else f"{stem}.vmdk", Extent(0, size))]
    step = (SPLIT_FLAT_SECTORS if form.flat else SPLIT_SPARSE_SECTORS) * SECTOR
    letter = "f" if form.flat else "s"
    return [
        (f"{stem}-{letter}{number:03}.vmdk", Extent(at, min(step, size - at)))
        for number, at in enumerate(range(0, size, step), 1)
    ]


class _Flat:
    """A file with every byte at its place, zeros as holes."""

    def __init__(self, file: "_Created", extent: Extent) -> None:
        self._file = file
        file.truncate(extent.length)

    def write(self, offset: int, content: bytes) -> None:
        for at, grain in grains_with_data(content, GRAIN_BYTES):
            self._file.write(grain, offset + at)

    def finish(self) -> None:
        """Nothing is kept back."""


class _Sparse:
    """A sparse extent: header, tables, and the grains that are not zero, in order.

    Both copies of the tables have their place from the start, so a grain is
    written once; a table is written when the first grain of another comes.
    """

    def __init__(self, file: "_Created", extent: Extent, text: bytes) -> None:
        self._file = file
        sectors = extent.length // SECTOR
        tables = -(-sectors // (_GRAIN_SECTORS * _ENTRIES))
        directory_sectors = -(-tables * 4 // SECTOR)
        described = _DESCRIPTOR_SECTORS if text else 0
        if len(text) > described * SECTOR:
            raise RestoreTargetError(
                "The name of a disk is too long for a VMDK in one sparse file; export it with -M 0."
            )
        first = 1 + described
        second = first + directory_sectors + tables * _TABLE_SECTORS
        used = second + directory_sectors + tables * _TABLE_SECTORS
        overhead = -(-used // _GRAIN_SECTORS) * _GRAIN_SECTORS
        self._tables = (first + directory_sectors, second + directory_sectors)
        self._next = overhead
        self._table = 0
        self._entries = [0] * _ENTRIES
        header = _HEADER.pack(
            b"KDMV",
            1,
            _NEWLINE_TEST | _REDUNDANT_TABLES,
            sectors,
            _GRAIN_SECTORS,
            1 if text else 0,
            described,
            _ENTRIES,
            first,
            second,
            overhead,
            0,
            b"\n \r\n",
            0,
        )
        file.write(header.ljust(SECTOR, b"\0"), 0)
        file.write(text, SECTOR)
        for place, start in zip((first, second), self._tables, strict=True):
            starts = [start + number * _TABLE_SECTORS for number in range(tables)]
            file.write(struct.pack(f"<{tables}I", *starts), place * SECTOR)
        file.truncate(overhead * SECTOR)

    def write(self, offset: int, content: bytes) -> None:
        for at, grain in grains_with_data(content, GRAIN_BYTES):
            table, entry = divmod((offset + at) // GRAIN_BYTES, _ENTRIES)
            if table != self._table:
                self._flush()
                self._table = table
            self._file.write(grain.ljust(GRAIN_BYTES, b"\0"), self._next * SECTOR)
            self._entries[entry] = self._next
            self._next += _GRAIN_SECTORS

    def finish(self) -> None:
        """Write the last table."""
        self._flush()

    def _flush(self) -> None:
        packed = struct.pack(f"<{_ENTRIES}I", *self._entries)
        for start in self._tables:
            self._file.write(packed, (start + self._table * _TABLE_SECTORS) * SECTOR)
        self._entries = [0] * _ENTRIES


class _Created:
    """A new file, on disk when the block ends without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> "_Created":
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def write(self, content: bytes, offset: int = 0) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written
