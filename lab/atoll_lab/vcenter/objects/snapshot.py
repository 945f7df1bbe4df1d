"""VMware snapshots: the tree they form and the delta files they leave disks with."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from atoll_lab.vcenter.objects.base import Call, Managed, answers, exposes
from atoll_lab.vcenter.objects.volume_life import scsi_uuid
from atoll_lab.vcenter.state import DiskState, SnapshotState

if TYPE_CHECKING:
    from atoll_lab.vcenter.objects.vm_snapshots import SnapshotHolder
    from atoll_lab.vcenter.site import Site


class Snapshot(Managed):
    """One VMware snapshot of a VM."""

    kind = vim.vm.Snapshot

    def __init__(self, site: "Site", moid: str, vm: "SnapshotHolder") -> None:
        super().__init__(site, moid)
        self._vm = vm

    @exposes("vm")
    def vm(self) -> Any:
        """Its VM."""
        return self._vm.ref

    @exposes("config")
    def config(self) -> Any:
        """The VM's configuration."""
        return self._vm.read("config")

    @exposes("childSnapshot")
    def children_refs(self) -> list[Any]:
        """Snapshots taken after it."""
        return [vim.vm.Snapshot(each.moid) for each in _children(self._vm, self.moid)]

    @answers("RemoveSnapshot_Task")
    def remove(self, call: Call, removeChildren: bool, consolidate: bool = True) -> Any:
        """Remove it, its children too if asked; else they hang below its parent."""
        return self._vm.remove_snapshot(call, self.moid, removeChildren)


def snapshot_tree(vm: "SnapshotHolder", parent: str | None) -> list[Any]:
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


def disk_backing(vm: "SnapshotHolder", disk: DiskState) -> Any:
    """What is behind a disk: its file, below one delta file a snapshot."""
    make = _raw if disk.kind == "rdm" else _flat
    backing = make(vm, disk, disk.path)
    depth = 0 if disk.left_out else snapshot_depth(vm) + vm.state.deltas.left
    stem = disk.path.removesuffix(".vmdk")
    for number in range(1, depth + 1):
        below, backing = backing, make(vm, disk, f"{stem}-{number:06d}.vmdk")
        backing.parent = below
    return backing


def _flat(vm: "SnapshotHolder", disk: DiskState, path: str) -> Any:
    datastore = vm.site.datastore(disk.datastore)
    return vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=datastore.path(path),
        datastore=datastore.ref,
        diskMode=disk.mode,
        sharing=disk.sharing,
        thinProvisioned=False,
    )


def _raw(vm: "SnapshotHolder", disk: DiskState, path: str) -> Any:
    """A raw mapping; one whose LUN no host sees keeps its name, but has no device."""
    datastore = vm.site.datastore(disk.datastore)
    own = vm.site.host(vm.state.host).state.luns
    others = (lun for host in vm.site.hosts() for lun in host.state.luns)
    seen = next((scsi_uuid(lun) for lun in (*own, *others) if lun.naa == disk.lun), "")
    return vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName=datastore.path(path),
        datastore=datastore.ref,
        diskMode=disk.mode,
        compatibilityMode=disk.compatibility,
        sharing=disk.sharing,
        lunUuid=seen or None,
        deviceName=f"vml.{seen}" if seen else "",
    )


def snapshot_depth(vm: "SnapshotHolder") -> int:
    """How many snapshots lie between the current one and its root."""
    parents = {each.moid: each.parent for each in vm.state.snapshots}
    depth, at = 0, vm.state.current_snapshot
    while at is not None:
        depth, at = depth + 1, parents[at]
    return depth


def _children(vm: "SnapshotHolder", parent: str | None) -> list[SnapshotState]:
    return [each for each in vm.state.snapshots if each.parent == parent]
