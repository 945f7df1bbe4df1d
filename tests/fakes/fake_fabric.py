"""A storage network made of files: what is presented to an initiator is what it sees."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll_lab.vcenter.fabric import LunHandle, ScsiIdentity


@dataclass
class _Disk:
    path: Path
    naa: str
    initiators: set[str] = field(default_factory=set)
    read_only: bool = False


class FileHandle:
    """A disk file as a LUN."""

    def __init__(self, disk: _Disk) -> None:
        self._file = disk.path.open("rb" if disk.read_only else "r+b")
        self.identity = ScsiIdentity(disk.naa, disk.naa[-12:], "FAKE", "FileLun")
        self.size_bytes = disk.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def write(self, offset: int, data: bytes) -> None:
        if self._file.mode == "rb":
            raise StorageUnreachableError("The LUN is read-only.")
        self._file.seek(offset)
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class FileFabric:
    """Implements atoll_lab.vcenter.fabric.Fabric over one portal; a target a LUN, numbered 1."""

    def __init__(self, portal: str = "192.0.2.1:3260") -> None:
        self.portal = portal
        self.up = True
        self.open_handles = 0
        self._disks: dict[str, _Disk] = {}
        self._lock = threading.Lock()

    def add(self, path: Path, naa: str, read_only: bool = False) -> None:
        """A LUN nobody may see yet."""
        self._disks[f"iqn.2024-01.test:{naa}"] = _Disk(path, naa, read_only=read_only)

    def present(self, naa: str, *initiators: str) -> None:
        """Let exactly these initiators reach the LUN."""
        with self._lock:
            self._disks[f"iqn.2024-01.test:{naa}"].initiators = set(initiators)

    def targets(self, portal: str, initiator: str) -> Sequence[str]:
        self._require(portal)
        return [name for name, disk in self._disks.items() if initiator in disk.initiators]

    def luns(self, portal: str, target: str, initiator: str) -> Sequence[int]:
        self._find(portal, target, initiator)
        return [1]

    def open(self, portal: str, target: str, lun: int, initiator: str) -> LunHandle:
        return FileHandle(self._find(portal, target, initiator))

    def _require(self, portal: str) -> None:
        if portal != self.portal or not self.up:
            raise StorageUnreachableError(f"No portal answers at {portal}.")

    def _find(self, portal: str, target: str, initiator: str) -> _Disk:
        self._require(portal)
        disk = self._disks.get(target)
        if disk is None or initiator not in disk.initiators:
            raise StorageUnreachableError(f"{target} refused {initiator}.")
        return disk
