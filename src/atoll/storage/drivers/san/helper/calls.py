"""The calls Atoll's side makes. Each says which system it is about, so a helper may die between any."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.storage.drivers.san.helper import configfs, fabrics, lock, lvm, sparse, targets
from atoll.storage.drivers.san.helper.backstores import Backstore, Identity
from atoll.storage.drivers.san.helper.fabrics import Access
from atoll.storage.drivers.san.helper.failures import system_errors
from atoll.storage.drivers.san.helper.ledger import Ledger
from atoll.storage.drivers.san.helper.pool import ThinPool
from atoll.storage.drivers.san.helper.targets import Exported, Ports
from atoll.storage.drivers.san.helper.volumes import Volumes

System = Mapping[str, Any]
"""`volume_group`, `pool`, `listen`, `durable`, `fc_ports` and `fc_fabric` of the settings."""

READING = (
    *("volumes", "snapshots", "served", "unit", "devices", "remove_device"),
    *("changed_extents", "open_snapshot", "read", "holes", "close_snapshot"),
)
"""Calls that do not wait for the lock; those that need one take it themselves, briefly."""

_PROGRAMS = ("lvm", "thin_delta", "thin_dump", "modprobe")


class Calls:
    """What the helper answers. One of these lives as long as its connection."""

    def __init__(self) -> None:
        self._volumes: dict[tuple[str, str], Volumes] = {}
        self._open: dict[tuple[str, str, str], int] = {}

    def by_name(self) -> dict[str, Callable[..., Any]]:
        """Every call, telling the system's errors as Atoll's."""
        names = [name for name in vars(Calls) if not name.startswith("_")]
        left_out = ("by_name", "close", "restore")
        return {name: _told(name, getattr(self, name)) for name in names if name not in left_out}

    def prepare(self, system: System, chunk_bytes: int) -> None:
        """Make the pool and its book, and see that all that is needed is there."""
        for program in _PROGRAMS:
            if shutil.which(program) is None:
                raise StorageUnreachableError(
                    f"The SAN server has no program {program}; install what docs/drivers/san.md "
                    "names."
                )
        configfs.fabric_directory(fabrics.ISCSI.name, fabrics.ISCSI.module)
        lvm.create(system["volume_group"], system["pool"], chunk_bytes)
        pool = ThinPool(system["volume_group"], system["pool"])
        Ledger(pool.book_path).prepare()
        if system["fc_fabric"] == fabrics.QLA2XXX.name:
            for port in system["fc_ports"]:
                fabrics.require_port(port)

    def room(self, system: System) -> tuple[int, int]:
        """Total and free bytes."""
        return self._of(system).room()

    def volumes(self, system: System) -> dict[str, int]:
        """Size in bytes by volume."""
        book = self._of(system).ledger.read()
        return {name: volume.thin.size_bytes for name, volume in book.volumes.items()}

    def snapshots(self, system: System) -> list[str]:
        """All snapshots."""
        return list(self._of(system).ledger.read().snapshots)

    def create_volume(
        self, system: System, group: str, volume: str, size_bytes: int, label: str
    ) -> None:
        """An empty volume."""
        self._of(system).create(group, volume, size_bytes, label)

    def grow_volume(self, system: System, volume: str, size_bytes: int) -> None:
        """A larger volume; initiators see it when they ask."""
        self._of(system).grow(volume, size_bytes)

    def move_volume(self, system: System, volume: str, group: str) -> None:
        """Another group for a volume."""
        volumes = self._of(system)
        targets.withdraw(volumes.pool.id, volume)
        volumes.move(volume, group)

    def delete_volume(self, system: System, volume: str) -> None:
        """No such volume."""
        volumes = self._of(system)
        targets.withdraw(volumes.pool.id, volume)
        volumes.delete(volume)

    def take_snapshot(
        self, system: System, snapshot: str, volumes: Sequence[str]
    ) -> tuple[float, float, float]:
        """One instant of these volumes; see SnapshotTimes."""
        taken = self._of(system).take(snapshot, volumes)
        return taken.started_at, taken.finished_at, taken.pause_seconds

    def delete_snapshot(self, system: System, snapshot: str) -> None:
        """No such snapshot."""
        for key in [key for key in self._open if key[1] == snapshot]:
            os.close(self._open.pop(key))
        self._of(system).delete_snapshot(snapshot)

    def clone(
        self,
        system: System,
        snapshot: str,
        group: str,
        volumes: Mapping[str, str],
        labels: Mapping[str, str],
    ) -> None:
        """Copies of a snapshot's volumes."""
        self._of(system).clone(snapshot, group, volumes, labels)

    def revert(self, system: System, snapshot: str, volumes: Sequence[str]) -> None:
        """These volumes as they were."""
        self._of(system).revert(snapshot, volumes)

    def changed_extents(
        self, system: System, volume: str, older: str, newer: str
    ) -> Iterator[Extent]:
        """What two snapshots do not share."""
        return self._of(system).changed(volume, older, newer)

    def open_snapshot(self, system: System, volume: str, snapshot: str) -> tuple[str, int]:
        """The block device of a volume in a snapshot, there until this connection ends, and its size."""
        descriptor = self._reader(system, volume, snapshot)
        return str(Path(f"/proc/self/fd/{descriptor}").readlink()), os.lseek(
            descriptor, 0, os.SEEK_END
        )

    def read(self, system: System, volume: str, snapshot: str, offset: int, length: int) -> bytes:
        """Bytes of a volume in a snapshot, without their zeros (see `sparse`)."""
        descriptor = self._reader(system, volume, snapshot)
        pieces = []
        while length:
            piece = os.pread(descriptor, length, offset)
            if not piece:
                raise StorageUnreachableError(
                    f"Snapshot {snapshot} of volume {volume} ends at byte {offset}, before its "
                    "size; see the SAN server's kernel log."
                )
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return sparse.pack(b"".join(pieces))

    def holes(self, system: System, volume: str, snapshot: str) -> Iterator[Extent]:
        """What reads as zeros."""
        return self._of(system).holes(snapshot, volume)

    def close_snapshot(self, system: System, volume: str, snapshot: str) -> None:
        """Nobody here reads it any more."""
        volumes = self._of(system)
        descriptor = self._open.pop((volumes.pool.id, snapshot, volume), None)
        if descriptor is not None:
            os.close(descriptor)
            with lock.held():
                volumes.deactivate_snapshot(snapshot, volume)

    def serve(self, system: System, group: str, exports: Sequence[Mapping[str, Any]]) -> list[str]:
        """Have exactly these served; one sentence per thing that was not so."""
        volumes = self._of(system)
        wanted = {"system": dict(system), "exports": [dict(export) for export in exports]}
        # First, so that a restart never serves what is being withdrawn.
        volumes.note_served(group, wanted if exports else None)
        served = [self._exported(volumes, system, group, export) for export in exports]
        ports = Ports(
            tuple(system["listen"]),
            tuple(system["fc_ports"]),
            fabrics.FC_FABRICS[system["fc_fabric"]],
        )
        gone = targets.served(volumes.pool.id).get(group, set())
        gone -= {export["volume"] for export in exports}
        said = [
            f"Served {target} anew."
            for target in targets.serve(volumes.pool.id, group, served, ports)
        ]
        if not ports.fc_ports:
            said += [
                f"{exported.target} is to be reached over Fibre Channel too, and the settings name "
                "no fc_ports; name the SAN server's ports or present the LUN anew."
                for exported in served
                if exported.fc
            ]
        for volume in gone:
            volumes.deactivate(volume)
            said.append(f"Ended access to volume {volume}.")
        return said

    def served(self, system: System) -> list[str]:
        """Groups of which LIO serves something."""
        return list(targets.served(self._of(system).pool.id))

    def unit(self, system: System, volume: str) -> int:
        """A volume's LUN number over Fibre Channel."""
        book = self._of(system).ledger.read()
        if volume not in book.volumes:
            raise StorageConflictError(f"The SAN server knows no volume {volume}; reconcile.")
        return book.volumes[volume].unit

    def release(self, system: System, group: str) -> bool:
        """Let a group's writes go on; whether they were held."""
        return self._of(system).release(group)

    def stop(self, system: System, group: str) -> bool:
        """Serve nothing of a group; whether something was."""
        return bool(self.serve(system, group, []))

    def devices(self, system: System) -> list[tuple[str, int, int, bool]]:
        """Path, size, used bytes and whether it is missing, of every disk."""
        return [
            (disk.path, disk.size_bytes, disk.used_bytes, disk.missing)
            for disk in lvm.disks(system["volume_group"])
        ]

    def add_device(self, system: System, path: str) -> None:
        """One disk more."""
        lvm.add_disk(system["volume_group"], path)

    def remove_device(self, system: System, path: str) -> None:
        """One disk less."""
        with lock.held(lock.DISKS):
            lvm.remove_disk(system["volume_group"], path)

    def restore(self, volume_group: str, pool: str) -> list[str]:
        """Serve again what was served last, as after a restart of the server."""
        system = {"volume_group": volume_group, "pool": pool}
        said = []
        with lock.held():
            for group, served in dict(self._of(system).ledger.read().served).items():
                said += self.serve(served["system"], group, served["exports"])
        return said

    def close(self) -> None:
        """Take away what only this connection needed."""
        while self._open:
            (_, snapshot, volume), descriptor = self._open.popitem()
            os.close(descriptor)
            with lock.held():
                for volumes in self._volumes.values():
                    volumes.deactivate_snapshot(snapshot, volume)

    def _of(self, system: System) -> Volumes:
        key = system["volume_group"], system["pool"]
        if key not in self._volumes:
            self._volumes[key] = Volumes(*key)
        return self._volumes[key]

    def _reader(self, system: System, volume: str, snapshot: str) -> int:
        volumes = self._of(system)
        key = volumes.pool.id, snapshot, volume
        if key not in self._open:
            with lock.held():  # whoever sweeps must find it either not there or open
                device = volumes.activate_snapshot(snapshot, volume)
                self._open[key] = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[key]

    def _exported(
        self, volumes: Volumes, system: System, group: str, export: Mapping[str, Any]
    ) -> Exported:
        volume = export["volume"]
        read_only = export["read_only"]
        accesses = tuple(
            Access(name, read_only, tuple(chap) if chap else None)
            for name, chap in export["initiators"].items()
        )
        return Exported(
            Backstore(
                volumes.pool.id,
                group,
                volume,
                volumes.activate(volume).path,
                Identity(export["serial"], export["vendor"], export["product"]),
                system["durable"],
            ),
            export["target"],
            volumes.ledger.read().volumes[volume].unit,
            accesses,
        )


def _told(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call with the system's errors told as Atoll's, also those of what it yields."""
    action = name.replace("_", " ")

    @wraps(call)
    def told(*arguments: Any, **named: Any) -> Any:
        with system_errors(action):
            result = call(*arguments, **named)
        return _yielded(action, result) if isinstance(result, Iterator) else result

    return told


def _yielded(action: str, items: Iterator[Any]) -> Iterator[Any]:
    with system_errors(action):
        yield from items
