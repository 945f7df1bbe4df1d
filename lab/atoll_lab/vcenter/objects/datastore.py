"""A datastore: a VMFS volume on LUNs, or on a host's own disk."""

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.state import DatastoreState, HostState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

_MAX_FILE_BYTES = 64 << 40


class Datastore(Managed):
    """A VMFS datastore."""

    kind = vim.Datastore

    def __init__(self, site: "Site", state: DatastoreState) -> None:
        super().__init__(site, state.moid)
        self.state = state

    @property
    def display_name(self) -> str:
        """Its name."""
        return self.state.name

    def mounted_by(self) -> list[HostState]:
        """Hosts that have it mounted."""
        return [
            host
            for host in self.site.state.hosts
            if self.state.uuid in host.mounts or self.state.local_to == host.moid
        ]

    def reachable_from(self, host_moid: str) -> bool:
        """Whether a host has it mounted and sees all its extents."""
        return any(host.moid == host_moid and self._accessible(host) for host in self.mounted_by())

    def path(self, inside: str) -> str:
        """`[name] inside`."""
        return f"[{self.state.name}] {inside}"

    @exposes("name")
    def name(self) -> str:
        """Its name."""
        return self.state.name

    @exposes("parent")
    def parent(self) -> Any:
        """The datastore folder."""
        return self.site.layout.datastores.ref

    @exposes("info")
    def info(self) -> Any:
        """The volume and its extents."""
        state = self.state
        return vim.host.VmfsDatastoreInfo(
            name=state.name,
            url=self._url(),
            freeSpace=state.size_bytes // 2,
            maxFileSize=_MAX_FILE_BYTES,
            maxMemoryFileSize=_MAX_FILE_BYTES,
            maxPhysicalRDMFileSize=_MAX_FILE_BYTES,
            maxVirtualRDMFileSize=_MAX_FILE_BYTES,
            vmfs=vim.host.VmfsVolume(
                type="VMFS",
                name=state.name,
                capacity=state.size_bytes,
                blockSizeMb=1,
                maxBlocks=63963136,
                majorVersion=state.major_version,
                version=f"{state.major_version}.82",
                uuid=state.uuid,
                extent=[
                    vim.host.ScsiDisk.Partition(diskName=naa, partition=1) for naa in state.extents
                ],
                vmfsUpgradable=False,
                local=state.local_to is not None,
            ),
        )

    @exposes("summary")
    def summary(self) -> Any:
        """Capacity and access."""
        hosts = self.mounted_by()
        return vim.Datastore.Summary(
            datastore=self.ref,
            name=self.state.name,
            url=self._url(),
            capacity=self.state.size_bytes,
            freeSpace=self.state.size_bytes // 2,
            accessible=any(self._accessible(host) for host in hosts),
            multipleHostAccess=len(hosts) > 1,
            type="VMFS",
            maintenanceMode="normal",
        )

    @exposes("host")
    def hosts(self) -> list[Any]:
        """Who has it mounted, and how."""
        return [
            vim.Datastore.HostMount(
                key=vim.HostSystem(host.moid),
                mountInfo=vim.host.MountInfo(
                    path=f"/vmfs/volumes/{self.state.uuid}",
                    accessMode="readWrite",
                    mounted=True,
                    accessible=self._accessible(host),
                ),
            )
            for host in self.mounted_by()
        ]

    @exposes("vm")
    def vms(self) -> list[Any]:
        """VMs with a file on it."""
        return [vm.ref for vm in self.site.vms() if self.moid in vm.datastore_ids()]

    @answers("RenameDatastore")
    def rename_datastore(self, call: Call, newName: str) -> None:
        """Give it another name; DuplicateName."""
        self.rename(newName)

    @answers("Rename_Task")
    def rename_task(self, call: Call, newName: str) -> Any:
        """The same as a task, as for every inventory object."""
        return self.site.tasks.start(
            self, "Rename_Task", call.session.user or "", lambda: self.rename(newName)
        )

    def rename(self, new_name: str) -> None:
        """Give it another name; the paths of all files on it follow."""
        with self.site.change():
            for other in self.site.datastores():
                if other is not self and other.state.name == new_name:
                    raise vim.fault.DuplicateName(
                        msg=f"The name '{new_name}' already exists.",
                        name=new_name,
                        object=other.ref,
                    )
            self.state.name = new_name

    def _accessible(self, host: HostState) -> bool:
        seen = {lun.naa for lun in host.luns}
        return self.state.local_to == host.moid or set(self.state.extents) <= seen

    def _url(self) -> str:
        return f"ds:///vmfs/volumes/{self.state.uuid}/"
