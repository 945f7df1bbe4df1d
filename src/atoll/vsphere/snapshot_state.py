"""What vCenter says of one VM that matters to VMware snapshots, and why it may not have one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyVmomi import vim

from atoll.model.inventory import MAX_DELTAS
from atoll.vsphere.collector import Row
from atoll.vsphere.facts import snapshot_facts

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
    """A VM's snapshots, parents first, and the delta files it is written to.

    `deltas` counts them for each disk that VMware snapshots do not leave out, by
    device key; `depth` is how many snapshots lie under its running state.
    """

    vm: str
    name: str
    snapshots: tuple[TreeEntry, ...]
    deltas: Mapping[int, int]
    depth: int
    consolidation_needed: bool
    recent_tasks: tuple[str, ...]

    def more_left_than(self, before: "SnapshotState") -> bool:
        """Whether there are delta files that no snapshot needs, which were not there before."""
        old = before._unneeded()
        return (self.consolidation_needed and not before.consolidation_needed) or any(
            count > old.get(key, 0) for key, count in self._unneeded().items()
        )

    def _unneeded(self) -> dict[int, int]:
        return {key: max(0, count - self.depth) for key, count in self.deltas.items()}


def snapshot_state(row: Row) -> SnapshotState:
    """The state from a row with STATE_PATHS."""
    return SnapshotState(
        vm=row.moref,
        name=str(row.get("name", row.moref)),
        snapshots=tree_entries(row),
        deltas={
            disk.key: _files_below(disk) for disk in _disks(row) if not any(_left_out(disk, ""))
        },
        depth=snapshot_facts(row.get("snapshot")).depth,
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
    if max(state.deltas.values(), default=0) >= MAX_DELTAS:
        yield f"its disks lie on {MAX_DELTAS} deltas already, the most that vSphere allows"


def _disk_refusals(row: Row) -> Iterator[str]:
    for disk in _disks(row):
        label = disk.deviceInfo.label if disk.deviceInfo else f"disk {disk.key}"
        yield from _left_out(disk, label)
        if _backing(disk, "sharing") == "sharingMultiWriter":
            yield f"{label} is shared with other VMs (multi-writer)"
    for device in row.get("config.hardware.device", ()):
        shared = isinstance(device, vim.vm.device.VirtualSCSIController) and device.sharedBus
        if shared and shared != "noSharing":
            label = device.deviceInfo.label if device.deviceInfo else f"controller {device.key}"
            yield f"{label} shares its bus ({shared})"


def _left_out(disk: Any, label: str) -> Iterator[str]:
    """Why VMware snapshots leave a disk out; nothing for one that they hold."""
    if _backing(disk, "compatibilityMode") == "physicalMode":
        yield f"{label} is a raw device mapping in physical mode, so snapshots leave it out"
    if str(_backing(disk, "diskMode") or "").startswith("independent"):
        yield f"{label} is independent, so snapshots leave it out"


def _files_below(disk: Any) -> int:
    count, backing = 0, _backing(disk, "parent")
    while backing is not None:
        count, backing = count + 1, getattr(backing, "parent", None)
    return count


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
