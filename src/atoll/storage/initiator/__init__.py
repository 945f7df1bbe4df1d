"""An iSCSI initiator in user space, libiscsi through ctypes: no kernel module, no device nodes."""

from atoll.storage.initiator.discovery import Target, discover, lun_numbers
from atoll.storage.initiator.errors import (
    ChapRefusedError,
    InitiatorRefusedError,
    IscsiError,
    ScsiCommandError,
    TargetUnprovenError,
    TargetUnreachableError,
    WrongLunError,
)
from atoll.storage.initiator.lun import IscsiLun
from atoll.storage.initiator.reader import IscsiReader
from atoll.storage.initiator.vital import Inquiry

__all__ = [
    "ChapRefusedError",
    "InitiatorRefusedError",
    "Inquiry",
    "IscsiError",
    "IscsiLun",
    "IscsiReader",
    "ScsiCommandError",
    "Target",
    "TargetUnprovenError",
    "TargetUnreachableError",
    "WrongLunError",
    "discover",
    "lun_numbers",
]
