"""A whole VM in one file: a descriptor, checksums and stream-optimised disks in a tar archive.

It is written in one pass over the disks, without a temporary copy: the descriptor and the checksums
stand before the disks and are as long as they ever get, so they are filled in at the end, and so
is the size in each disk's header. Source: DMTF DSP0243 1.1.0, "Open Virtualization Format
Specification", section 6.4.
"""

import hashlib
import os
import re
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import RestoreTargetError
from atoll.model.extents import complement, merge
from atoll.model.hardware import VmHardware
from atoll.model.readers import BlockReader
from atoll.recovery.disks import since_last
from atoll.recovery.ovf import OvfDisk, descriptor
from atoll.recovery.stream_vmdk import stream_vmdk
from atoll.recovery.whole_files import pwrite, write_file

_BLOCK = tarfile.BLOCKSIZE
_LONGEST = (1 << 63) - 1  # stands in for sizes that are not known yet
_USTAR_BYTES = 8 << 30
_UNFIT = re.compile(r"[^A-Za-z0-9._-]")
_MAX_STEM = 60


@dataclass(frozen=True, slots=True)
class OvaReport:
    """What was written: bytes of the file, and of the disks."""

    file_bytes: int
    disk_bytes: int


def write_ova(
    hardware: VmHardware,
    readers: Mapping[str, BlockReader],
    target: Path,
    progress: Callable[[int], None],
) -> OvaReport:
    """Write the VM with its disks, `readers` by their address; the target must not exist.

    `progress` receives the bytes of the disks done since the last call. RestoreTargetError, and what
    the readers raise; then nothing is left.
    """
    if not target.name.lower().endswith(".ova"):
        raise RestoreTargetError(f"{target} is no name for an OVA; choose one like db1.ova.")
    package = _Package(hardware, readers)
    write_file(target, lambda descriptor_: package.write(descriptor_, progress))
    return OvaReport(package.end, sum(disk.size_bytes for disk in hardware.disks))


class _Package:
    def __init__(self, hardware: VmHardware, readers: Mapping[str, BlockReader]) -> None:
        self._hardware = hardware
        self._readers = readers
        self._stem = _UNFIT.sub("_", hardware.name)[:_MAX_STEM].lstrip(".-") or "vm"
        self._made_at = int(time.time())
        self.end = 0

    def write(self, out: int, progress: Callable[[int], None]) -> None:
        """Everything, into an empty file."""
        disks = self._hardware.disks
        names = [f"{self._stem}-disk{number}.vmdk" for number in range(1, len(disks) + 1)]
        longest = [
            OvfDisk(disk, name, _LONGEST, disk.size_bytes)
            for disk, name in zip(disks, names, strict=True)
        ]
        room = len(descriptor(self._hardware, longest))
        nothing = dict.fromkeys([f"{self._stem}.ovf", *names], "0" * 64)
        sums_bytes = len(_manifest(nothing))
        sums_at = _BLOCK + _padded(room)
        at = sums_at + _BLOCK + _padded(sums_bytes)
        sums: dict[str, str] = {}
        written: list[OvfDisk] = []
        for disk, name in zip(disks, names, strict=True):
            reader = self._readers[disk.address]
            length, digest = self._disk(out, at + _BLOCK, reader, since_last(progress))
            self._header(out, at, name, length)
            written.append(OvfDisk(disk, name, length, _populated(reader)))
            sums[name] = digest
            at += _BLOCK + _padded(length)
        # Blanks behind the document's end are its, and nobody minds them.
        text = descriptor(self._hardware, written).ljust(room)
        self._header(out, 0, f"{self._stem}.ovf", room)
        pwrite(out, text, _BLOCK)
        sums = {f"{self._stem}.ovf": hashlib.sha256(text).hexdigest(), **sums}
        self._header(out, sums_at, f"{self._stem}.mf", sums_bytes)
        pwrite(out, _manifest(sums), sums_at + _BLOCK)
        self.end = -(-(at + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        os.ftruncate(out, self.end)

    def _disk(
        self, out: int, at: int, reader: BlockReader, progress: Callable[[int], None]
    ) -> tuple[int, str]:
        """Write a disk; its length in the file and its checksum."""
        begin, digest = at, hashlib.sha256()
        for part in stream_vmdk(reader, progress):
            digest.update(part)
            pwrite(out, part, at)
            at += len(part)
        return at - begin, digest.hexdigest()

    def _header(self, out: int, at: int, name: str, length: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = length, 0o644, self._made_at
        # USTAR, which the specification wants, ends at 8 GiB; beyond, what GNU and VMware write.
        large = length >= _USTAR_BYTES
        pwrite(out, info.tobuf(tarfile.GNU_FORMAT if large else tarfile.USTAR_FORMAT), at)


def _populated(reader: BlockReader) -> int:
    return sum(extent.length for extent in complement(merge(reader.holes()), reader.size_bytes))


def _manifest(sums: Mapping[str, str]) -> bytes:
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in sums.items()).encode()


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK
