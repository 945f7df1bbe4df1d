"""ESX hosts: found by name, and asked to look for LUNs and volumes anew."""

from collections.abc import Iterable
from typing import Any

from pyVmomi import vim

from atoll.model.errors import VCenterOperationError
from atoll.vsphere.collector import Row, read_all
from atoll.vsphere.inventory import names_of

_STORAGE = "configManager.storageSystem"


def rescan(content: Any, host: str, page_objects: int) -> None:
    """Let a host find what is presented to it now, then mount the volumes that are its own.

    `host` is a name as in the inventory. Repeating it is harmless. Raises
    VCenterOperationError when vCenter knows no such host.
    """
    rows = read_all(content, {vim.HostSystem: ("name", _STORAGE)}, page_objects)
    storage = find_host(rows, host).get(_STORAGE)
    if storage is None:
        raise VCenterOperationError(f"Host {host} is not connected; see to it in vCenter.")
    storage.RescanAllHba()
    storage.RescanVmfs()


def find_host(rows: Iterable[Row], name: str) -> Row:
    """Of rows that were read, with their names, that of a host by its name in the inventory.

    VCenterOperationError when vCenter knows no such host.
    """
    hosts = [row for row in rows if issubclass(row.kind, vim.HostSystem)]
    names = names_of({row.moref: str(row.get("name", "")) for row in hosts})
    for row in hosts:
        if names[row.moref] == name:
            return row
    raise VCenterOperationError(
        f"vCenter manages no host called {name}; it knows "
        f"{', '.join(sorted(names.values())) or 'none'}."
    )
