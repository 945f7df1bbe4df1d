"""Lab guests that are powered on and off through vCenter, and moved to files by storage vMotion.

Those that the lab booted itself, with a config drive beside their sockets, are left to it.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from atoll_lab.guests import qemu
from atoll_lab.guests.errors import LabGuestError, RefusedError
from atoll_lab.guests.qemu import DiskAttachment, FileDisk, GuestSpec, IscsiDisk
from atoll_lab.guests.qmp import Machine
from atoll_lab.vcenter.guest_hook import GuestDisk, GuestPlan

_OWN_DRIVE = "config.tar"
_MOVE_SECONDS = 1800.0
_POLL_SECONDS = 0.1


class PoweredGuests:
    """The part of `QemuGuests` that starts, stops and moves; run directories lie in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def follows(self, vm: str) -> bool:
        """Whether the lab does not run it by itself."""
        return not (self._directory / vm / _OWN_DRIVE).exists()

    def start(self, plan: GuestPlan) -> None:
        """Boot it from its disks, as its host reaches them; LabGuestError."""
        qemu.start(
            GuestSpec(
                name=plan.vm,
                memory_bytes=plan.memory_bytes,
                disks=tuple(map(_attachment, plan.disks)),
                cpus=plan.cpus,
                connected=plan.connected,
            ),
            self._directory / plan.vm,
        )

    def stop(self, vm: str) -> None:
        """Cut its power."""
        qemu.kill(self._directory / vm)

    def move_disks(self, vm: str, disks: Sequence[GuestDisk], files: Sequence[Path]) -> None:
        """Copy while it writes, then let it go on with the copies; one that is off is copied."""
        guest = qemu.status(self._directory / vm)
        for number, (disk, file) in enumerate(zip(disks, files, strict=True)):
            file.parent.mkdir(parents=True, exist_ok=True)
            if guest is None:
                source = json.dumps(qemu.block_node(_attachment(disk)))
                _run("qemu-img", "convert", "-O", "raw", f"json:{source}", str(file))
                continue
            with Machine(guest.qmp_socket) as machine:
                _mirror(machine, f"disk{number}", file)


def _attachment(disk: GuestDisk) -> DiskAttachment:
    if isinstance(disk, Path):
        return FileDisk(disk)
    return IscsiDisk(
        portal=disk.portal,
        target=disk.target,
        lun=disk.number,
        initiator=disk.initiator,
        offset=disk.offset,
        size_bytes=disk.size_bytes,
    )


def _mirror(machine: Machine, disk: str, file: Path) -> None:
    """QEMU's live storage migration of one disk; the guest notices nothing."""
    nodes = machine.run("query-named-block-nodes", flat=True)
    size = next(int(n["image"]["virtual-size"]) for n in nodes if n["node-name"] == disk)
    with file.open("wb") as target:
        target.truncate(size)
    moved, job = f"{disk}-moved", f"move-{disk}"
    machine.run(
        "blockdev-add",
        node_name=moved,
        driver="raw",
        file={"driver": "file", "filename": str(file), "cache": {"direct": True}},
    )
    machine.run(
        "blockdev-mirror",
        job_id=job,
        device=disk,
        target=moved,
        sync="full",
        auto_dismiss=False,
    )
    deadline = time.monotonic() + _MOVE_SECONDS
    while time.monotonic() < deadline:
        state = next(each for each in machine.run("query-jobs") if each["id"] == job)
        if state["status"] == "ready":
            try:
                machine.run("job-complete", id=job)
            except RefusedError:
                continue  # it was put aside for a moment; it is asked again then
        if state["status"] == "concluded":
            machine.run("job-dismiss", id=job)
            if state.get("error"):
                raise LabGuestError(f"{disk} could not be moved: {state['error']}.")
            machine.run("blockdev-del", node_name=disk)
            return
        time.sleep(_POLL_SECONDS)
    raise LabGuestError(f"{disk} was not moved within {_MOVE_SECONDS:.0f} s.")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabGuestError(f"{command[0]} failed: {done.stderr.strip()}")
