"""What a restore point's VM is to be made of when its disks are LUNs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from atoll.model.errors import UnsupportedFormatError
from atoll.model.hardware import Controller, HardDisk, NetworkCard, VmHardware
from atoll.model.points import DiskImage, RestorePoint
from atoll.recovery.vmx import parse_identity, parse_vmx

_DEFAULT_CONTROLLERS = {"scsi": "lsilogic", "sata": "ahci", "nvme": "nvme", "ide": "ide"}
# The first device key of a kind's disks, how many keys a controller has, and how many controllers.
_KEYS = (("scsi", 2000, 16, 4), ("ide", 3000, 2, 2), ("sata", 16000, 30, 4), ("nvme", 31000, 15, 4))


@dataclass(frozen=True, slots=True)
class Wished:
    """What the VM is to be called and whom it may be taken for.

    `keep` its UUID and its cards' addresses. Cards are `connected` or not, to the networks that they
    name or, if there are `mapped` ones, to these by those; without one a card is not connected.
    """

    name: str
    keep: bool
    connected: bool
    mapped: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RecoveredHardware:
    """The VM to make; `hardware.disks` are in the point's order. `bios_uuid` is empty for a new one."""

    hardware: VmHardware
    bios_uuid: str
    told: tuple[str, ...]


def hardware_of_point(point: RestorePoint, wished: Wished, datastore: str) -> RecoveredHardware:
    """From the VMX that the point has; `datastore` takes what is not on the LUNs.

    UnsupportedFormatError when it has none, or a disk is at no controller known here.
    """
    if not point.vmx:
        raise UnsupportedFormatError(
            f"{point.vm}@{point.run} has no configuration file (.vmx), so nobody knows what the VM was "
            "made of; restore its disks and make one by hand."
        )
    content = point.vmx.encode()
    vmx, identity = parse_vmx(content, f"{point.vm}.vmx"), parse_identity(content)
    made_of = vmx.hardware
    controllers = {each.place: each for each in made_of.controllers}
    disks = []
    for image in point.disks:
        address = _address(image)
        place = address.partition(":")[0]
        kind = place.rstrip("0123456789")
        controllers.setdefault(
            place, Controller(_DEFAULT_CONTROLLERS[kind], int(place.removeprefix(kind)))
        )
        disks.append(HardDisk(address, image.size_bytes, datastore))
    told = []
    if vmx.left_out:
        told.append(f"Left out of the VM: {', '.join(vmx.left_out)}.")
    if made_of.firmware == "efi":
        told.append("The firmware's NVRAM begins anew, with UEFI's own order of booting.")
    captured = {disk.address for disk in disks}
    for address in sorted(vmx.modes.keys() - captured):
        told.append(f"Disk {address} is not in the restore point; the VM does not have it.")
    cards = tuple(
        _card(card, mac, wished) for card, mac in zip(made_of.cards, identity.macs, strict=True)
    )
    return RecoveredHardware(
        replace(
            made_of,
            name=wished.name,
            controllers=tuple(controllers.values()),
            disks=tuple(disks),
            cards=cards,
        ),
        identity.bios_uuid if wished.keep else "",
        tuple(told),
    )


def _card(card: NetworkCard, mac: str, wished: Wished) -> NetworkCard:
    return replace(
        card,
        network=wished.mapped.get(card.network, card.network),
        mac=(mac or None) if wished.keep else None,
        connected=wished.connected
        and card.connected
        and (not wished.mapped or card.network in wished.mapped),
    )


def _address(image: DiskImage) -> str:
    """`scsi0:1` by the device key, as vSphere numbers disks."""
    for kind, first, units, controllers in _KEYS:
        bus, unit = divmod(image.key - first, units)
        if 0 <= bus < controllers:
            return f"{kind}{bus}:{unit}"
    raise UnsupportedFormatError(
        f"{image.label} has device key {image.key}, which is at no controller that Atoll knows; "
        "restore the disk and attach it by hand."
    )
