"""Atoll's side of the driver: a VolumeBackend that asks the helper on the SAN server."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import atoll
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Capabilities, PoolDevice, Portal
from atoll.storage.backend import Export, Notes, Room, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.san.reader import DeviceReader, RemoteReader
from atoll.storage.drivers.san.settings import Settings
from atoll.storage.identity import identity_of
from atoll.storage.sidecar.client import Sidecar

_LOCAL_HELPER = ("/usr/bin/python3", "-m", "atoll.storage.drivers.san.helper")
_SOURCE = Path(atoll.__file__).parents[1]
_ISCSI_UNIT = 0


class SanHelper(Sidecar):
    """A helper process whose every call is about one storage system."""

    def __init__(self, name: str, settings: Settings) -> None:
        command = settings.helper or _LOCAL_HELPER
        super().__init__(f"the SAN {name}", command, None if settings.helper else _environment())
        self._system = {
            "volume_group": settings.volume_group,
            "pool": settings.pool,
            "listen": settings.listen,
            "durable": settings.durability == "disk",
            "fc_ports": settings.fc_ports,
            "fc_fabric": settings.fc_fabric,
        }

    def call(self, call: str, **arguments: object) -> Any:
        """As Sidecar has it."""
        return super().call(call, system=self._system, **arguments)

    def read(self, call: str, **arguments: object) -> bytes:
        """As Sidecar has it."""
        return super().read(call, system=self._system, **arguments)

    def items(self, call: str, **arguments: object) -> Iterator[Any]:
        """As Sidecar has it."""
        return super().items(call, system=self._system, **arguments)


class SanBackend:
    """A VolumeBackend, and DeviceBackend, over the helper of `settings`.

    Two helpers: snapshots must not wait behind a reader.
    """

    snapshots_need_volume = False

    def __init__(self, name: str, settings: Settings, notes: Notes) -> None:
        self._name = name
        self._settings = settings
        self._notes = notes
        self._helper = SanHelper(name, settings)
        self._reading = SanHelper(name, settings)
        self._read: set[tuple[str, str]] = set()

    @property
    def capabilities(self) -> Capabilities:
        """Fibre Channel where ports are named."""
        if self._settings.fc_ports:
            return Capabilities(protocols=frozenset({"iscsi", "fc"}))
        return Capabilities()

    def room(self) -> Room:
        """How full the pool is, what the volume group can still give it included."""
        total, free = self._helper.call("room")
        return Room(total, free)

    def volumes(self) -> Mapping[str, int]:
        """Size in bytes of every volume in the helper's book."""
        volumes: dict[str, int] = self._helper.call("volumes")
        return volumes

    def snapshots(self) -> Collection[str]:
        """Every snapshot in the helper's book."""
        return set(self._helper.call("snapshots"))

    def groups(self) -> Collection[str]:
        """Groups are only our records."""
        return ()

    def create_group(self, group: str) -> None:
        """Nothing is needed."""

    def delete_group(self, group: str) -> None:
        """Nothing was needed."""

    def create_volume(self, group: str, volume: str, size_bytes: int, label: str) -> VolumeIdentity:
        """A thin device."""
        self._helper.call(
            "create_volume", group=group, volume=volume, size_bytes=size_bytes, label=label
        )
        return identity_of(volume)

    def grow_volume(self, group: str, volume: str, size_bytes: int) -> None:
        """A larger table for the mapped device, swapped in under those who use it."""
        self._helper.call("grow_volume", volume=volume, size_bytes=size_bytes)

    def move_volume(self, volume: str, group: str, to: str) -> None:
        """Another group in the book."""
        self._helper.call("move_volume", volume=volume, group=to)

    def delete_volume(self, group: str, volume: str) -> None:
        """Remove the thin device."""
        self._helper.call("delete_volume", volume=volume)
        self._notes.put_note(_unit_key(volume), None)

    def take_snapshot(self, group: str, snapshot: str, volumes: Sequence[str]) -> SnapshotTimes:
        """Suspend the volumes' mapped devices, snapshot each thin device, resume."""
        times = self._helper.call("take_snapshot", snapshot=snapshot, volumes=list(volumes))
        return SnapshotTimes(*times)

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Remove its thin devices."""
        # Its readers here are done; the helper that read for them would keep the devices.
        for volume in [each for taken, each in self._read if taken == snapshot]:
            self._reading.call("close_snapshot", volume=volume, snapshot=snapshot)
            self._read.discard((snapshot, volume))
        self._helper.call("delete_snapshot", snapshot=snapshot)

    def clone(
        self, snapshot: str, group: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mapping[str, VolumeIdentity]:
        """Thin snapshots of the thin snapshots."""
        self._helper.call(
            "clone", snapshot=snapshot, group=group, volumes=dict(volumes), labels=dict(labels)
        )
        return {volume: identity_of(volume) for volume in volumes.values()}

    def revert(self, group: str, snapshot: str, volumes: Sequence[str]) -> None:
        """New thin snapshots of the snapshot take the volumes' places."""
        self._helper.call("revert", snapshot=snapshot, volumes=list(volumes))

    def changed_extents(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """What the two thin devices do not share, to the pool's chunk."""
        found = self._reading.items("changed_extents", volume=volume, older=older, newer=newer)
        return (Extent(*each) for each in found)

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """By its block device when that is on this machine, else through a helper."""
        self._read.add((snapshot, volume))
        path, size_bytes = self._reading.call("open_snapshot", volume=volume, snapshot=snapshot)
        through = RemoteReader(self._reading, volume, snapshot, size_bytes)
        return through if self._settings.helper else DeviceReader(path, through)

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """By LIO."""
        said: list[str] = self._helper.call(
            "serve", group=group, exports=[_told(export) for export in exports]
        )
        return said

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """The settings' portals over iSCSI, and over Fibre Channel the server's ports.

        A Fibre Channel port has its WWPN for an address and a target, and port 0.
        """
        found = []
        if any(not name.startswith("naa.") for name in export.initiators):
            for portal in self._settings.portals or self._settings.listen:
                address, _, port = portal.rpartition(":")
                found.append(Portal(address.strip("[]"), int(port), export.target, _ISCSI_UNIT))
        if any(name.startswith("naa.") for name in export.initiators):
            unit = self._unit(export.volume)
            found += [Portal(port, 0, port, unit) for port in self._settings.fc_ports]
        return found

    def served(self) -> Collection[str]:
        """Groups of which LIO serves something."""
        return set(self._helper.call("served"))

    def release(self, group: str) -> bool:
        """Resume mapped devices that were left suspended."""
        return bool(self._helper.call("release", group=group))

    def stop(self, group: str) -> bool:
        """Have LIO serve nothing of the group."""
        return bool(self._helper.call("stop", group=group))

    def devices(self) -> Sequence[PoolDevice]:
        """The volume group's physical volumes."""
        return [
            PoolDevice(path, size_bytes, used_bytes, missing=missing)
            for path, size_bytes, used_bytes, missing in self._helper.call("devices")
        ]

    def add_device(self, path: str) -> None:
        """`vgextend`; the pool takes of it when it needs to."""
        self._helper.call("add_device", path=path)

    def remove_device(self, path: str) -> None:
        """`pvmove`, then `vgreduce`."""
        with closing(SanHelper(self._name, self._settings)) as helper:  # it may take hours
            helper.call("remove_device", path=path)

    def _unit(self, volume: str) -> int:
        """A volume's LUN number over Fibre Channel, noted so that it needs no SAN to be told."""
        noted = self._notes.note(_unit_key(volume))
        if noted is None:
            noted = str(self._helper.call("unit", volume=volume))
            self._notes.put_note(_unit_key(volume), noted)
        return int(noted)


def _unit_key(volume: str) -> str:
    return f"unit:{volume}"


def _told(export: Export) -> dict[str, object]:
    """An export as the helper takes it."""
    return {
        "volume": export.volume,
        "target": export.target,
        "serial": export.identity.serial,
        "vendor": export.identity.vendor,
        "product": export.identity.product,
        "read_only": export.read_only,
        "initiators": {name: _account(export, name) for name in export.initiators},
    }


def _account(export: Export, initiator: str) -> list[str] | None:
    chap = export.chap.get(initiator)
    if chap is None:
        return None
    return [chap.user, chap.secret, chap.mutual_user or "", chap.mutual_secret or ""]


def _environment() -> dict[str, str]:
    """What the distribution's Python needs to find the helper in this installation."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(_SOURCE)}
