"""What placeholders are made of: read from vCenter, and the specifications that make and change them.

Source: vSphere Web Services API, VirtualMachineConfigSpec.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from atoll.vsphere.collector import Row
from atoll.vsphere.folders import FolderTree
from atoll.vsphere.placeholders import MANAGER

PLACEHOLDER_PATHS = (
    "name",
    "parent",
    "config.managedBy",
    "config.extraConfig",
    "config.hardware.device",
    "snapshot",
)
HARDWARE_PATHS = (
    "parent",
    "config.instanceUuid",
    "config.guestId",
    "config.firmware",
    "config.hardware.numCPU",
    "config.hardware.memoryMB",
    "config.hardware.device",
)

_KEY = "atoll.vm"
_RUN = "atoll.run"


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A placeholder. `vm` is the instance UUID of its production VM, `run` whose disks it shows.

    `disks` are paths, `[datastore] folder/x.vmdk`, by device key. `in_use` while it has a VMware
    snapshot, which is how backup software says that it reads it. `folder` is the id of the one it
    lies in.
    """

    moref: str
    name: str
    vm: str
    run: str
    disks: Mapping[int, str]
    in_use: bool
    folder: str


@dataclass(frozen=True, slots=True)
class ShownDisk:
    """What a placeholder's disk stands on: a VMDK, `[datastore] path`, or the LUN `naa` by itself."""

    size_bytes: int
    path: str = ""
    naa: str = ""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a production VM is made of, as vSphere tells it; for `put` alone to understand.

    `folders` lead to it, outermost first; that of another datacenter than the island's begins
    with the datacenter.
    """

    cpus: int
    memory_mb: int
    guest_id: str
    firmware: str
    devices: tuple[Any, ...]
    folders: tuple[str, ...]


def placeholder_of(row: Row) -> Placeholder | None:
    """A VM read by PLACEHOLDER_PATHS; None unless it is a placeholder."""
    manager = row.get("config.managedBy")
    if manager is None or manager.extensionKey != MANAGER:
        return None
    marks = {str(each.key): str(each.value) for each in row.get("config.extraConfig") or ()}
    return Placeholder(
        moref=row.moref,
        name=str(row.get("name", row.moref)),
        vm=marks.get(_KEY, ""),
        run=marks.get(_RUN, ""),
        disks={
            device.key: str(getattr(device.backing, "fileName", ""))
            for device in row.get("config.hardware.device") or ()
            if isinstance(device, vim.vm.device.VirtualDisk)
        },
        in_use=row.get("snapshot") is not None,
        folder=row.get("parent")._moId if row.get("parent") is not None else "",
    )


def hardware_of(row: Row, tree: FolderTree, home: str) -> Hardware:
    """A VM read by HARDWARE_PATHS; `home` is the id of the island's datacenter."""
    return Hardware(
        cpus=int(row.get("config.hardware.numCPU", 1)),
        memory_mb=int(row.get("config.hardware.memoryMB", 1024)),
        guest_id=str(row.get("config.guestId") or ""),
        firmware=str(row.get("config.firmware") or ""),
        devices=tuple(row.get("config.hardware.device") or ()),
        folders=tree.path(row.get("parent"), home),
    )


def new_spec(
    vm: str,
    name: str,
    run: str,
    hardware: Hardware,
    disks: Mapping[int, ShownDisk],
    home: str,
) -> Any:
    """A new placeholder, its own files on datastore `home`."""
    own = _own_files(vm, home)
    spec = _common(vm, name, run, hardware)
    spec.guestId = hardware.guest_id or None
    spec.files = vim.vm.FileInfo(vmPathName=f"{own}atoll-{vm}.vmx")
    spec.managedBy = vim.ext.ManagedByInfo(extensionKey=MANAGER, type="placeholder")
    if hardware.firmware:
        spec.firmware = hardware.firmware
    spec.deviceChange = [
        *(_addition(device) for device in hardware.devices if _is_controller(device)),
        *(_addition(_unplugged(device)) for device in hardware.devices if _is_card(device)),
        *_attached(hardware, disks, own),
    ]
    return spec


