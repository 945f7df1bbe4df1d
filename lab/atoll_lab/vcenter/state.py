"""What the simulator knows and keeps over a restart: plain records, one JSON file."""

import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

VM_FOLDER = "group-v3"
"""The id of the datacenter's own folder for VMs."""


@dataclass
class VolumeState:
    """One VMFS extent as its LVM header tells it.

    `device_id` is the NAA the header was written for (hex digits, no prefix):
    where it is not the LUN's own the volume is a copy and is not mounted.
    `label` and `uuid` are known for the head extent (ordinal 0) only.
    """

    volume_id: str
    device_id: str
    ordinal: int
    extent_count: int
    size_bytes: int
    major_version: int
    label: str = ""
    uuid: str = ""


@dataclass
class LunState:
    """A LUN as a host saw it at its last rescan."""

    naa: str
    serial: str
    vendor: str
    product: str
    size_bytes: int
    portal: str
    target: str
    number: int
    volume: VolumeState | None = None


@dataclass
class HostState:
    """An ESX host. `mounts` are the VMFS UUIDs of shared volumes it has mounted.

    `unmounted` are UUIDs that it was told to leave alone, `detached` the names of LUNs that it
    was told to switch off; both outlive a rescan.
    """

    moid: str
    name: str
    iqn: str
    cluster: str
    portals: list[str] = field(default_factory=list)
    luns: list[LunState] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    connected: bool = True
    unmounted: list[str] = field(default_factory=list)
    detached: list[str] = field(default_factory=list)


@dataclass
class DatastoreState:
    """A VMFS datastore. `local_to` is the host's id when it lies on a host's own disk."""

    moid: str
    name: str
    uuid: str
    extents: list[str]
    size_bytes: int
    major_version: int = 6
    local_to: str | None = None


@dataclass
class DiskState:
    """A virtual disk; `datastore` is an id, `path` is inside it. `kind` is `flat` or `rdm`.

    `lun` is the LUN (`naa.…`) of an `rdm`, which is in `compatibility` mode. An imported disk has
    its `controller`, a device key, its `unit` there, and `image`, the name of the file with its
    content in the VM's directory among the simulator's files.
    """

    key: int
    label: str
    path: str
    size_bytes: int
    datastore: str
    mode: str = "persistent"
    kind: str = "flat"
    sharing: str = "sharingNone"
    compatibility: str = "physicalMode"
    lun: str = ""
    controller: int = 0
    unit: int = 0
    image: str = ""

    @property
    def left_out(self) -> bool:
        """Whether VMware snapshots leave it out."""
        physical = self.kind == "rdm" and self.compatibility == "physicalMode"
        return physical or self.mode.startswith("independent")


@dataclass
class NicState:
    """A network card and whether it would be connected at power on."""

    key: int
    label: str
    mac: str
    network: str
    start_connected: bool = True
    kind: str = "VirtualVmxnet3"
    address_type: str = "manual"


@dataclass
class ControllerState:
    """A disk controller of an imported VM; `kind` is the name of its type in the API."""

    key: int
    kind: str
    bus: int
    sharing: str = "noSharing"


@dataclass
class SnapshotState:
    """A VMware snapshot; `parent` is the id of the one before it."""

    moid: str
    name: str
    description: str
    created_at: float
    quiesced: bool
    parent: str | None


@dataclass
class ToolsState:
    """VMware Tools in a VM, and what of quiescing goes wrong there.

    `running` is `guest.toolsRunningStatus`. A guest that does not `quiesce`
    gets a plain snapshot without a word, as with Tools that do not answer.
    `guestinfo` is what it has set for vCenter to read, `address` its IP address.
    """

    running: str = "guestToolsRunning"
    quiesces: bool = True
    guestinfo: dict[str, str] = field(default_factory=dict)
    address: str = ""


@dataclass
class DeltaState:
    """Delta files that removed snapshots left behind.

    The next `leave` removals do. `noted` is whether vCenter then says that
    consolidation is needed; the next `refuse` consolidations fail.
    """

    left: int = 0
    leave: int = 0
    noted: bool = True
    refuse: int = 0


@dataclass
class VmState:
    """A registered VM. `manager` is the extension key of `config.managedBy`, `folder` an id.

    One that is `copied` was registered from a file that lies elsewhere than when it was last powered on,
    and its host asks about that before it powers on. Without `controllers` it has one paravirtual SCSI
    controller. `importing` while a lease is held: such a VM is not there any more after a restart.
    `version` grows with each change of its configuration.
    """

    moid: str
    name: str
    instance_uuid: str
    bios_uuid: str
    host: str
    datastore: str
    vmx_path: str
    guest_os: str
    disks: list[DiskState]
    powered_on: bool = False
    template: bool = False
    manager: str | None = None
    snapshots: list[SnapshotState] = field(default_factory=list)
    current_snapshot: str | None = None
    suspended: bool = False
    fault_tolerance: str = "notConfigured"
    bus_sharing: str = "noSharing"
    tools: ToolsState = field(default_factory=ToolsState)
    deltas: DeltaState = field(default_factory=DeltaState)
    folder: str = VM_FOLDER
    cpus: int = 2
    memory_mb: int = 1024
    guest_id: str = "otherLinux64Guest"
    firmware: str = "bios"
    annotation: str = ""
    nics: list[NicState] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)
    controllers: list[ControllerState] = field(default_factory=list)
    importing: bool = False
    version: int = 1
    copied: bool = False


@dataclass
class FolderState:
    """A folder for VMs inside another one."""

    moid: str
    name: str
    parent: str


@dataclass
class RoleState:
    """A named set of privileges."""

    number: int
    name: str
    privileges: list[str]


@dataclass
class PermissionState:
    """What a user or group may do at an object, and below it."""

    entity: str
    principal: str
    group: bool
    role: int
    propagate: bool


@dataclass
class SiteState:
    """Everything that is kept. `shelf` holds unregistered VMs by their full path."""

    next_id: int = 100
    hosts: list[HostState] = field(default_factory=list)
    datastores: list[DatastoreState] = field(default_factory=list)
    vms: list[VmState] = field(default_factory=list)
    shelf: dict[str, VmState] = field(default_factory=dict)
    folders: list[FolderState] = field(default_factory=list)
    roles: list[RoleState] = field(default_factory=list)
    permissions: list[PermissionState] = field(default_factory=list)


def new_uuid() -> str:
    """A UUID for a VM."""
    return str(uuid.uuid4())


_ADAPTER = TypeAdapter(SiteState)


def load_state(path: Path) -> SiteState | None:
    """The state of an earlier run, None when there was none."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    return _ADAPTER.validate_json(raw)


def save_state(path: Path, state: SiteState) -> None:
    """Replace the file so that a kill at any instruction leaves the old or the new one."""
    write_atomically(path, _ADAPTER.dump_json(state, indent=1))


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write beside, flush, rename over, flush the directory."""
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
            file.flush()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
