"""What changed in vCenter while somebody followed it."""

from dataclasses import dataclass
from enum import StrEnum


class ChangeKind(StrEnum):
    """What a change is about; `before` and `after` of the change are as the comment says."""

    VM_APPEARED = "vm-appeared"  # after: its host
    VM_GONE = "vm-gone"  # before: its host
    VM_RENAMED = "vm-renamed"  # names
    VM_MOVED_HOST = "vm-moved-host"  # host names
    VM_MOVED_DATASTORE = "vm-moved-datastore"  # names of all datastores with files of it
    VM_POWER = "vm-power"  # poweredOn, poweredOff, suspended
    VM_CONTACT = "vm-contact"  # vCenter's contact to it: connected, disconnected, inaccessible, …
    VM_DISKS = "vm-disks"  # files its disks write to
    VM_SNAPSHOT_APPEARED = "vm-snapshot-appeared"  # after: the VMware snapshot's name
    VM_SNAPSHOT_GONE = "vm-snapshot-gone"  # before: the VMware snapshot's name
    VM_TEMPLATE = "vm-template"  # template, vm
    HOST_APPEARED = "host-appeared"
    HOST_GONE = "host-gone"
    HOST_RENAMED = "host-renamed"  # names
    HOST_INITIATOR = "host-initiator"  # iSCSI names
    LUN_APPEARED = "lun-appeared"  # subject: the host that sees it; after: canonical name
    LUN_GONE = "lun-gone"  # subject: the host that saw it; before: canonical name
    DATASTORE_APPEARED = "datastore-appeared"  # after: its LUNs
    DATASTORE_GONE = "datastore-gone"  # before: its LUNs
    DATASTORE_RENAMED = "datastore-renamed"  # names
    DATASTORE_LUNS = "datastore-luns"  # canonical names of its LUNs, in order
    VCENTER_LOST = "vcenter-lost"  # after: why
    VCENTER_BACK = "vcenter-back"  # what changed meanwhile is told right after it


@dataclass(frozen=True, slots=True)
class InventoryChange:
    """One change. `number` counts changes of one follower from 1 on, without a gap.

    `subject` is the name of the VM, host or datastore, `moref` vCenter's id of
    it, `instance_uuid` a VM's. `at` is when Atoll heard of it, in seconds since
    the epoch; it changed before. Changes heard of together have no order in time.
    """

    number: int
    kind: ChangeKind
    subject: str
    moref: str
    at: float
    before: str = ""
    after: str = ""
    instance_uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes after the asked number, oldest first; `latest` is what to ask with next.

    With `missed` some were too old to be kept: read the inventory anew.
    """

    latest: int
    changes: tuple[InventoryChange, ...]
    missed: bool = False
