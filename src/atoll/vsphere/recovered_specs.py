"""What recovered VMs are made of: the specifications that make, change and move them.

Source: vSphere Web Services API, VirtualMachineConfigSpec, VirtualMachineRelocateSpec. Not run
against the product.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from atoll.vsphere.collector import Row

MARK = "atoll.recovery"
"""The setting of a recovered VM that names its recovery: that of a site and no other's."""

VM_PATHS = (
    "name",
    "runtime.powerState",
    "config.files.vmPathName",
    "config.extraConfig",
    "config.hardware.device",
    "snapshot",
)

_Device = vim.vm.device
_Raw = _Device.VirtualDisk.RawDiskMappingVer1BackingInfo
_Flat = _Device.VirtualDisk.FlatVer2BackingInfo


@dataclass(frozen=True, slots=True)
class RecoveredDisk:
    """A disk of a VM: `path` is `[datastore] folder/x.vmdk`, `raw` of a raw device mapping."""

    key: int
    path: str
    raw: bool

    @property
    def datastore(self) -> str:
        """The datastore of its file."""
        return self.path.partition("]")[0].removeprefix("[")


@dataclass(frozen=True, slots=True)
class RecoveredVm:
    """A VM as vCenter has it now. `vmx` is `[datastore] folder/x.vmx`, `mark` its recovery's or empty."""

    moref: str
    name: str
    powered_on: bool
    vmx: str
    mark: str
    disks: tuple[RecoveredDisk, ...]
    has_snapshots: bool

    @property
    def datastores(self) -> set[str]:
        """The datastores of its files."""
        return {_datastore(self.vmx), *(disk.datastore for disk in self.disks)}


@dataclass(frozen=True, slots=True)
class Network:
    """What becomes of network cards: not connected at power on, as they were, or on others by name.

    `mapped` has standard networks of the host by those that the cards name; cards that it does not
    name are not connected. It counts only where they are `connected`.
    """

    connected: bool
    mapped: Mapping[str, str]


def recovered_vm(row: Row) -> RecoveredVm:
    """A VM read by VM_PATHS."""
    marks = {str(each.key): str(each.value) for each in row.get("config.extraConfig") or ()}
    return RecoveredVm(
        moref=row.moref,
        name=str(row.get("name", row.moref)),
        powered_on=row.get("runtime.powerState") == "poweredOn",
        vmx=str(row.get("config.files.vmPathName") or ""),
        mark=marks.get(MARK, ""),
        disks=tuple(
            RecoveredDisk(
                device.key,
                str(getattr(device.backing, "fileName", "") or ""),
                isinstance(device.backing, _Raw),
            )
            for device in row.get("config.hardware.device") or ()
            if isinstance(device, _Device.VirtualDisk)
        ),
        has_snapshots=row.get("snapshot") is not None,
    )


def on_luns(config: Any, naas: Sequence[str], mark: str) -> Any:
    """A spec of a VM to be made with each of its disks, in their order, on a LUN by itself.

    Virtual-mode mappings: what the guest writes goes to the LUN, and storage vMotion makes VMDKs of
    them. The mapping files lie with the VM's own.
    """
    disks = [
        change.device
        for change in config.deviceChange
        if isinstance(change.device, _Device.VirtualDisk)
    ]
    device: Any
    for device, naa in zip(disks, naas, strict=True):
        device.backing = _Raw(
            fileName=device.backing.fileName,
            deviceName=f"/vmfs/devices/disks/{naa}",
            compatibilityMode="virtualMode",
            diskMode="persistent",
        )
    config.extraConfig = [*config.extraConfig, *marks(mark)]
    return config


def adopted(
    devices: Sequence[Any], paths: Mapping[int, str], network: Network, mark: str, *, keep: bool
) -> Any:
    """What a VM registered from its copied VMX has to become before it may be powered on.

    `paths` are those of the copied disks by device key. A VMX names disks on other datastores by
    these volumes' UUIDs, which are production's: such a disk is taken out, and the copy put in.
    `keep` the VM's UUID and the addresses of its cards, or have new ones.
    """
    spec = vim.vm.ConfigSpec(
        extraConfig=[
            *marks(mark),
            # So that nobody has to be asked at power on.
            vim.option.OptionValue(key="uuid.action", value="keep" if keep else "create"),
        ],
        deviceChange=list(_cards(devices, network)),
    )
    for device in devices:
        if not isinstance(device, _Device.VirtualDisk):
            continue
        path = paths.get(device.key)
        if path == getattr(device.backing, "fileName", ""):
            continue
        # Of a disk that was not captured nothing is put in its place.
        spec.deviceChange.append(
            _Device.VirtualDeviceSpec(
                operation="remove", device=_Device.VirtualDisk(key=device.key, capacityInKB=0)
            )
        )
        if path is not None:
            spec.deviceChange.append(_attached(device, path))
    return spec


def moved(datastore: Any, disks: Sequence[RecoveredDisk]) -> Any:
    """A spec that moves a VM with all its disks to a datastore; mappings become VMDKs there."""
    return vim.vm.RelocateSpec(
        datastore=datastore,
        disk=[
            vim.vm.RelocateSpec.DiskLocator(
                diskId=disk.key,
                datastore=datastore,
                diskBackingInfo=_Flat(fileName="", diskMode="persistent", thinProvisioned=True),
            )
            for disk in disks
        ],
    )


def marks(mark: str) -> list[Any]:
    """The setting that says whose VM it is; an empty one takes it away."""
    return [vim.option.OptionValue(key=MARK, value=mark)]


def _cards(devices: Sequence[Any], network: Network) -> Iterator[Any]:
    for device in devices:
        if not isinstance(device, _Device.VirtualEthernetCard):
            continue
        name = getattr(device.backing, "deviceName", "")
        if network.connected and not network.mapped:
            continue
        if network.connected and name in network.mapped:
            device.backing = _Device.VirtualEthernetCard.NetworkBackingInfo(
                deviceName=network.mapped[name]
            )
        else:
            device.connectable = _Device.VirtualDevice.ConnectInfo(
                startConnected=False, allowGuestControl=True, connected=False
            )
        yield _Device.VirtualDeviceSpec(operation="edit", device=device)


def _attached(device: Any, path: str) -> Any:
    return _Device.VirtualDeviceSpec(
        operation="add",
        device=_Device.VirtualDisk(
            key=-device.key,
            controllerKey=device.controllerKey,
            unitNumber=device.unitNumber,
            capacityInKB=device.capacityInKB,
            backing=_Flat(
                fileName=path, diskMode=getattr(device.backing, "diskMode", None) or "persistent"
            ),
        ),
    )


def _datastore(path: str) -> str:
    return path.partition("]")[0].removeprefix("[")
