"""Whether KVM can be trusted here: it is tried with a deadline before anything depends on it."""

import signal
import subprocess
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Literal

# A boot sector that writes 16 to QEMU's exit port, in real mode:
#   mov dx, 0xf4 / mov al, 0x10 / out dx, al / hlt
# QEMU then ends with (16 << 1) | 1, which nothing but executed guest code brings about.
BOOT_SECTOR = bytes.fromhex("baf400b010eef4").ljust(510, b"\0") + b"\x55\xaa"
RAN = (0x10 << 1) | 1
DEADLINE_SECONDS = 10.0


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    TCG = "tcg"
    KVM = "kvm"


def choose_accelerator(wanted: Literal["tcg", "auto"], qemu: Sequence[str]) -> Accelerator:
    """KVM when it is allowed and a trial guest ran under it in time, else software emulation.

    `qemu` starts QEMU as it will be started in earnest, so that its rights are tried as well.
    """
    if wanted == "auto" and guest_runs(qemu, Accelerator.KVM):
        return Accelerator.KVM
    return Accelerator.TCG


def guest_runs(
    qemu: Sequence[str], accelerator: Accelerator, deadline_seconds: float = DEADLINE_SECONDS
) -> bool:
    """Boot seven bytes of code under `accelerator`; whether they ran before the deadline."""
    with tempfile.TemporaryDirectory() as scratch:
        disk = Path(scratch) / "boot.img"
        disk.write_bytes(BOOT_SECTOR)
        disk.parent.chmod(0o755)  # QEMU may run as another user
        try:
            process = subprocess.Popen(
                [
                    *qemu,
                    *("-machine", "pc", "-accel", accelerator.value, "-m", "16M", "-nodefaults"),
                    *("-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"),
                    *("-drive", f"file={disk},format=raw,if=ide,snapshot=on"),
                    *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x01"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return False
        try:
            return process.wait(deadline_seconds) == RAN
        except subprocess.TimeoutExpired:
            # Not waited for: what hangs inside the kernel does not even die.
            process.send_signal(signal.SIGKILL)
            return False
