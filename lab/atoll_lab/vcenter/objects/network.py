"""The one standard network, which every host has."""

from typing import Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Managed, exposes

NETWORK, NETWORK_NAME = "network-9", "VM Network"


class Network(Managed):
    """A port group of the same name on every host."""

    kind = vim.Network

    @property
    def display_name(self) -> str:
        """Its name."""
        return NETWORK_NAME

    @exposes("name")
    def name(self) -> str:
        """Its name."""
        return NETWORK_NAME

    @exposes("parent")
    def parent(self) -> Any:
        """The network folder."""
        return self.site.layout.networks.ref

    @exposes("host")
    def hosts(self) -> list[Any]:
        """Every host."""
        return [host.ref for host in self.site.hosts()]
