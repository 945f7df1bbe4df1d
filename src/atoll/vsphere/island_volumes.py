"""Copies of VMFS volumes on the island's ESX host: taken in under a signature of their own, let go.

LUNs are named by their canonical names (`naa.…`), volumes by their VMFS UUIDs. Everything may be
repeated, and letting go of what is not there succeeds. Source: vSphere Web Services API,
HostStorageSystem and HostDatastoreSystem.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pyVmomi import vim

from atoll.model.errors import VCenterOperationError
from atoll.vsphere.collector import Row, read_all
from atoll.vsphere.hosts import find_host
from atoll.vsphere.inventory import names_of
from atoll.vsphere.session import Session
from atoll.vsphere.tasks import await_task

_STORAGE, _DATASTORES = "configManager.storageSystem", "configManager.datastoreSystem"
_LUNS = "config.storageDevice.scsiLun"
_ADAPTERS = "config.storageDevice.hostBusAdapter"
_RESIGNATURE_SECONDS = 600.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class VolumeCopy:
    """A volume whose signature was written for other LUNs: a snapshot's, as the host sees it.

    `obstacle` says why it cannot be taken in, empty when it can.
    """

    label: str
    naas: tuple[str, ...]
    device_paths: tuple[str, ...]
    obstacle: str


@dataclass(frozen=True, slots=True)
class MountedVolume:
    """A datastore that the host has mounted; `naas` are its extents' LUNs in order."""

    datastore: str
    uuid: str
    naas: tuple[str, ...]


