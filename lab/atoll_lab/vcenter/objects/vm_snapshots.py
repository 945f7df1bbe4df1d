"""What a VM does about VMware snapshots: takes, removes and consolidates them, one at a time."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.objects.snapshot import Snapshot, snapshot_depth, snapshot_tree
from atoll_lab.vcenter.state import SnapshotState, VmState

if TYPE_CHECKING:
    from atoll_lab.vcenter.site import Site

_MAX_LEVELS = 32


class SnapshotHolder(Managed):
    """The part of a VM that deals with snapshots."""

    kind = vim.VirtualMachine

    def __init__(self, site: "Site", state: VmState) -> None:
        super().__init__(site, state.moid)
        self.state = state
        self._one_at_a_time = threading.Lock()

    @exposes("snapshot")
    def snapshot(self) -> Any:
        """The tree of VMware snapshots, unset when there is none."""
        state = self.state
        if not state.snapshots or state.current_snapshot is None:
            return None
        return vim.vm.SnapshotInfo(
            currentSnapshot=vim.vm.Snapshot(state.current_snapshot),
            rootSnapshotList=snapshot_tree(self, None),
        )

    @exposes("recentTask")
    def recent_tasks(self) -> list[Any]:
        """Tasks that ran on it of late or run now."""
        return [vim.Task(moid) for moid in self.site.tasks.recent(self.moid)]

    def needs_consolidation(self) -> bool:
        """Whether vCenter says that delta files are there which no snapshot needs."""
        return self.state.deltas.left > 0 and self.state.deltas.noted

    def guestinfo(self) -> dict[str, str]:
        """What the guest has set for vCenter to read."""
        return {**self.state.tools.guestinfo, **self.site.guests.guestinfo(self.state.name)}

    @answers("CreateSnapshot_Task")
    def create_snapshot(
        self, call: Call, name: str, memory: bool, quiesce: bool, description: str = ""
    ) -> Any:
        """A VMware snapshot; from now on the disks are written to delta files."""
        return self._task(
            call, "CreateSnapshot_Task", lambda: self._take(name, description, quiesce)
        )

    @answers("CreateSnapshotEx_Task")
    def create_snapshot_ex(
        self, call: Call, name: str, memory: bool, description: str = "", quiesceSpec: Any = None
    ) -> Any:
        """The same with a quiesce specification."""
        quiesce = quiesceSpec is not None
        return self._task(
            call, "CreateSnapshotEx_Task", lambda: self._take(name, description, quiesce)
        )

    @answers("RemoveAllSnapshots_Task")
    def remove_all_snapshots(self, call: Call, consolidate: bool = True, spec: Any = None) -> Any:
        """Remove every snapshot."""
        return self._task(
            call,
            "RemoveAllSnapshots_Task",
            lambda: self._remove({each.moid for each in self.state.snapshots}),
        )

    @answers("ConsolidateVMDisks_Task")
    def consolidate(self, call: Call) -> Any:
        """Put delta files that no snapshot needs back into the disks."""
        return self._task(call, "ConsolidateVMDisks_Task", self._consolidate)

    def remove_snapshot(self, call: Call, moid: str, with_children: bool) -> Any:
        """Remove one snapshot, its children too if asked; else they hang below its parent."""

        def work() -> None:
            gone = {moid}
            if with_children:
                for each in self.state.snapshots:  # a child always comes after its parent
                    if each.parent in gone:
                        gone.add(each.moid)
            self._remove(gone)

        return self._task(call, "RemoveSnapshot_Task", work)

    def _take(self, name: str, description: str, quiesce: bool) -> Any:
        state, tools = self.state, self.state.tools
        if state.suspended or state.fault_tolerance != "notConfigured":
            raise vim.fault.InvalidState(msg="The operation is not allowed in the current state.")
        if snapshot_depth(self) + state.deltas.left >= _MAX_LEVELS:
            raise vim.fault.TooManySnapshotLevels(msg="There are too many snapshot levels.")
        possible = state.powered_on and tools.running == "guestToolsRunning" and tools.quiesces
        quiesced = self.site.guests.take_snapshot(state.name, quiesce and possible)
        with self.site.change():
            snapshot = SnapshotState(
                moid=self.site.new_id("snapshot"),
                name=name,
                description=description,
                created_at=time.time(),
                quiesced=quiesced,
                parent=state.current_snapshot,
            )
            state.snapshots.append(snapshot)
            state.current_snapshot = snapshot.moid
            state.version += 1
            managed = Snapshot(self.site, snapshot.moid, self)
            self.site.registry.add(managed)
            return managed.ref

    def _remove(self, gone: set[str]) -> None:
        state = self.state
        if gone >= {each.moid for each in state.snapshots}:
            self.site.guests.merge_snapshot(state.name)
        with self.site.change():
            parents = {each.moid: each.parent for each in state.snapshots}
            kept = [each for each in state.snapshots if each.moid not in gone]
            for each in kept:
                while each.parent in gone:
                    each.parent = parents[each.parent]
            while state.current_snapshot in gone:
                state.current_snapshot = parents[state.current_snapshot]
            state.snapshots = kept
            state.version += 1
            if state.deltas.leave > 0:
                state.deltas.leave -= 1
                state.deltas.left += 1
            for moid in gone:
                self.site.registry.remove(moid)

    def _consolidate(self) -> None:
        deltas = self.state.deltas
        if deltas.refuse > 0:
            with self.site.change():
                deltas.refuse -= 1
            raise vim.fault.FileLocked(msg="The file is locked.", file="delta")
        with self.site.change():
            deltas.left = 0

    def _task(self, call: Call, method: str, work: Callable[[], Any]) -> Any:
        def alone() -> Any:
            with self._one_at_a_time:
                return work()

        return self.site.tasks.start(self, method, call.session.user or "", alone)
