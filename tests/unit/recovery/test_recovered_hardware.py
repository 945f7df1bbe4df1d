"""From a restore point's VMX to the VM that is made over its disks."""

from dataclasses import replace

import pytest

from atoll.model.errors import UnsupportedFormatError
from atoll.model.points import DiskImage, RestorePoint
from atoll.recovery.recovered_hardware import Wished, hardware_of_point
from atoll.recovery.vmx import parse_identity
from repository_parts import point as any_point

VMX = """
displayName = "db1"
uuid.bios = "56 4d 01 02 03 04 05 06-07 08 09 0a 0b 0c 0d 0e"
guestOS = "debian12-64"
memSize = "1024"
firmware = "efi"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "db1.vmdk"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "independent.vmdk"
ethernet0.present = "TRUE"
ethernet0.networkName = "prod"
ethernet0.generatedAddress = "00:50:56:9a:00:01"
ethernet1.present = "FALSE"
ethernet2.present = "TRUE"
ethernet2.networkName = "backup"
ethernet2.addressType = "static"
ethernet2.address = "00:50:56:00:00:02"
usb.present = "TRUE"
"""
NEW = Wished("copy", keep=False, connected=False, mapped={})


def image(key: int) -> DiskImage:
    return DiskImage(key, f"disk {key}", f"[s] db1/{key}.vmdk", 1 << 20, "", "", (), 0, 0, 0)


def point(*keys: int, vmx: str = VMX) -> RestorePoint:
    return replace(any_point("p1"), vmx=vmx, disks=tuple(map(image, keys)))


def test_the_identity_is_new_and_no_card_is_connected_unless_asked_for() -> None:
    made = hardware_of_point(point(2000), NEW, "local")
    assert made.bios_uuid == ""
    assert [(card.mac, card.connected) for card in made.hardware.cards] == [(None, False)] * 2
    assert (made.hardware.name, made.hardware.memory_mb) == ("copy", 1024)


def test_the_identity_can_be_kept_with_generated_addresses_too() -> None:
    wished = Wished("db1", keep=True, connected=True, mapped={})
    made = hardware_of_point(point(2000), wished, "local")
    assert made.bios_uuid == "564d0102-0304-0506-0708-090a0b0c0d0e"
    assert [(card.network, card.mac, card.connected) for card in made.hardware.cards] == [
        ("prod", "00:50:56:9a:00:01", True),
        ("backup", "00:50:56:00:00:02", True),
    ]


def test_with_a_map_only_what_it_names_is_connected() -> None:
    wished = Wished("db1", keep=False, connected=True, mapped={"prod": "quarantine"})
    cards = hardware_of_point(point(2000), wished, "local").hardware.cards
    assert [(card.network, card.connected) for card in cards] == [
        ("quarantine", True),
        ("backup", False),
    ]


def test_disks_keep_their_places_and_get_the_controllers_they_need() -> None:
    made = hardware_of_point(point(2000, 2017, 3001, 16031, 31002), NEW, "local")
    assert [disk.address for disk in made.hardware.disks] == [
        "scsi0:0",
        "scsi1:1",
        "ide0:1",
        "sata1:1",
        "nvme0:2",
    ]
    kinds = {each.place: each.kind for each in made.hardware.controllers}
    assert kinds == {
        "scsi0": "pvscsi",
        "scsi1": "lsilogic",
        "ide0": "ide",
        "sata1": "ahci",
        "nvme0": "nvme",
    }
    assert {disk.datastore for disk in made.hardware.disks} == {"local"}


def test_what_is_not_as_it_was_is_told() -> None:
    told = "\n".join(hardware_of_point(point(2000), NEW, "local").told)
    assert "usb" in told and "NVRAM" in told and "scsi0:1 is not in the restore point" in told


def test_a_point_without_a_configuration_and_odd_disks_are_refused() -> None:
    with pytest.raises(UnsupportedFormatError, match="no configuration file"):
        hardware_of_point(point(2000, vmx=""), NEW, "local")
    with pytest.raises(UnsupportedFormatError, match="device key 9999"):
        hardware_of_point(point(9999), NEW, "local")


def test_a_uuid_that_is_none_is_unknown() -> None:
    assert parse_identity(b'uuid.bios = "56 4d"\n').bios_uuid == ""
