"""What vCenter says of one VM that matters to VMware snapshots, and why it may not have one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyVmomi import vim

from atoll.vsphere.collector import Row

STATE_PATHS = (
    "name",
    "config.instanceUuid",
    "config.hardware.device",
    "runtime.consolidationNeeded",
    "snapshot",
    "recentTask",
)
REFUSAL_PATHS = (
    *STATE_PATHS,
    "config.template",
    "runtime.connectionState",
    "runtime.powerState",
    "runtime.faultToleranceState",
    "guest.toolsRunningStatus",
)


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One snapshot of a VM's tree; `created_at` is by vCenter's clock."""

    moref: str
    name: str
    description: str
    quiesced: bool
    created_at: float


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """A VM's snapshots, parents first, and whether a disk is written to a delta file."""

    vm: str
    name: str
    snapshots: tuple[TreeEntry, ...]
    has_delta: bool
    consolidation_needed: bool
    recent_tasks: tuple[str, ...]

    @property
    def unconsolidated(self) -> bool:
        """Whether there are delta files that no snapshot needs any more."""
        return self.consolidation_needed or (self.has_delta and not self.snapshots)


def snapshot_state(row: Row) -> SnapshotState:
    """The state from a row with STATE_PATHS."""
    return SnapshotState(
        vm=row.moref,
        name=str(row.get("name", row.moref)),
        snapshots=tree_entries(row),
        has_delta=any(_backing(disk, "parent") is not None for disk in _disks(row)),
        consolidation_needed=bool(row.get("runtime.consolidationNeeded", False)),
        recent_tasks=tuple(task._moId for task in row.get("recentTask", ())),
    )


def tree_entries(row: Row) -> tuple[TreeEntry, ...]:
    """All snapshots of a row with `snapshot`, parents before their children."""
    info = row.get("snapshot")
    return tuple(_walk(info.rootSnapshotList)) if info is not None else ()


def refusals(row: Row) -> tuple[str, ...]:
    """Why this VM cannot be held by a quiesced VMware snapshot; needs REFUSAL_PATHS.

    Each is the end of a sentence about the VM. Empty: nothing is known that
    speaks against it.
    """
    return (*_state_refusals(row), *_disk_refusals(row))


def epoch(moment: datetime | None) -> float:
    """Seconds since the epoch; 0 for a moment that vCenter does not tell."""
    return moment.timestamp() if moment is not None else 0.0


def _state_refusals(row: Row) -> Iterator[str]:
    state = snapshot_state(row)
    connection = row.get("runtime.connectionState")
    if connection not in (None, "connected"):
        yield f"its host does not answer vCenter ({connection})"
    if row.get("config.template", False):
        yield "it is a template"
    power = row.get("runtime.powerState")
    if power == "suspended":
        yield "it is suspended"
    elif power != "poweredOn":
        yield "it is switched off, so there is nothing in it to quiesce"
    elif row.get("guest.toolsRunningStatus") not in (None, "guestToolsRunning"):
        yield "VMware Tools does not run in it, so nothing would be quiesced"
    if row.get("runtime.faultToleranceState") not in (None, "notConfigured"):
        yield "it is protected by Fault Tolerance"
    if state.snapshots:
        names = ", ".join(each.name for each in state.snapshots)
        yield f"it has a VMware snapshot already ({names})"
    elif state.has_delta:
        yield "a disk of it is written to a delta file, as with a linked clone"
    if state.consolidation_needed:
        yield "its disks need to be consolidated"


def _disk_refusals(row: Row) -> Iterator[str]:
    for disk in _disks(row):
        label = disk.deviceInfo.label if disk.deviceInfo else f"disk {disk.key}"
        if _backing(disk, "compatibilityMode") == "physicalMode":
            yield f"{label} is a raw device mapping in physical mode"
        if str(_backing(disk, "diskMode") or "").startswith("independent"):
            yield f"{label} is independent, so snapshots leave it out"
        if _backing(disk, "sharing") == "sharingMultiWriter":
            yield f"{label} is shared with other VMs (multi-writer)"
    for device in row.get("config.hardware.device", ()):
        shared = isinstance(device, vim.vm.device.VirtualSCSIController) and device.sharedBus
        if shared and shared != "noSharing":
            label = device.deviceInfo.label if device.deviceInfo else f"controller {device.key}"
            yield f"{label} shares its bus ({shared})"


def _disks(row: Row) -> Sequence[Any]:
    devices: Iterable[Any] = row.get("config.hardware.device", ())
    return [each for each in devices if isinstance(each, vim.vm.device.VirtualDisk)]


def _backing(disk: Any, name: str) -> Any:
    return getattr(disk.backing, name, None)


def _walk(nodes: Iterable[Any]) -> Iterator[TreeEntry]:
    for node in nodes:
        yield TreeEntry(
            moref=node.snapshot._moId,
            name=node.name or "",
            description=node.description or "",
            quiesced=bool(node.quiesced),
            created_at=epoch(node.createTime),
        )
        yield from _walk(node.childSnapshotList)
