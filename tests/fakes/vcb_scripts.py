"""The commands of vcbMounter's family as scripts call them, over a farm's settings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.fuse import device
from atoll.vsphere.client import VCenterSettings
from iscsi_site import write_settings

VMX = """\
.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
displayName = "db1"
guestOS = "debian12-64"
memSize = "4096"
numvcpus = "2"
firmware = "efi"
uuid.bios = "42 00 00 00 00 00 00 00-00 00 00 00 00 00 00 d1"
scsi0.present = "TRUE"
scsi0.virtualDev = "lsilogic"
scsi0:0.present = "TRUE"
scsi0:0.fileName = "db1.vmdk"
scsi0:1.present = "TRUE"
scsi0:1.fileName = "/vmfs/volumes/lun2/db1/db1.vmdk"
scsi0:1.mode = "independent-persistent"
scsi0:2.present = "TRUE"
scsi0:2.fileName = "later.vmdk"
ethernet0.present = "TRUE"
ethernet0.virtualDev = "e1000"
ethernet0.networkName = "VM Network"
ethernet0.addressType = "static"
ethernet0.address = "00:50:56:01:02:03"
ethernet1.present = "TRUE"
ethernet1.virtualDev = "vmxnet3"
ethernet1.networkName = "Elsewhere"
ethernet1.addressType = "generated"
ethernet1.generatedAddress = "00:0c:29:01:02:03"
usb.present = "TRUE"
disk.EnableUUID = "TRUE"
"""
"""What db1 of the farms is made of, and a disk that no run has."""

CREDENTIALS = ("-h", "vcenter", "-u", "backup", "-p", "not-the-password")


class VcbCommands:
    """Call it with a command and its words: (status, output, errors)."""

    def __init__(self, settings: Path) -> None:
        self.environment = {**os.environ, "ATOLL_CONFIG": str(settings)}

    def start(self, name: str, *words: object, **options) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name(name)), *CREDENTIALS, *map(str, words)]
        return subprocess.Popen(
            command, env=self.environment, stderr=subprocess.PIPE, text=True, **options
        )

    def __call__(self, name: str, *words: object) -> tuple[int, str, str]:
        process = self.start(name, *words, stdout=subprocess.PIPE)
        said, errors = process.communicate(timeout=120)
        assert "not-the-password" not in said + errors
        return process.returncode, said, errors


@contextmanager
def vcb_commands(pool: Path, vcenter: VCenterSettings, directory: Path) -> Iterator[VcbCommands]:
    """The commands, with `directory/password` as vCenter's; what they mounted there goes."""
    try:
        yield VcbCommands(write_settings(directory, pool, vcenter))
    finally:
        for place in device.mounts():
            if directory in place.parents:
                subprocess.run(["umount", "-l", place], check=False)
