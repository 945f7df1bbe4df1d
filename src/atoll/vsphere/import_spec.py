"""A VM's hardware as vSphere's API wants it: VirtualMachineImportSpec.

Devices that are made get negative keys, by which they refer to one another; the two IDE
controllers are there by themselves, with the keys 200 and 201. Source: vSphere Web Services API,
VirtualMachineConfigSpec, VirtualDevice.
"""

import re
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from atoll.model.hardware import Controller, HardDisk, NetworkCard, VmHardware
from atoll.vsphere.places import Place, WantedPlace

_Device = vim.vm.device
_CONTROLLERS = {
    "pvscsi": _Device.ParaVirtualSCSIController,
    "lsilogic": _Device.VirtualLsiLogicController,
    "lsisas1068": _Device.VirtualLsiLogicSASController,
    "buslogic": _Device.VirtualBusLogicController,
    "ahci": _Device.VirtualAHCIController,
    "nvme": _Device.VirtualNVMEController,
    "ide": _Device.VirtualIDEController,
}
_CARDS = {
    "vmxnet3": _Device.VirtualVmxnet3,
    "vmxnet2": _Device.VirtualVmxnet2,
    "vmxnet": _Device.VirtualVmxnet,
    "e1000": _Device.VirtualE1000,
    "e1000e": _Device.VirtualE1000e,
    "vlance": _Device.VirtualPCNet32,
}
_IDE_KEY = 200
_SHARING = {"none": "noSharing", "virtual": "virtualSharing", "physical": "physicalSharing"}
_ALIASES = {
    "longhorn": "winLonghornGuest",
    "longhorn-64": "winLonghorn64Guest",
    "winnt": "winNTGuest",
    "nt4": "winNTGuest",
    "linux": "otherLinuxGuest",
}


@dataclass(frozen=True, slots=True)
class ImportSpec:
    """What ImportVApp is given. `disks` are the disks by what a lease calls their devices.

    `told` are sentences about what will not be as it was.
    """

    spec: Any
    disks: dict[str, HardDisk]
    told: tuple[str, ...]


def import_spec(hardware: VmHardware, place: Place, wanted: WantedPlace) -> ImportSpec:
    """The spec for a VM at a place."""
    told: list[str] = []
    guest = guest_id(hardware.guest_os)
    if guest is None:
        guest = "otherGuest64" if hardware.guest_os.endswith("64") else "otherGuest"
        told.append(f"vSphere's API has no guest system {hardware.guest_os}; {guest} is set.")
    keys = _controller_keys(hardware)
    cards = [
        card
        for number, each in enumerate(hardware.cards)
        if (card := _card(number, each, place.networks, told)) is not None
    ]
    config = vim.vm.ConfigSpec(
        name=hardware.name,
        guestId=guest,
        numCPUs=hardware.cpus,
        memoryMB=hardware.memory_mb,
        firmware=hardware.firmware,
        annotation=hardware.annotation,
        # A datastore alone: vCenter makes a directory of the VM's name, and never in another's.
        files=vim.vm.FileInfo(vmPathName=f"[{wanted.datastore}]"),
        extraConfig=[
            vim.option.OptionValue(key=key, value=value) for key, value in hardware.extra.items()
        ],
        deviceChange=[
            *(
                _addition(_controller(each, keys[each.place]))
                for each in hardware.controllers
                if each.kind != "ide"
            ),
            *(_disk(number, disk, keys) for number, disk in enumerate(hardware.disks)),
            *map(_addition, cards),
        ],
    )
    if hardware.cores_per_socket > 1:
        config.numCoresPerSocket = hardware.cores_per_socket
    if hardware.secure_boot:
        config.bootOptions = vim.vm.BootOptions(efiSecureBootEnabled=True)
    if hardware.version is not None:
        config.version = f"vmx-{hardware.version:02}"
    return ImportSpec(
        spec=vim.vm.VmImportSpec(configSpec=config),
        disks={_lease_name(disk, hardware): disk for disk in hardware.disks},
        told=tuple(told),
    )


def guest_id(guest_os: str) -> str | None:
    """vSphere's name of a guest system that a VMX calls `debian12-64`; None for an unknown one."""
    alias = _ALIASES.get(guest_os.lower())
    if alias is not None:
        return alias
    return _GUESTS.get(_folded(guest_os))


def device_of(disk: HardDisk, kind: str) -> str:
    """What a lease calls a disk at a controller of that kind: `ParaVirtualSCSIController0:1`."""
    bus = re.sub(r"\D", "", disk.controller)
    return f"{_CONTROLLERS[kind].__name__.rpartition('.')[2]}{bus}:{disk.unit}"


def _folded(name: str) -> str:
    folded = re.sub(r"[^a-z0-9]", "", name.lower()).replace("guest", "")
    return folded.replace("server", "srv")


_GUESTS = {
    _folded(name): name for name in map(str, vim.vm.GuestOsDescriptor.GuestOsIdentifier.values)
}


def _lease_name(disk: HardDisk, hardware: VmHardware) -> str:
    kinds = {each.place: each.kind for each in hardware.controllers}
    return device_of(disk, kinds[disk.controller])


def _controller_keys(hardware: VmHardware) -> dict[str, int]:
    keys = {}
    for number, each in enumerate(hardware.controllers):
        keys[each.place] = _IDE_KEY + each.bus if each.kind == "ide" else -101 - number
    return keys


def _controller(controller: Controller, key: int) -> Any:
    kind: Any = _CONTROLLERS[controller.kind]
    own = {}
    if issubclass(kind, _Device.VirtualSCSIController):
        own["sharedBus"] = _SHARING[controller.sharing]
    return kind(key=key, busNumber=controller.bus, **own)


def _disk(number: int, disk: HardDisk, keys: dict[str, int]) -> Any:
    return _Device.VirtualDeviceSpec(
        operation="add",
        fileOperation="create",
        device=_Device.VirtualDisk(
            key=-201 - number,
            controllerKey=keys[disk.controller],
            unitNumber=disk.unit,
            capacityInKB=disk.size_bytes >> 10,
            capacityInBytes=disk.size_bytes,
            backing=_Device.VirtualDisk.FlatVer2BackingInfo(
                fileName=f"[{disk.datastore}]", diskMode=disk.mode, thinProvisioned=True
            ),
        ),
    )


def _card(number: int, card: NetworkCard, networks: frozenset[str], told: list[str]) -> Any | None:
    """The card, or the reason why there is none, told."""
    network = card.network
    connected = card.connected
    if network not in networks:
        if not networks:
            told.append(f"The host has no network; network card {number} is left out.")
            return None
        what = f"no network {network!r}" if network else "no network that the card names"
        told.append(f"The host has {what}; network card {number} is there and not connected.")
        network, connected = min(networks), False
    return _CARDS[card.kind](
        key=-301 - number,
        macAddress=card.mac,
        addressType="manual" if card.mac else "assigned",
        backing=_Device.VirtualEthernetCard.NetworkBackingInfo(deviceName=network),
        connectable=_Device.VirtualDevice.ConnectInfo(
            startConnected=connected, allowGuestControl=True, connected=False
        ),
    )


def _addition(device: Any) -> Any:
    return _Device.VirtualDeviceSpec(operation="add", device=device)
