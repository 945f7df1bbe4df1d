"""VMware snapshots of lab guests made real: their disks on the LUN stand still while they write on.

A snapshot is a live external one of QEMU: from one transaction on, all disks
of the guest are written to delta files beside QEMU's own, and the ranges of
the LUN below stand still. Removing it is a live commit back into them.

QEMU's guest agent stands for VMware Tools: it runs the same scripts, freezes
the file systems, and thaws. What is different: the deltas do not lie in the
VMFS volume, and the guest is not told when the host fails.
"""

import contextlib
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll_lab.guests import qemu
from atoll_lab.guests.errors import LabGuestError, RefusedError
from atoll_lab.guests.powered import PoweredGuests
from atoll_lab.guests.qmp import GuestAgent, Machine

_DISK = re.compile(r"disk\d+\Z")
_SET = re.compile(r"info-set (guestinfo\.\S+) (.*)\Z")
_MAX_LOG_BYTES = 1 << 16
_SYNC_SECONDS = 20.0
_MERGE_SECONDS = 600.0
_POLL_SECONDS = 0.05


class QemuGuests(PoweredGuests):
    """The guests whose run directories lie in `directory`, each named like its VM.

    Implements `atoll_lab.vcenter.guest_hook.GuestHook`. `quiesce_seconds` is
    how long the scripts and the freeze may take. With `thaws` False the guest
    is never told to thaw, which VMware Tools is known for.
    """

    def __init__(self, directory: Path, quiesce_seconds: float = 240.0) -> None:
        super().__init__(directory)
        self._quiesce_seconds = quiesce_seconds
        self.thaws = True

    def take_snapshot(self, vm: str, quiesce: bool) -> bool:
        run_dir = self._directory / vm
        guest = qemu.status(run_dir)
        if guest is None:
            return quiesce and not run_dir.exists()
        with Machine(guest.qmp_socket) as machine:
            disks = _disks(machine)
            for disk, size in disks.items():
                # Made before anything is frozen.
                _add_delta(machine, guest.run_dir, disk, size)
            try:
                return self._snapshot(machine, guest, list(disks), quiesce)
            except BaseException:
                for disk in set(disks) - _snapshots(machine):
                    _drop_delta(machine, guest.run_dir, disk)
                raise

    def merge_snapshot(self, vm: str) -> None:
        guest = qemu.status(self._directory / vm)
        if guest is None:
            return
        with Machine(guest.qmp_socket) as machine:
            for disk in sorted(_snapshots(machine)):
                _commit(machine, disk)
                _drop_delta(machine, guest.run_dir, disk)

    def guestinfo(self, vm: str) -> Mapping[str, str]:
        try:
            with (self._directory / vm / "rpc.log").open("rb") as log:
                size = log.seek(0, 2)
                log.seek(max(0, size - _MAX_LOG_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return {}
        return {found[1]: found[2] for line in lines if (found := _SET.match(line))}

    def _snapshot(
        self, machine: Machine, guest: qemu.RunningGuest, disks: list[str], quiesce: bool
    ) -> bool:
        if not quiesce:
            _switch(machine, disks)
            return False
        try:
            tools = GuestAgent(guest.tools_socket, _SYNC_SECONDS)
        except LabGuestError:
            # As without VMware Tools: a plain snapshot, without a word.
            _switch(machine, disks)
            return False
        with tools:
            try:
                tools.run("guest-fsfreeze-freeze", self._quiesce_seconds)
                _switch(machine, disks)
            finally:
                if self.thaws:
                    tools.run("guest-fsfreeze-thaw", self._quiesce_seconds)
        return True


def _disks(machine: Machine) -> Mapping[str, int]:
    """The guest's disks with their sizes in bytes."""
    return {
        node["node-name"]: int(node["image"]["virtual-size"])
        for node in machine.run("query-named-block-nodes", flat=True)
        if _DISK.match(node["node-name"])
    }


def _snapshots(machine: Machine) -> set[str]:
    """The disks that are written to a delta now."""
    attached = {
        (each.get("inserted") or {}).get("node-name") for each in machine.run("query-block")
    }
    return {disk for disk in _disks(machine) if _delta(disk) in attached}


def _add_delta(machine: Machine, run_dir: Path, disk: str, size: int) -> None:
    if disk in _snapshots(machine):
        raise LabGuestError(f"{disk} has a snapshot already; the lab knows one at a time.")
    _drop_delta(machine, run_dir, disk)
    path = _delta_path(run_dir, disk)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)], check=True)
    machine.run(
        "blockdev-add",
        node_name=_delta(disk),
        driver="qcow2",
        file={"driver": "file", "filename": str(path)},
        backing=None,
    )


def _switch(machine: Machine, disks: list[str]) -> None:
    """All disks at one moment: the guest's writes go to the deltas from here on."""
    machine.run(
        "transaction",
        actions=[
            {"type": "blockdev-snapshot", "data": {"node": disk, "overlay": _delta(disk)}}
            for disk in disks
        ],
    )


def _commit(machine: Machine, disk: str) -> None:
    """Merge a delta; goes on with a merge that somebody began and was cut off from."""
    job = f"merge-{disk}"
    if _job(machine, job) is None:
        machine.run(
            "block-commit", job_id=job, device=_delta(disk), base_node=disk, auto_dismiss=False
        )
    deadline = time.monotonic() + _MERGE_SECONDS
    while (state := _job(machine, job)) is not None:
        if state["status"] == "ready":
            # QEMU may have put the job aside for a moment since; it is asked again then.
            with contextlib.suppress(RefusedError):
                machine.run("job-complete", id=job)
        if state["status"] == "concluded":
            machine.run("job-dismiss", id=job)
            if state.get("error"):
                raise LabGuestError(f"The delta of {disk} could not be merged: {state['error']}.")
            return
        if time.monotonic() > deadline:
            raise LabGuestError(
                f"The delta of {disk} is still being merged ({state['status']}, "
                f"{state['current-progress']} of {state['total-progress']} bytes)."
            )
        time.sleep(_POLL_SECONDS)


def _job(machine: Machine, job: str) -> Mapping[str, Any] | None:
    return next((each for each in machine.run("query-jobs") if each["id"] == job), None)


def _drop_delta(machine: Machine, run_dir: Path, disk: str) -> None:
    """Forget a delta that is not written to. Absent is success."""
    nodes = {node["node-name"] for node in machine.run("query-named-block-nodes", flat=True)}
    if _delta(disk) in nodes:
        machine.run("blockdev-del", node_name=_delta(disk))
    _delta_path(run_dir, disk).unlink(missing_ok=True)


def _delta(disk: str) -> str:
    return f"{disk}-delta"


def _delta_path(run_dir: Path, disk: str) -> Path:
    return run_dir / f"{disk}{qemu.DELTA_SUFFIX}"
