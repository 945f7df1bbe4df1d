"""VMware snapshots: the tree they form and the delta files they leave disks with."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.state import DiskState, SnapshotState

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.virtual_machine import VirtualMachine
    from atoll_lab.vcenter.site import Site


class Snapshot(Managed):
    """One VMware snapshot of a VM."""

    kind = vim.vm.Snapshot

    def __init__(self, site: "Site", moid: str, vm: "VirtualMachine") -> None:
        super().__init__(site, moid)
        self._vm = vm

    @exposes("vm")
    def vm(self) -> Any:
        """Its VM."""
        return self._vm.ref

    @exposes("config")
    def config(self) -> Any:
        """The VM's configuration."""
        return self._vm.config()

    @exposes("childSnapshot")
    def children_refs(self) -> list[Any]:
        """Snapshots taken after it."""
        return [vim.vm.Snapshot(each.moid) for each in _children(self._vm, self.moid)]

    @answers("RemoveSnapshot_Task")
    def remove(self, call: Call, removeChildren: bool, consolidate: bool = True) -> Any:
        """Remove it, its children too if asked; else they hang below its parent."""

        def work() -> None:
            state = self._vm.state
            with self.site.change():
                own = self.site.registry.require(self.moid)
                parent = next(each.parent for each in state.snapshots if each.moid == own.moid)
                gone = {self.moid}
                if removeChildren:
                    for each in state.snapshots:  # a child always comes after its parent
                        if each.parent in gone:
                            gone.add(each.moid)
                for each in state.snapshots:
                    if each.parent in gone:
                        each.parent = parent
                state.snapshots = [each for each in state.snapshots if each.moid not in gone]
                if state.current_snapshot in gone:
                    state.current_snapshot = parent
                for moid in gone:
                    self.site.registry.remove(moid)

        return self.site.tasks.start(self._vm, "RemoveSnapshot_Task", call.session.user or "", work)


def snapshot_tree(vm: "VirtualMachine", parent: str | None) -> list[Any]:
    """The snapshots below one, None for the roots."""
    return [
        vim.vm.SnapshotTree(
            snapshot=vim.vm.Snapshot(each.moid),
            vm=vm.ref,
            name=each.name,
            description=each.description,
            id=number,
            createTime=datetime.fromtimestamp(each.created_at, UTC),
            state="poweredOff",
            quiesced=each.quiesced,
            childSnapshotList=snapshot_tree(vm, each.moid),
        )
        for number, each in enumerate(_children(vm, parent), start=1)
    ]


def disk_backing(vm: "VirtualMachine", disk: DiskState) -> Any:
    """What is behind a disk: its file, below one delta file a snapshot."""
    datastore = vm.site.datastore(disk.datastore)
    if disk.kind == "rdm":
        return vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            fileName=datastore.path(disk.path),
            datastore=datastore.ref,
            diskMode=disk.mode,
            compatibilityMode="physicalMode",
        )
    backing = _flat(vm, disk, disk.path)
    depth = 0 if disk.mode.startswith("independent") else _depth(vm)
    stem = disk.path.removesuffix(".vmdk")
    for number in range(1, depth + 1):
        below, backing = backing, _flat(vm, disk, f"{stem}-{number:06d}.vmdk")
        backing.parent = below
    return backing


def _flat(vm: "VirtualMachine", disk: DiskState, path: str) -> Any:
    datastore = vm.site.datastore(disk.datastore)
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=datastore.path(path),
        datastore=datastore.ref,
        diskMode=disk.mode,
        thinProvisioned=False,
    )


def _depth(vm: "VirtualMachine") -> int:
    """How many snapshots lie between the current one and its root."""
    parents = {each.moid: each.parent for each in vm.state.snapshots}
    depth, at = 0, vm.state.current_snapshot
    while at is not None:
        depth, at = depth + 1, parents[at]
    return depth


def _children(vm: "VirtualMachine", parent: str | None) -> list[SnapshotState]:
    return [each for each in vm.state.snapshots if each.parent == parent]
