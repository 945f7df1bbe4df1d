"""An iSCSI initiator in user space, for simulated ESX hosts and tests: libiscsi through ctypes."""

from atoll_lab.iscsi.errors import (
    InitiatorRefusedError,
    IscsiError,
    ScsiCommandError,
    TargetUnreachableError,
)
from atoll_lab.iscsi.initiator import Inquiry, IscsiLun, Target, discover

__all__ = [
    "InitiatorRefusedError",
    "Inquiry",
    "IscsiError",
    "IscsiLun",
    "ScsiCommandError",
    "Target",
    "TargetUnreachableError",
    "discover",
]
