"""Clusters and their root resource pools."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.objects.vm_import import import_vapp

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.host import HostSystem
    from atoll_lab.vcenter.site import Site


class ResourcePool(Managed):
    """A cluster's root resource pool."""

    kind = vim.ResourcePool
    owner: "ClusterComputeResource"

    @exposes("name")
    def name(self) -> str:
        """Always the same, as in vCenter."""
        return "Resources"

    @exposes("owner")
    def owner_ref(self) -> Any:
        """The cluster."""
        return self.owner.ref

    @exposes("parent")
    def parent(self) -> Any:
        """The cluster."""
        return self.owner.ref

    @answers("ImportVApp")
    def import_vapp(self, call: Call, spec: Any, folder: Any = None, host: Any = None) -> Any:
        """Begin to import a VM."""
        return import_vapp(self, call, spec, folder, host)

    @exposes("vm")
    def vms(self) -> list[Any]:
        """VMs of the cluster's hosts."""
        hosts = {host.moid for host in self.owner.members}
        return [vm.ref for vm in self.site.vms() if vm.state.host in hosts]


class ClusterComputeResource(Managed):
    """Hosts that belong together."""

    kind = vim.ClusterComputeResource

    def __init__(
        self, site: "Site", moid: str, name: str, folder: Managed, pool: ResourcePool
    ) -> None:
        super().__init__(site, moid)
        self._name = name
        self._folder = folder
        self.pool = pool
        self.pool.owner = self
        self.members: list[HostSystem] = []

    @property
    def display_name(self) -> str:
        """Its name."""
        return self._name

    def add(self, host: "HostSystem") -> None:
        """Take a host in."""
        self.members.append(host)

    def children(self) -> Iterable[Managed]:
        """Hosts and the pool."""
        return *self.members, self.pool

    @exposes("name")
    def name(self) -> str:
        """Its name."""
        return self._name

    @exposes("parent")
    def parent(self) -> Any:
        """The host folder."""
        return self._folder.ref

    @exposes("host")
    def hosts(self) -> list[Any]:
        """Its hosts."""
        return [host.ref for host in self.members]

    @exposes("resourcePool")
    def resource_pool(self) -> Any:
        """Its root pool."""
        return self.pool.ref

    @exposes("datastore")
    def datastores(self) -> list[Any]:
        """What any of its hosts has mounted."""
        hosts = {host.moid for host in self.members}
        return [
            datastore.ref
            for datastore in self.site.datastores()
            if hosts & {host.moid for host in datastore.mounted_by()}
        ]
