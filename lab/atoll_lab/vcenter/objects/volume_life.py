"""How a host lets go of volumes and LUNs, and takes copies for volumes of their own.

After the vSphere Web Services API: HostStorageSystem.UnmountVmfsVolume, DetachScsiLun,
DeleteScsiLunState; HostDatastoreSystem.ResignatureUnresolvedVmfsVolume_Task.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll.model.errors import StorageUnreachableError
from atoll_lab.vcenter.objects.base import Call, Managed, answers
from atoll_lab.vcenter.state import HostState, LunState
from atoll_lab.vcenter.vmfs_header import new_signature, resign

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site


def scsi_uuid(lun: LunState) -> str:
    """What `ScsiLun.uuid` is: the LUN's number, name and model, as ESX puts them together."""
    model = lun.product.encode().hex()[:12]
    return f"02000{lun.number:03x}00{lun.naa.removeprefix('naa.')}{model}"


class VolumeLife(Managed):
    """The part of a storage system that unmounts and detaches."""

    def __init__(self, site: "Site", moid: str, host: HostState) -> None:
        super().__init__(site, moid)
        self._host = host

    @answers("UnmountVmfsVolume")
    def unmount(self, call: Call, vmfsUuid: str) -> None:
        """Let go of a volume; NotFound when it is not mounted, ResourceInUse while a VM is on it."""
        with self.site.change():
            if vmfsUuid not in self._host.mounts:
                raise vim.fault.NotFound(msg=f"{self._host.name} has not mounted {vmfsUuid}")
            self._refuse_in_use(vmfsUuid)
            self._host.mounts.remove(vmfsUuid)
            self._host.unmounted.append(vmfsUuid)

    @answers("DetachScsiLun")
    def detach(self, call: Call, lunUuid: str) -> None:
        """Switch a LUN off; NotFound, InvalidState when it is off.

        ResourceInUse while a volume on it is mounted, or a VM has it as a disk.
        """
        with self.site.change():
            lun = self._lun(lunUuid)
            if lun.naa in self._host.detached:
                raise vim.fault.InvalidState(msg=f"{lun.naa} is detached already")
            for datastore in self.site.datastores():
                if lun.naa in datastore.state.extents and datastore.state.uuid in self._host.mounts:
                    raise vim.fault.ResourceInUse(
                        msg=f"{datastore.state.name} is mounted", type="ScsiLun", name=lun.naa
                    )
            for vm in self.site.vms():
                if vm.state.host == self._host.moid and any(
                    disk.lun == lun.naa for disk in vm.state.disks
                ):
                    raise vim.fault.ResourceInUse(
                        msg=f"VM {vm.state.name} has it as a disk", type="ScsiLun", name=lun.naa
                    )
            self._host.detached.append(lun.naa)

    @answers("AttachScsiLun")
    def attach(self, call: Call, lunUuid: str) -> None:
        """Switch a LUN on again."""
        with self.site.change():
            lun = self._lun(lunUuid)
            if lun.naa not in self._host.detached:
                raise vim.fault.InvalidState(msg=f"{lun.naa} is attached")
            self._host.detached.remove(lun.naa)

    @answers("DeleteScsiLunState")
    def delete_state(self, call: Call, lunCanonicalName: str) -> None:
        """Forget that a LUN, which is gone, was detached; NotFound when there is nothing to forget."""
        with self.site.change():
            if lunCanonicalName not in self._host.detached:
                raise vim.fault.NotFound(msg=f"{lunCanonicalName} is not detached")
            self._host.detached.remove(lunCanonicalName)

    def resignature(self, device_paths: Sequence[str]) -> Any:
        """Make the copy whose extents are at these paths a volume of its own; its new UUID.

        NotFound for a path without a copy, VmfsAmbiguousMount unless the paths are one whole
        copy, HostConfigFault when its LUNs cannot be written.
        """
        chosen = self._extents(device_paths)
        head = next(lun.volume for lun in chosen if lun.volume and lun.volume.ordinal == 0)
        signature = new_signature(head.label)
        for lun in chosen:
            self._resign(lun, signature)
        return signature.fs_uuid

    def _extents(self, device_paths: Sequence[str]) -> list[LunState]:
        with self.site.registry.reading():
            by_path = {f"/vmfs/devices/disks/{lun.naa}:1": lun for lun in self._host.luns}
            chosen = [by_path[path] for path in device_paths if path in by_path]
        copies = [
            lun
            for lun in chosen
            if lun.volume is not None and lun.naa != f"naa.{lun.volume.device_id}"
        ]
        if len(copies) < len(device_paths):
            raise vim.fault.NotFound(msg="There is no copy of a volume at one of the paths")
        volumes = {lun.volume.volume_id for lun in copies if lun.volume}
        ordinals = {lun.volume.ordinal for lun in copies if lun.volume}
        counts = {
            lun.volume.extent_count for lun in copies if lun.volume and not lun.volume.ordinal
        }
        if len(volumes) != 1 or len(ordinals) < len(copies) or counts != {len(copies)}:
            raise vim.fault.VmfsAmbiguousMount(msg="The paths are not the extents of one copy")
        return copies

    def _resign(self, lun: LunState, signature: Any) -> None:
        try:
            handle = self.site.fabric.open(lun.portal, lun.target, lun.number, self._host.iqn)
            try:
                resign(handle.read, handle.write, lun.naa, signature)
            finally:
                handle.close()
        except (StorageUnreachableError, ValueError) as error:
            raise vim.fault.HostConfigFault(
                msg=f"{lun.naa} cannot be resignatured: {error}"
            ) from error

    def _lun(self, uuid: str) -> LunState:
        for lun in self._host.luns:
            if scsi_uuid(lun) == uuid:
                return lun
        raise vim.fault.NotFound(msg=f"{self._host.name} sees no LUN {uuid}")

    def _refuse_in_use(self, uuid: str) -> None:
        for vm in self.site.vms():
            stores = {self.site.datastore(moid).state.uuid for moid in vm.datastore_ids()}
            if vm.state.host == self._host.moid and uuid in stores:
                raise vim.fault.ResourceInUse(
                    msg=f"VM {vm.state.name} is on it", type="Datastore", name=uuid
                )
