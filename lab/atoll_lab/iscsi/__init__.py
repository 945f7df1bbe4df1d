"""iSCSI for simulated ESX hosts and tests: Atoll's own initiator, and a writer to watch order with."""

from atoll.storage.initiator import (
    InitiatorRefusedError,
    Inquiry,
    IscsiError,
    IscsiLun,
    ScsiCommandError,
    Target,
    TargetUnreachableError,
    discover,
)

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
