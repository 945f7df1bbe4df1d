"""What a configuration file says of a VM, and what is said to be left out."""

import pytest

from atoll.model.errors import UnsupportedFormatError
from atoll.model.hardware import Controller, NetworkCard
from atoll.recovery.vmx import parse_vmx

VMX = """\
.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
displayName = "db |22one|22"
guestOS = "debian12-64"
# a comment = "no"
memSize = "2048"
numvcpus = "4"
cpuid.coresPerSocket = "2"
firmware = "efi"
uefi.secureBoot.enabled = "TRUE"
annotation = "first line|0Asecond line"
nvram = "db1.nvram"
uuid.bios = "42 1e"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0.pciSlotNumber = "160"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "db1.vmdk"
scsi0:0.deviceType = "scsi-hardDisk"
scsi1.virtualDev = "lsisas1068"
scsi1.sharedBus = "virtual"
scsi1:3.present = "TRUE"
scsi1:3.fileName = "data.vmdk"
scsi1:3.mode = "independent-persistent"
scsi1:3.sharing = "multi-writer"
scsi1:4.present = "FALSE"
scsi1:4.fileName = "gone.vmdk"
sata0.present = "TRUE"
sata0:0.present = "TRUE"
sata0:0.deviceType = "cdrom-image"
sata0:0.fileName = "/x.iso"
ide0:0.present = "TRUE"
ide0:0.fileName = "old.vmdk"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "vmxnet3"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "vpx"
ethernet0.generatedAddress = "00:50:56:aa:bb:cc"
ethernet1.present = "TRUE"
ethernet1.virtualDev = "e1000"
ethernet1.networkName = "Lab"
ethernet1.addressType = "static"
ethernet1.address = "00:50:56:11:22:33"
ethernet1.startConnected = "FALSE"
ethernet1.wakeOnPcktRcv = "FALSE"
ethernet2.present = "FALSE"
floppy0.present = "FALSE"
usb.present = "TRUE"
serial0.present = "TRUE"
serial0.fileType = "file"
disk.EnableUUID = "TRUE"
guestinfo.userdata = "x"
sched.cpu.shares = "high"
ctkEnabled = "TRUE"
"""


def test_what_a_file_says() -> None:
    vmx = parse_vmx(VMX.encode(), "db1.vmx")
    assert (vmx.hardware.name, vmx.hardware.guest_os, vmx.hardware.version) == (
        'db "one"',
        "debian12-64",
        19,
    )
    assert (vmx.hardware.cpus, vmx.hardware.cores_per_socket, vmx.hardware.memory_mb) == (
        4,
        2,
        2048,
    )
    assert (vmx.hardware.firmware, vmx.hardware.secure_boot) == ("efi", True)
    assert vmx.hardware.annotation == "first line\nsecond line"
    assert vmx.hardware.controllers == (
        Controller("pvscsi", 0),
        Controller("lsisas1068", 1, "virtual"),
        Controller("ahci", 0),
        Controller("ide", 0),
    )
    assert vmx.modes == {
        "scsi0:0": "persistent",
        "scsi1:3": "independent_persistent",
        "ide0:0": "persistent",
    }
    assert vmx.hardware.cards == (
        NetworkCard("vmxnet3", "VM Network"),
        NetworkCard("e1000", "Lab", "00:50:56:11:22:33", connected=False),
    )
    assert vmx.hardware.extra == {"disk.EnableUUID": "TRUE", "guestinfo.userdata": "x"}
    assert vmx.left_out == (
        "scsi1:3.sharing",
        "sata0:0 (cdrom-image)",
        "ethernet1.wakeOnPcktRcv",
        "usb.present",
        "serial0",
        "sched.cpu.shares",
    )


def test_little_is_enough() -> None:
    vmx = parse_vmx(b'guestOS = "other"\nmemsize = "64"\nscsi0:0.present = "true"\n', "x")
    made = vmx.hardware
    assert (made.cpus, made.memory_mb, made.firmware, made.version) == (1, 64, "bios", None)
    assert vmx.hardware.controllers == (Controller("lsilogic", 0),)
    assert vmx.left_out == ()


def test_other_encodings() -> None:
    text = '.encoding = "windows-1252"\nguestOS = "other"\nmemsize = "64"\ndisplayName = "Zürich"\n'
    assert parse_vmx(text.encode("windows-1252"), "x").hardware.name == "Zürich"


def test_a_device_of_an_unknown_kind_is_replaced_and_told() -> None:
    lines = ('scsi0.present = "TRUE"', 'scsi0.virtualDev = "quantum"', 'memsize = "64"')
    vmx = parse_vmx("\n".join((*lines, 'guestOS = "other"')).encode(), "x")
    assert vmx.hardware.controllers == (Controller("lsilogic", 0),)
    assert vmx.left_out == ("scsi0.virtualDev",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\x7fELF", "neither guestOS nor memSize"),
        (b'guestOS = "x"\nmemsize = "many"\n', "which is no number"),
    ],
)
def test_what_is_no_configuration(text: bytes, said: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=said):
        parse_vmx(text, "x.vmx")
