"""What the property collector says of VMs, hosts and datastores, as small rows of our own.

A row keeps what Atoll needs and none of pyVmomi's objects: a VM's devices
alone are some forty of them. `Kind` ties each leaf path to the field it fills,
so that a bulk read and a single change end in the same row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pyVmomi import vim


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A virtual disk. `file` is `[datastore] path`, `datastore` the moref where it is told.

    `below` are the files below the one that is written to, nearest first. `rdm_mode`
    is None for a disk that is no raw mapping, empty where vSphere names no mode;
    `lun_uuid` is what the mapping calls its LUN.
    """

    key: int
    label: str
    file: str
    datastore: str | None
    size_bytes: int
    mode: str
    rdm_mode: str | None
    below: tuple[str, ...] = ()
    lun_uuid: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """The VMware snapshots of a VM by moref; `depth` is how many lie under its running state."""

    names: Mapping[str, str]
    depth: int


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """A VMFS volume; `extents` are canonical LUN names in the volume's order."""

    uuid: str
    extents: tuple[str, ...]
    local: bool


@dataclass(frozen=True, slots=True)
class LunFacts:
    """Canonical names of the disks a host sees; `local` are those inside it.

    `by_uuid` has them by `ScsiLun.uuid`, by which raw mappings name their LUN.
    """

    names: frozenset[str]
    local: frozenset[str]
    by_uuid: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmFacts:
    """A VM; hosts and datastores are morefs, empty text is unset."""

    moref: str
    name: str
    instance_uuid: str
    bios_uuid: str
    template: bool
    guest_os: str
    vmx: str
    disks: tuple[DiskFacts, ...]
    manager: str
    host: str
    power: str
    connection: str
    consolidation_needed: bool
    snapshots: SnapshotFacts
    datastores: tuple[str, ...]

    @property
    def in_contact(self) -> bool:
        """Whether vCenter's word about it is of now: its host answers and its files are there."""
        return self.connection in ("connected", "")


@dataclass(frozen=True, slots=True)
class HostFacts:
    """An ESX host; `iqn` is empty where it has no iSCSI adapter."""

    moref: str
    name: str
    iqn: str
    luns: LunFacts


@dataclass(frozen=True, slots=True)
class DatastoreFacts:
    """A datastore; `volume` is None for one that is no VMFS."""

    moref: str
    name: str
    volume: VolumeFacts | None
    type: str
    several_hosts: bool


Facts = VmFacts | HostFacts | DatastoreFacts
_R = TypeVar("_R", VmFacts, HostFacts, DatastoreFacts)


