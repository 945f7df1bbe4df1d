"""VMs that are no workloads: what vSphere and its add-ons keep for themselves."""

import re

_CLUSTER_SERVICE_NAME = re.compile(
    r"^vCLS(?: \(\d+\)|-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$"
)
MANAGER = "org.atoll.backup"
"""The extension key of `config.managedBy` of the island's placeholder VMs."""
_AGENT_MANAGER = "com.vmware.vim.eam"
_SITE_RECOVERY = "com.vmware.vcDr"
_SITE_RECOVERY_SUFFIX = "-phVm"


def skip_reason(name: str, manager: str | None, disks: int) -> str | None:
    """Why a VM is left out of the inventory, None for one that counts.

    `manager` is the extension key of `config.managedBy`. A VM that only has
    such a name but disks of its own is somebody's, and counts.
    """
    if manager == _AGENT_MANAGER or _CLUSTER_SERVICE_NAME.match(name):
        return "vSphere's own agent or cluster service (vCLS), made anew by vCenter when missing"
    if manager == MANAGER:
        return "a placeholder of Atoll's island"
    managed_by_recovery = manager is not None and manager.startswith(_SITE_RECOVERY)
    if disks == 0 and (managed_by_recovery or name.endswith(_SITE_RECOVERY_SUFFIX)):
        return "a placeholder without disks, kept by Site Recovery Manager"
    return None
