"""The one Datacenter."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Managed, exposes

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.layout import Layout
    from atoll_lab.vcenter.site import Site


class Datacenter(Managed):
    """Holds the four folders."""

    kind = vim.Datacenter

    def __init__(self, site: "Site", moid: str, name: str, layout: "Layout") -> None:
        super().__init__(site, moid)
        self._name = name
        self._layout = layout

    @property
    def display_name(self) -> str:
        """Its name."""
        return self._name

    def children(self) -> Iterable[Managed]:
        """The folders."""
        layout = self._layout
        return layout.vms, layout.hosts, layout.datastores, layout.networks

    @exposes("name")
    def name(self) -> str:
        """Its name."""
        return self._name

    @exposes("parent")
    def parent(self) -> Any:
        """The root folder."""
        return self._layout.root.ref

    @exposes("vmFolder")
    def vm_folder(self) -> Any:
        """Where VMs are."""
        return self._layout.vms.ref

    @exposes("hostFolder")
    def host_folder(self) -> Any:
        """Where clusters are."""
        return self._layout.hosts.ref

    @exposes("datastoreFolder")
    def datastore_folder(self) -> Any:
        """Where datastores are."""
        return self._layout.datastores.ref

    @exposes("networkFolder")
    def network_folder(self) -> Any:
        """Where networks are."""
        return self._layout.networks.ref

    @exposes("network")
    def networks(self) -> list[Any]:
        """The one network."""
        return [self._layout.network.ref]

    @exposes("datastore")
    def datastore(self) -> list[Any]:
        """All datastores."""
        return [datastore.ref for datastore in self.site.datastores()]
