"""The inventory tree from the root folder down, and the singletons beside it."""

from typing import TYPE_CHECKING

from atoll_lab.vcenter.objects.authorization import AuthorizationManager
from atoll_lab.vcenter.objects.compute_resource import ClusterComputeResource, ResourcePool
from atoll_lab.vcenter.objects.datacenter import Datacenter
from atoll_lab.vcenter.objects.folder import Folder
from atoll_lab.vcenter.objects.host import HostSystem
from atoll_lab.vcenter.objects.network import NETWORK, Network
from atoll_lab.vcenter.objects.property_collector import PropertyCollector
from atoll_lab.vcenter.objects.search_index import SearchIndex
from atoll_lab.vcenter.objects.service_instance import ServiceInstance
from atoll_lab.vcenter.objects.session_manager import SessionManager
from atoll_lab.vcenter.objects.views import ViewManager
from atoll_lab.vcenter.state import VM_FOLDER

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site


class Layout:
    """The fixed parts of the inventory: one datacenter, a production and an island cluster."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self.root = Folder(site, "group-d1", "Datacenters", None, lambda: [self.datacenter])
        self.datacenter = Datacenter(site, "datacenter-2", "lab", self)
        self.vms = Folder(
            site, VM_FOLDER, "vm", self.datacenter, lambda: site.content_of(VM_FOLDER)
        )
        self.hosts = Folder(
            site, "group-h4", "host", self.datacenter, lambda: [*self.clusters.values()]
        )
        self.datastores = Folder(site, "group-s5", "datastore", self.datacenter, site.datastores)
        self.networks = Folder(site, "group-n6", "network", self.datacenter, lambda: [self.network])
        self.network = Network(site, NETWORK)
        self.clusters = {
            name: ClusterComputeResource(
                site,
                f"domain-c{number}",
                name,
                self.hosts,
                ResourcePool(site, f"resgroup-{number}"),
            )
            for number, name in ((7, "production"), (8, "island"))
        }

    def add_host(self, host: HostSystem) -> None:
        """Put a host and its managers into its cluster."""
        for managed in (host, host.storage, host.datastore_system):
            self._site.registry.add(managed)
        self.clusters[host.state.cluster].add(host)


def lay_out(site: "Site") -> Layout:
    """Build the tree and register it."""
    layout = Layout(site)
    for managed in (
        layout.root,
        layout.datacenter,
        layout.vms,
        layout.hosts,
        layout.datastores,
        layout.networks,
        layout.network,
        *layout.clusters.values(),
        *(cluster.pool for cluster in layout.clusters.values()),
        ServiceInstance(site, "ServiceInstance"),
        SessionManager(site, "SessionManager"),
        PropertyCollector(site, "propertyCollector"),
        ViewManager(site, "ViewManager"),
        SearchIndex(site, "SearchIndex"),
        AuthorizationManager(site, "AuthorizationManager"),
    ):
        site.registry.add(managed)
    return layout