@dataclass(frozen=True, eq=False)
class Kind(Generic[_R]):
    """A kind of managed object: its pyVmomi type, our row, and which path fills which field.

    Each parser takes the path's value, or None when it is unset.
    """

    managed: Any
    row: type[_R]
    fields: Mapping[str, tuple[str, Callable[[Any], Any]]]

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaf paths to ask for."""
        return tuple(self.fields)

    def read(self, moref: str, values: Mapping[str, Any]) -> _R:
        """A row from the paths that are set."""
        filled = {name: parse(values.get(path)) for path, (name, parse) in self.fields.items()}
        return self.row(moref=moref, **filled)

    def change(self, row: _R, values: Mapping[str, Any]) -> _R:
        """The row with some of its paths as they are now, None for those that are unset."""
        changes: dict[str, Any] = {}
        for path, value in values.items():
            name, parse = self.fields[path]
            changes[name] = parse(value)
        return replace(row, **changes)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _moref(value: Any) -> str:
    return "" if value is None else str(value._moId)


def _manager(value: Any) -> str:
    return "" if value is None else str(value.extensionKey)


def _morefs(value: Any) -> tuple[str, ...]:
    return tuple(str(reference._moId) for reference in value or ())


def _disks(value: Any) -> tuple[DiskFacts, ...]:
    return tuple(
        _disk(device) for device in value or () if isinstance(device, vim.vm.device.VirtualDisk)
    )


def _disk(device: Any) -> DiskFacts:
    backing = device.backing
    reference = getattr(backing, "datastore", None)
    return DiskFacts(
        key=device.key,
        label=str(device.deviceInfo.label) if device.deviceInfo else f"disk {device.key}",
        file=str(getattr(backing, "fileName", None) or ""),
        datastore=None if reference is None else str(reference._moId),
        size_bytes=device.capacityInBytes or device.capacityInKB * 1024,
        mode=str(getattr(backing, "diskMode", None) or "persistent"),
        rdm_mode=_rdm_mode(backing),
        below=tuple(str(each.fileName or "") for each in _below(backing)),
        lun_uuid=str(getattr(backing, "lunUuid", None) or ""),
    )


def _rdm_mode(backing: Any) -> str | None:
    disk = vim.vm.device.VirtualDisk
    if isinstance(backing, disk.RawDiskMappingVer1BackingInfo):
        return str(backing.compatibilityMode or "")
    return "" if isinstance(backing, disk.RawDiskVer2BackingInfo) else None


def _below(backing: Any) -> Iterator[Any]:
    while (backing := getattr(backing, "parent", None)) is not None:
        yield backing


def snapshot_facts(value: Any) -> SnapshotFacts:
    """What `VirtualMachine.snapshot` says; it is unset where there is none."""
    if value is None:
        return SnapshotFacts({}, 0)
    current = value.currentSnapshot._moId if value.currentSnapshot is not None else None
    names: dict[str, str] = {}
    depth = 0
    for tree, level in _trees(value.rootSnapshotList, 1):
        names[str(tree.snapshot._moId)] = str(tree.name)
        if tree.snapshot._moId == current:
            depth = level
    return SnapshotFacts(names, depth)


def _trees(roots: Any, level: int) -> Iterator[tuple[Any, int]]:
    for tree in roots or ():
        yield tree, level
        yield from _trees(tree.childSnapshotList, level + 1)


def _volume(value: Any) -> VolumeFacts | None:
    vmfs = getattr(value, "vmfs", None)
    if vmfs is None:
        return None
    extents = tuple(str(extent.diskName) for extent in vmfs.extent)
    return VolumeFacts(uuid=str(vmfs.uuid), extents=extents, local=bool(vmfs.local))


def _initiator(value: Any) -> str:
    iscsi = [each for each in value or () if isinstance(each, vim.host.InternetScsiHba)]
    # The software adapter is the one Atoll can present LUNs to without touching hardware.
    iscsi.sort(key=lambda each: not each.isSoftwareBased)
    return _text(iscsi[0].iScsiName) if iscsi else ""


def _luns(value: Any) -> LunFacts:
    disks = [lun for lun in value or () if isinstance(lun, vim.host.ScsiDisk)]
    # HostScsiDisk.localDisk is there since API 6.0.
    return LunFacts(
        names=frozenset(str(lun.canonicalName) for lun in disks),
        local=frozenset(str(lun.canonicalName) for lun in disks if lun.localDisk),
        by_uuid={str(lun.uuid): str(lun.canonicalName) for lun in disks if lun.uuid},
    )


VM = Kind(
    vim.VirtualMachine,
    VmFacts,
    {
        "name": ("name", _text),
        "config.instanceUuid": ("instance_uuid", _text),
        "config.uuid": ("bios_uuid", _text),
        "config.template": ("template", bool),
        "config.guestFullName": ("guest_os", _text),
        "config.files.vmPathName": ("vmx", _text),
        "config.hardware.device": ("disks", _disks),
        "config.managedBy": ("manager", _manager),
        "runtime.host": ("host", _moref),
        "runtime.powerState": ("power", _text),
        "runtime.connectionState": ("connection", _text),
        "runtime.consolidationNeeded": ("consolidation_needed", bool),
        "snapshot": ("snapshots", snapshot_facts),
        "datastore": ("datastores", _morefs),
    },
)
HOST = Kind(
    vim.HostSystem,
    HostFacts,
    {
        "name": ("name", _text),
        "config.storageDevice.hostBusAdapter": ("iqn", _initiator),
        "config.storageDevice.scsiLun": ("luns", _luns),
    },
)
DATASTORE = Kind(
    vim.Datastore,
    DatastoreFacts,
    {
        "name": ("name", _text),
        "info": ("volume", _volume),
        "summary.type": ("type", _text),
        "summary.multipleHostAccess": ("several_hosts", bool),
    },
)
KINDS: tuple[Kind[Any], ...] = (VM, HOST, DATASTORE)


def kind_of(managed: Any) -> Kind[Any]:
    """The kind of a managed object or of its type; KeyError for one that is none of ours."""
    given = managed if isinstance(managed, type) else type(managed)
    for kind in KINDS:
        if issubclass(given, kind.managed):
            return kind
    raise KeyError(given.__name__)
