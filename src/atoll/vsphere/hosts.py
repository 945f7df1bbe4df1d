"""What Atoll asks of an ESX host: look for LUNs and volumes anew."""

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
    storage = _storage_system(content, host, page_objects)
    storage.RescanAllHba()
    storage.RescanVmfs()


def _storage_system(content: Any, host: str, page_objects: int) -> Any:
    rows: list[Row] = read_all(content, {vim.HostSystem: ("name", _STORAGE)}, page_objects)
    names = names_of({row.moref: str(row.get("name", "")) for row in rows})
    for row in rows:
        if names[row.moref] == host and row.get(_STORAGE) is not None:
            return row.get(_STORAGE)
    raise VCenterOperationError(
        f"vCenter manages no host called {host}, or it is not connected; "
        f"it knows {', '.join(sorted(names.values())) or 'none'}."
    )