class IslandVolumes:
    """What one host, by its name in the inventory, sees and has mounted. Any thread may use it.

    Every call raises VCenterUnreachableError, AuthenticationError and VCenterOperationError as
    the session does.
    """

    def __init__(self, session: Session, host: str) -> None:
        self._session = session
        self._host = host

    def rescan(self) -> None:
        """Find the LUNs presented now, and mount the volumes that are no copies."""

        def work(storage: Any, _: Any) -> None:
            storage.RescanAllHba()
            storage.RescanVmfs()

        self._call(f"rescan host {self._host}", work)

    def discover(self, portals: Collection[tuple[str, int]]) -> None:
        """See that the host looks for LUNs at these (address, port) too when it rescans."""

        def add(storage: Any, device: str, known: set[tuple[str, int]]) -> None:
            if missing := set(portals) - known:
                storage.AddInternetScsiSendTargets(device, _send_targets(missing))

        self._configure_discovery(add)

    def stop_discovering(self, portals: Collection[tuple[str, int]]) -> None:
        """See that it does not: a rescan waits for each that does not answer."""

        def remove(storage: Any, device: str, known: set[tuple[str, int]]) -> None:
            if present := set(portals) & known:
                storage.RemoveInternetScsiSendTargets(device, _send_targets(present), True)

        self._configure_discovery(remove)

    def copies(self, naas: Collection[str]) -> list[VolumeCopy]:
        """The copies that lie on these LUNs, as of the last rescan.

        What claims on other LUNs to be part of one is passed over: a guest may have written it.
        """
        found = self._call(
            f"list the volume copies on host {self._host}",
            lambda _, datastores: datastores.QueryUnresolvedVmfsVolumes(),
        )
        copies = [_copy(volume, naas) for volume in found or ()]
        return [copy for copy in copies if copy.naas]

    def take_in(self, copy: VolumeCopy) -> None:
        """Give a copy a signature of its own and mount it; it cannot be undone."""
        spec = vim.host.UnresolvedVmfsResignatureSpec(extentDevicePath=list(copy.device_paths))
        what = f"resignature the copy of {copy.label} on host {self._host}"
        task = self._call(
            what, lambda _, datastores: datastores.ResignatureUnresolvedVmfsVolume_Task(spec)
        )
        self._session.call(
            what, lambda content: await_task(content, task, what, _RESIGNATURE_SECONDS)
        )

    def volumes(self, naas: Collection[str]) -> list[MountedVolume]:
        """The volumes on these LUNs that the host has mounted."""
        pages = self._session.page_objects

        def read(content: Any) -> list[MountedVolume]:
            paths = {vim.HostSystem: ("name",), vim.Datastore: ("name", "info", "host")}
            rows = read_all(content, paths, pages)
            host = find_host(rows, self._host).moref
            stores = [row for row in rows if "info" in row.values]
            names = names_of({row.moref: str(row.get("name", "")) for row in stores})
            return [
                volume
                for row in stores
                if host in _mounted_by(row)
                and (volume := _volume(row, names[row.moref])) is not None
                and set(volume.naas) & set(naas)
            ]

        return self._session.call(f"list the volumes of host {self._host}", read)

    def seen_by(self, naas: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Which of these LUNs each host of vCenter sees, by the host's name; hosts with none left out."""
        pages = self._session.page_objects

        def read(content: Any) -> dict[str, tuple[str, ...]]:
            rows = read_all(content, {vim.HostSystem: ("name", _LUNS)}, pages)
            names = names_of({row.moref: str(row.get("name", "")) for row in rows})
            seen = {
                names[row.moref]: tuple(
                    sorted({str(lun.canonicalName) for lun in row.get(_LUNS) or ()} & set(naas))
                )
                for row in rows
            }
            return {host: luns for host, luns in seen.items() if luns}

        return self._session.call("say which hosts see which LUNs", read)

    def let_go(self, naas: Collection[str]) -> None:
        """Unmount the volumes on these LUNs and switch the LUNs off, so that they can be withdrawn.

        VCenterOperationError while a VM is still on one of them; nothing of that one is touched.
        """
        for volume in self.volumes(naas):
            self._call(
                f"unmount datastore {volume.datastore} from host {self._host}",
                partial(_unmount, uuid=volume.uuid),
            )
        for uuid in self._scsi_uuids(naas):
            self._call(
                f"detach a LUN from host {self._host}",
                partial(_detach, uuid=uuid),
            )

    def forget(self, naas: Sequence[str]) -> None:
        """After the storage withdrew them and a rescan: forget that these LUNs were switched off."""
        for naa in naas:
            self._call(
                f"forget LUN {naa} on host {self._host}",
                partial(_forget, naa=naa),
            )

    def _configure_discovery(
        self, change: Callable[[Any, str, set[tuple[str, int]]], None]
    ) -> None:
        """Run `change(storage system, adapter, portals configured)`."""
        pages = self._session.page_objects

        def work(content: Any) -> None:
            paths = {vim.HostSystem: ("name", _STORAGE, _ADAPTERS)}
            row = find_host(read_all(content, paths, pages), self._host)
            adapter = _software_adapter(row.get(_ADAPTERS))
            if adapter is None:
                raise VCenterOperationError(
                    f"Host {self._host} has no software iSCSI adapter; switch it on in vCenter."
                )
            known = {(str(each.address), each.port) for each in adapter.configuredSendTarget or ()}
            change(row.get(_STORAGE), adapter.device, known)

        self._session.call(f"configure iSCSI discovery on host {self._host}", work)

    def _scsi_uuids(self, naas: Collection[str]) -> list[str]:
        """Of the LUNs among these that the host sees and that are on."""
        pages = self._session.page_objects

        def read(content: Any) -> list[str]:
            rows = read_all(content, {vim.HostSystem: ("name", _LUNS)}, pages)
            return [
                str(lun.uuid)
                for lun in find_host(rows, self._host).get(_LUNS) or ()
                if str(lun.canonicalName) in naas and "off" not in lun.operationalState
            ]

        return self._session.call(f"list the LUNs of host {self._host}", read)

    def _call(self, what: str, work: Callable[[Any, Any], _T]) -> _T:
        pages = self._session.page_objects

        def run(content: Any) -> _T:
            paths = {vim.HostSystem: ("name", _STORAGE, _DATASTORES)}
            row = find_host(read_all(content, paths, pages), self._host)
            storage, datastores = row.get(_STORAGE), row.get(_DATASTORES)
            if storage is None or datastores is None:
                raise VCenterOperationError(
                    f"Host {self._host} is not connected; see to it in vCenter and try again."
                )
            return work(storage, datastores)

        return self._session.call(what, run)


def _send_targets(portals: Collection[tuple[str, int]]) -> list[Any]:
    return [
        vim.host.InternetScsiHba.SendTarget(address=address, port=port)
        for address, port in sorted(portals)
    ]


def _software_adapter(adapters: Any) -> Any | None:
    for adapter in adapters or ():
        if isinstance(adapter, vim.host.InternetScsiHba) and adapter.isSoftwareBased:
            return adapter
    return None


def _copy(volume: Any, naas: Collection[str]) -> VolumeCopy:
    status = volume.resolveStatus
    ours = [extent for extent in volume.extent if str(extent.device.diskName) in naas]
    ordinals = {int(extent.ordinal) for extent in ours}
    obstacle = ""
    if status.incompleteExtents or ordinals != {int(extent.ordinal) for extent in volume.extent}:
        obstacle = "some of its extents are missing"
    elif len(ordinals) < len(ours):
        obstacle = "there are several copies of one of its extents"
    elif not status.resolvable and not status.multipleCopies:
        obstacle = "the host says that it cannot be resolved"
    return VolumeCopy(
        label=str(volume.vmfsLabel),
        naas=tuple(str(extent.device.diskName) for extent in ours),
        device_paths=tuple(str(extent.devicePath) for extent in ours),
        obstacle=obstacle,
    )


def _mounted_by(row: Row) -> set[str]:
    return {
        str(mount.key._moId)
        for mount in row.get("host") or ()
        if mount.mountInfo.mounted is not False
    }


def _volume(row: Row, name: str) -> MountedVolume | None:
    vmfs = getattr(row.get("info"), "vmfs", None)
    if vmfs is None:
        return None
    return MountedVolume(name, str(vmfs.uuid), tuple(str(part.diskName) for part in vmfs.extent))


def _unmount(storage: Any, _: Any, uuid: str) -> None:
    try:
        storage.UnmountVmfsVolume(uuid)
    except vim.fault.NotFound:
        return  # it is not mounted, which was wanted


def _detach(storage: Any, _: Any, uuid: str) -> None:
    try:
        storage.DetachScsiLun(uuid)
    except (vim.fault.NotFound, vim.fault.InvalidState):
        return  # it is gone or off


def _forget(storage: Any, _: Any, naa: str) -> None:
    try:
        storage.DeleteScsiLunState(naa)
    except vim.fault.NotFound:
        return  # nothing was remembered
