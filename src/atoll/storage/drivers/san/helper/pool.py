"""The thin pool as the kernel has it: thin devices by number, how full it is, what is mapped.

LVM keeps the pool and extends it; the thin devices in it are Atoll's own, as LVM allows for a pool
without LVM volumes (its transaction id stays 0). A snapshot is then one message to the kernel
instead of a program and a rewrite of the volume group's metadata for each LUN. Formats: the
kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

import errno
import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from atoll.model.errors import PoolFullError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.storage.drivers.san.helper import dm, lvm

_METADATA_BLOCK_BYTES = 4096
_MAPPING = re.compile(
    r'<(?:range|single)_mapping origin_(?:begin|block)="(\d+)"(?:.*? length="(\d+)")?'
)
_DIFFERENCE = re.compile(r'<(same|different|left_only|right_only) begin="(\d+)" length="(\d+)"')


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of the pool's data, and the share of its metadata that is used."""

    total_bytes: int
    used_bytes: int
    metadata_used_share: float


class ThinPool:
    """The pool `volume_group`/`pool`, which `lvm.create` made."""

    def __init__(self, volume_group: str, pool: str) -> None:
        self.volume_group = volume_group
        self.pool = pool
        self._name = lvm.device_name(volume_group, pool)
        self._metadata = lvm.device_name(volume_group, f"{pool}_tmeta")
        self._lock = Path(f"/run/atoll-san-{self._name}.metadata")
        device = self._device()
        [target] = dm.table(self._name)
        self._table = target.parameters.split()
        self._minor = device.minor
        self._major = os.major(device.path.stat().st_rdev)
        self.chunk_bytes = int(self._table[2]) * dm.SECTOR
        self.id = hashlib.sha256(device.uuid.encode()).hexdigest()[:8]
        """Tells pools apart in the names of mapped devices, the same after every start."""

    @property
    def book_path(self) -> Path:
        """The block device of Atoll's book."""
        name = lvm.device_name(self.volume_group, lvm.book_name(self.pool))
        found = dm.find(name)
        if found is None:
            raise StorageUnreachableError(
                f"{self.volume_group}/{lvm.book_name(self.pool)} is not on the SAN server; prepare "
                "the storage system with `atoll storage init`."
            )
        return found.path

    def usage(self) -> Usage:
        """How full it is. StorageUnreachableError when the kernel has taken it out of service."""
        words = self._status()
        metadata_used, metadata_total = (int(number) for number in words[1].split("/"))
        data_used, data_total = (int(number) for number in words[2].split("/"))
        return Usage(
            data_total * self.chunk_bytes,
            data_used * self.chunk_bytes,
            metadata_used / metadata_total,
        )

    def create(self, number: int) -> None:
        """An empty thin device; one that is there already is right."""
        self._tell(f"create_thin {number}", unless=errno.EEXIST)

    def snapshot(self, number: int, origin: int) -> None:
        """A thin device that is what `origin` is now; that one must be suspended or inactive."""
        self._tell(f"create_snap {number} {origin}")

    def delete(self, number: int) -> None:
        """Remove an inactive thin device; absent is success."""
        self._tell(f"delete {number}", unless=errno.ENODATA)

    def target(self, number: int, size_bytes: int) -> dm.Target:
        """The table of a mapped device that shows this thin device."""
        return dm.Target(
            0, size_bytes // dm.SECTOR, "thin", f"{self._major}:{self._minor} {number}"
        )

    def mapped(self, number: int) -> Iterator[Extent]:
        """Ranges of a thin device that hold data, in order."""
        options = ("--dev-id", str(number))
        for line in self._inspect("thin_dump", *options):
            if match := _MAPPING.search(line):
                begin, length = int(match[1]), int(match[2] or 1)
                yield Extent(begin * self.chunk_bytes, length * self.chunk_bytes)

    def differences(self, older: int, newer: int) -> Iterator[Extent]:
        """Ranges that two thin devices do not share, in order, joined."""
        start = end = 0
        for line in self._inspect("thin_delta", "--thin1", str(older), "--thin2", str(newer)):
            match = _DIFFERENCE.search(line)
            if match is None or match[1] == "same":
                continue
            begin = int(match[2]) * self.chunk_bytes
            if begin != end:
                if end > start:
                    yield Extent(start, end - start)
                start = begin
            end = begin + int(match[3]) * self.chunk_bytes
        if end > start:
            yield Extent(start, end - start)

    def _device(self) -> dm.Device:
        found = dm.find(self._name)
        if found is None or not found.active:
            lvm.activate(self.volume_group, self.pool)
            found = dm.find(self._name)
        if found is None:
            raise StorageUnreachableError(
                f"{self.volume_group}/{self.pool} is no thin pool of Atoll's alone on the SAN "
                "server; name another in the settings."
            )
        return found

    def _status(self) -> list[str]:
        """Transaction id, metadata blocks and data chunks (used/total), held metadata root, flags."""
        [line] = dm.status(self._name)
        words = line.parameters.split()
        if not {"Fail", "Error", "ro", "needs_check"}.isdisjoint(words):
            raise StorageUnreachableError(
                f"The thin pool {self.volume_group}/{self.pool} is out of service "
                f"({line.parameters}); repair it with `lvconvert --repair`, see lvmthin(7)."
            )
        return words

    def _tell(self, text: str, unless: int = 0) -> None:
        try:
            dm.message(self._name, text)
        except OSError as error:
            if error.errno == unless:
                return
            if error.errno in (errno.ENOSPC, errno.EOPNOTSUPP):
                # The kernel refuses changes once the metadata is nearly full.
                raise PoolFullError(
                    f"The thin pool {self.volume_group}/{self.pool} takes no more; delete "
                    "snapshots or add a disk."
                ) from error
            raise

    def _inspect(self, program: str, *options: str) -> Iterator[str]:
        """What a program of thin-provisioning-tools says about the pool, line by line.

        It reads a copy of the metadata that the kernel keeps still meanwhile. There
        can be one at a time.
        """
        with self._metadata_copy() as metadata:
            try:
                process = subprocess.Popen(
                    # The option last, for newer versions would take a word after it for its value.
                    [program, *options, str(metadata), "--metadata-snap"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            except FileNotFoundError as error:
                raise StorageUnreachableError(
                    f"The SAN server has no program {program}; install thin-provisioning-tools."
                ) from error
            with process:
                if process.stdout is None or process.stderr is None:
                    raise AssertionError("pipes were asked for")
                yield from process.stdout
                said = process.stderr.read().strip()
            if process.returncode:
                raise StorageUnreachableError(
                    f"`{program}` failed on the SAN server: {said or process.returncode}."
                )

    @contextmanager
    def _metadata_copy(self) -> Iterator[Path]:
        device = dm.find(self._metadata)
        if device is None:
            raise StorageUnreachableError(
                f"The metadata of {self.volume_group}/{self.pool} is not found on the SAN server."
            )
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if self._status()[3] != "-":  # what a helper left that was killed
                dm.message(self._name, "release_metadata_snap")
            dm.message(self._name, "reserve_metadata_snap")
            try:
                yield device.path
            finally:
                dm.message(self._name, "release_metadata_snap")
        finally:
            os.close(descriptor)


def resume_all(prefix: str) -> list[str]:
    """Let writes go on that a dead helper held back; the names of the devices that were held."""
    held = []
    for name in dm.names():
        found = dm.find(name) if name.startswith(prefix) else None
        if found is not None and found.suspended:
            dm.resume(name)
            held.append(name)
    return held


def clipped(extents: Iterator[Extent], size_bytes: int) -> Iterator[Extent]:
    """The part of ordered ranges below `size_bytes`."""
    for extent in extents:
        if extent.offset >= size_bytes:
            return
        yield Extent(extent.offset, min(extent.length, size_bytes - extent.offset))
