"""An ESX host, and its datastore system."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.objects.storage_system import StorageSystem
from atoll_lab.vcenter.state import HostState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site


class DatastoreSystem(Managed):
    """A host's datastores, and the copies of volumes it will not mount by itself."""

    kind = vim.host.DatastoreSystem

    def __init__(self, site: "Site", host: "HostSystem") -> None:
        super().__init__(site, f"datastoreSystem-{host.moid.rpartition('-')[2]}")
        self._host = host

    @property
    def display_name(self) -> str:
        """Its host's name."""
        return self._host.state.name

    @exposes("datastore")
    def datastores(self) -> list[Any]:
        """What the host has mounted."""
        return self._host.datastores()

    @answers("QueryUnresolvedVmfsVolumes")
    def unresolved(self, call: Call) -> list[Any]:
        """Copies of volumes the host sees."""
        return self._host.storage.unresolved_volumes()

    @answers("ResignatureUnresolvedVmfsVolume_Task")
    def resignature(self, call: Call, resolutionSpec: Any) -> Any:
        """Make a copy a volume of its own and mount it; the result names the datastore."""
        storage = self._host.storage

        def work() -> Any:
            uuid = storage.resignature(resolutionSpec.extentDevicePath)
            storage.rescan_vmfs(call)
            for datastore in self.site.datastores():
                if datastore.state.uuid == uuid:
                    return vim.host.ResignatureRescanResult(rescan=[], result=datastore.ref)
            raise vim.fault.HostConfigFault(msg="The volume was resignatured and not mounted")

        return self.site.tasks.start(
            self, "ResignatureUnresolvedVmfsVolume_Task", call.session.user or "", work
        )


class HostSystem(Managed):
    """An ESX host."""

    kind = vim.HostSystem

    def __init__(self, site: "Site", state: HostState) -> None:
        super().__init__(site, state.moid)
        self.state = state
        self.storage = StorageSystem(site, state)
        self.datastore_system = DatastoreSystem(site, self)

    @property
    def display_name(self) -> str:
        """Its name."""
        return self.state.name

    def stamp(self) -> Any:
        """Its record, and what is stored beside it."""
        return repr(self.state), tuple(ref._moId for ref in self.datastores()), self._vm_ids()

    def children(self) -> Iterable[Managed]:
        """Nothing lies below a host; its VMs are in the VM folder."""
        return ()

    @exposes("name")
    def name(self) -> str:
        """Its name."""
        return self.state.name

    @exposes("parent")
    def parent(self) -> Any:
        """Its cluster."""
        return self.site.layout.clusters[self.state.cluster].ref

    @exposes("runtime")
    def runtime(self) -> Any:
        """Connected and on."""
        return vim.host.RuntimeInfo(
            connectionState="connected" if self.state.connected else "notResponding",
            powerState="poweredOn" if self.state.connected else "unknown",
            inMaintenanceMode=False,
        )

    @exposes("config")
    def config(self) -> Any:
        """The parts of its configuration that storage needs."""
        return vim.host.ConfigInfo(
            host=self.ref,
            product=vim.AboutInfo(
                name="VMware ESXi",
                fullName="Atoll lab ESX simulator 8.0.3",
                vendor="Atoll",
                version="8.0.3",
                build="1",
                osType="vmnix-x86",
                productLineId="embeddedEsx",
                apiType="HostAgent",
                apiVersion="8.0.3.0",
            ),
            storageDevice=self.storage.device_info(),
        )

    @exposes("configManager")
    def config_manager(self) -> Any:
        """Its managers."""
        return vim.host.ConfigManager(
            storageSystem=self.storage.ref, datastoreSystem=self.datastore_system.ref
        )

    @exposes("datastore")
    def datastores(self) -> list[Any]:
        """What it has mounted."""
        return [
            datastore.ref
            for datastore in self.site.datastores()
            if any(host.moid == self.moid for host in datastore.mounted_by())
        ]

    @exposes("network")
    def networks(self) -> list[Any]:
        """The network that every host has."""
        return [self.site.layout.network.ref]

    @exposes("vm")
    def vms(self) -> list[Any]:
        """VMs registered on it."""
        return [vim.VirtualMachine(moid) for moid in self._vm_ids()]

    def _vm_ids(self) -> tuple[str, ...]:
        return tuple(vm.moid for vm in self.site.state.vms if vm.host == self.moid)
