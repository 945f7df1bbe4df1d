"""Guests' own addresses, as VMware Tools tells them to vCenter."""

from collections.abc import Mapping
from typing import Any

from pyVmomi import vim

from atoll.vsphere.collector import read_all

_PATH = "guest.ipAddress"


def guest_addresses(content: Any, page_objects: int) -> Mapping[str, str]:
    """Each VM's primary address, IPv4 or IPv6, by moref; those that tell none are left out."""
    rows = read_all(content, {vim.VirtualMachine: (_PATH,)}, page_objects)
    return {row.moref: str(address) for row in rows if (address := row.get(_PATH))}