def changed_spec(
    known: Placeholder,
    name: str,
    run: str,
    hardware: Hardware,
    disks: Mapping[int, ShownDisk],
    home: str,
) -> Any:
    """The known placeholder as its VM is now, with other disks."""
    spec = _common(known.vm, name, run, hardware)
    spec.deviceChange = [
        *_removals(known, home),
        *_attached(hardware, disks, _own_files(known.vm, home)),
    ]
    return spec


def emptied_spec(known: Placeholder, home: str) -> Any:
    """The known placeholder without disks."""
    return vim.vm.ConfigSpec(
        deviceChange=list(_removals(known, home)), extraConfig=_marks(known.vm, "")
    )


def _removals(known: Placeholder, home: str) -> Iterator[Any]:
    """Take its disks away; of the files only mappings, which are its own, are deleted."""
    own = _own_files(known.vm, home)
    for key, path in known.disks.items():
        yield vim.vm.device.VirtualDeviceSpec(
            operation="remove",
            fileOperation="destroy" if path.startswith(own) else None,
            device=vim.vm.device.VirtualDisk(key=key, capacityInKB=0),
        )


def _own_files(vm: str, home: str) -> str:
    """How the paths of a placeholder's own files begin."""
    return f"[{home}] atoll-{vm}/"


def _common(vm: str, name: str, run: str, hardware: Hardware) -> Any:
    return vim.vm.ConfigSpec(
        name=name,
        numCPUs=hardware.cpus,
        memoryMB=hardware.memory_mb,
        annotation=f"Kept by Atoll for backup software: the disks of {name} as run {run} took them.",
        extraConfig=_marks(vm, run),
    )


def _marks(vm: str, run: str) -> list[Any]:
    return [
        vim.option.OptionValue(key=_KEY, value=vm),
        vim.option.OptionValue(key=_RUN, value=run),
    ]


def _attached(hardware: Hardware, disks: Mapping[int, ShownDisk], own: str) -> Iterator[Any]:
    """Disks at the controllers and units they have in production, over what the snapshot holds."""
    for device in hardware.devices:
        if not isinstance(device, vim.vm.device.VirtualDisk) or device.key not in disks:
            continue
        shown = disks[device.key]
        addition = _addition(
            vim.vm.device.VirtualDisk(
                key=device.key,
                controllerKey=device.controllerKey,
                unitNumber=device.unitNumber,
                capacityInKB=shown.size_bytes >> 10,
                capacityInBytes=shown.size_bytes,
                backing=_backing(shown, f"{own}disk-{device.key}.vmdk"),
            )
        )
        if shown.naa:
            addition.fileOperation = "create"
        yield addition


def _backing(shown: ShownDisk, mapping: str) -> Any:
    if not shown.naa:
        return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=shown.path, diskMode="persistent"
        )
    # Virtual, whatever production has: backup software reads a VMware snapshot, which a physical
    # mapping is left out of.
    return vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName=mapping,
        deviceName=f"/vmfs/devices/disks/{shown.naa}",
        compatibilityMode="virtualMode",
        diskMode="persistent",
    )


def _addition(device: Any) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=device)


def _is_controller(device: Any) -> bool:
    kinds = (
        vim.vm.device.VirtualSCSIController,
        vim.vm.device.VirtualSATAController,
        vim.vm.device.VirtualNVMEController,
    )
    return isinstance(device, kinds)


def _is_card(device: Any) -> bool:
    return isinstance(device, vim.vm.device.VirtualEthernetCard)


def _unplugged(card: Any) -> Any:
    """The same card, connected to nothing, now or ever."""
    return type(card)(
        key=card.key,
        macAddress=card.macAddress,
        addressType="manual",
        backing=card.backing,
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=False, connected=False
        ),
    )
