"""From group snapshots to a VM's restore point: map, find what changed, copy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

from atoll.blocks.changes import changed_disk_extents
from atoll.blocks.extent_map import DiskMap
from atoll.blocks.readers import MappedReader
from atoll.blocks.vmfs import VmfsVolume, open_volumes
from atoll.model.consistency import ConsistencyProof
from atoll.model.errors import RepositoryDamagedError, UnprotectableVmError
from atoll.model.extents import Extent, complement, merge, total_bytes
from atoll.model.plan import PlannedDisk, PlannedVm
from atoll.model.points import DiskImage, RestorePoint
from atoll.model.progress import Progress
from atoll.model.readers import BlockReader
from atoll.model.storage import GroupSnapshot
from atoll.repository.drafts import RunDraft
from atoll.repository.repository import Repository
from atoll.storage.interface import StorageEngine

MAX_VMX_BYTES = 1 << 20
Disks = Sequence[tuple[str, BlockReader]]
"""A VM's disks with their labels, in its order."""
Turn = Callable[[PlannedDisk], AbstractContextManager[None]]
"""Waits until a disk may be copied, and lets others have their turn afterwards."""


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """A group snapshot opened for reading: its LUNs by name, and the VMFS volumes on some of them."""

    snapshot: GroupSnapshot
    luns: Mapping[str, BlockReader]
    volumes: Sequence[VmfsVolume]
    older: frozenset[str]
    """Names of the group's other snapshots, which changes can be measured from."""
    changes: Callable[[str, str], Sequence[Extent]]
    """(LUN, older snapshot) to the ranges changed since; each pair is asked of the storage once."""

    def volume(self, disk: PlannedDisk) -> VmfsVolume:
        """The volume that a planned disk's files lie on."""
        for volume in self.volumes:
            if tuple(volume.luns) == disk.luns and volume.uuid == disk.vmfs_uuid:
                return volume
        raise UnprotectableVmError(
            f"The snapshot holds no VMFS volume {disk.vmfs_uuid} on LUN {', '.join(disk.luns)}, "
            f"where vCenter says that disk {disk.disk.path} lies; rescan the hosts and run again."
        )

    def disk_map(self, disk: PlannedDisk) -> DiskMap:
        """Where a planned disk lies on the snapshot's LUNs, with all its deltas if it has some."""
        if not disk.raw_lun:
            return self.volume(disk).disk_map(disk.disk.path)
        raw = self._raw_map(disk)
        return self.volume(disk).disk_map(disk.disk.path, raw) if disk.vmfs_uuid else raw

    def _raw_map(self, disk: PlannedDisk) -> DiskMap:
        """The whole LUN of a raw device mapping."""
        size = self.luns[disk.raw_lun].size_bytes
        if size < disk.disk.size_bytes:
            raise UnprotectableVmError(
                f"LUN {disk.raw_lun} has {size} bytes, fewer than the {disk.disk.size_bytes} of the "
                f"raw device mapping {disk.disk.path} on it; rescan the hosts and run again."
            )
        return DiskMap.of(size, (disk.raw_lun,), [(0, size, 0, 0)])


@contextmanager
def opened(
    engine: StorageEngine,
    snapshot: GroupSnapshot,
    luns: Sequence[str],
    raw_luns: Sequence[str] = (),
) -> Iterator[SnapshotView]:
    """Open the named LUNs of a snapshot for as long as the block lasts.

    `raw_luns` are disks by themselves: guests write them from the first byte on, so
    nothing there is ever taken for part of a VMFS volume.
    """
    found: dict[tuple[str, str], Sequence[Extent]] = {}

    def changes(lun: str, older: str) -> Sequence[Extent]:
        if (lun, older) not in found:
            found[lun, older] = list(
                engine.changed_extents(snapshot.group, lun, older, snapshot.name)
            )
        return found[lun, older]

    with ExitStack() as stack:
        readers: dict[str, BlockReader] = {}
        for lun in dict.fromkeys((*luns, *raw_luns)):
            reader = engine.open_snapshot(snapshot.group, lun, snapshot.name)
            stack.callback(reader.close)
            readers[lun] = reader
        yield SnapshotView(
            snapshot=snapshot,
            luns=readers,
            volumes=open_volumes({lun: readers[lun] for lun in luns}),
            older=frozenset(each.name for each in engine.snapshots(snapshot.group)),
            changes=changes,
        )


def copy_vm(
    planned: PlannedVm,
    views: Mapping[str, SnapshotView],
    proof: ConsistencyProof,
    run: str,
    repository: Repository,
    parent: RestorePoint | None,
    progress: Progress,
    turn: Turn,
    catalogued: Callable[[Disks], str] = lambda disks: "",
    draft: RunDraft | None = None,
) -> RestorePoint:
    """Copy all disks of a VM, each inside its `turn`; its restore point, not yet committed.

    `catalogued` then reads the same disks once more, and names the catalogue of their files.

    `views` are the opened snapshots by LUN group. With a `parent` only what may
    have changed since is read; a disk that the parent does not have, or whose
    group has no longer the parent's storage snapshot, is read in full. With a
    `draft`, what an earlier process had copied is not read again.
    """
    vm = planned.vm
    work = [_disk_work(disk, views[disk.group], repository, parent) for disk in planned.disks]
    progress.stage(vm.name, "copy", sum(item.bytes_to_read for item in work))
    disks = []
    for disk, item in zip(planned.disks, work, strict=True):
        with turn(disk):
            copied = repository.copy_disk(
                item.reader,
                extents=item.extents,
                parent=item.parent,
                progress=lambda done: progress.advance(vm.name, done),
                draft=draft.disk(vm.instance_uuid, disk.disk.key) if draft else None,
            )
        disks.append(
            replace(
                item.image,
                root=copied.root,
                extent_map=repository.put_blob(item.disk_map.to_bytes()),
                read_bytes=copied.read_bytes,
                stored_bytes=copied.stored_bytes,
            )
        )
    progress.stage(vm.name, "catalogue")
    with turn(planned.disks[0]):
        readers = [
            (disk.disk.label, item.reader) for disk, item in zip(planned.disks, work, strict=True)
        ]
        catalogue = catalogued(readers)
    return RestorePoint(
        id=f"{run}-{vm.instance_uuid}",
        run=run,
        vm=vm.name,
        instance_uuid=vm.instance_uuid,
        created_at=proof.snapshot_started_at,
        group=proof.group,
        snapshot=proof.snapshot,
        incremental=all(item.parent is not None for item in work),
        proof=proof,
        disks=tuple(disks),
        vmx=_vmx(planned, views),
        guest_os=vm.guest_os,
        catalogue=catalogue,
    )


@dataclass(frozen=True, slots=True)
class _DiskWork:
    reader: BlockReader
    disk_map: DiskMap
    extents: Sequence[Extent] | None
    parent: DiskImage | None
    image: DiskImage
    bytes_to_read: int


def _disk_work(
    planned: PlannedDisk,
    view: SnapshotView,
    repository: Repository,
    parent_point: RestorePoint | None,
) -> _DiskWork:
    disk = planned.disk
    disk_map = view.disk_map(planned)
    reader = MappedReader(disk_map, view.luns)
    parent = _parent_disk(planned, view, parent_point)
    extents: Sequence[Extent] | None = None
    old = _parent_map(parent, repository)
    # On LUNs the older snapshot may not have, or with a damaged map, it is read in full.
    if (
        parent_point is None
        or parent is None
        or old is None
        or not set(disk_map.luns) <= set(old.luns)
    ):
        parent = None
    else:
        changed = {lun: view.changes(lun, parent_point.snapshot) for lun in disk_map.luns}
        extents = changed_disk_extents(old, disk_map, changed)
    size = disk_map.size_bytes
    if extents is None or parent is None:
        changed_bytes = to_read = total_bytes(complement(merge(reader.holes()), size))
    else:
        changed_bytes = total_bytes(extents)
        to_read = repository.bytes_to_copy(extents, parent, size)
    return _DiskWork(
        reader=reader,
        disk_map=disk_map,
        extents=extents,
        parent=parent,
        bytes_to_read=to_read,
        image=DiskImage(
            key=disk.key,
            label=disk.label,
            path=f"[{disk.datastore}] {disk.path}",
            size_bytes=size,
            root="",
            extent_map="",
            luns=tuple(disk_map.luns),
            read_bytes=0,
            changed_bytes=changed_bytes,
            stored_bytes=0,
            group=planned.group,
        ),
    )


def _parent_map(parent: DiskImage | None, repository: Repository) -> DiskMap | None:
    if parent is None:
        return None
    try:
        return DiskMap.from_bytes(repository.get_blob(parent.extent_map))
    except RepositoryDamagedError:
        return None


def _parent_disk(
    planned: PlannedDisk, view: SnapshotView, point: RestorePoint | None
) -> DiskImage | None:
    """The disk as it was, if the storage can still say what changed since."""
    if point is None or point.snapshot not in view.older:
        return None
    for disk in point.disks:
        if disk.key == planned.disk.key and (disk.group or point.group) == planned.group:
            return disk
    return None


def _vmx(planned: PlannedVm, views: Mapping[str, SnapshotView]) -> str:
    """The VM's configuration file, or nothing when it lies on a volume of another group."""
    datastore, _, path = planned.vm.vmx_path.partition("] ")
    for disk in planned.disks:
        if disk.vmfs_uuid and disk.disk.datastore == datastore.lstrip("["):
            raw = views[disk.group].volume(disk).read_file(path, MAX_VMX_BYTES)
            return raw.decode("utf-8", "replace")
    return ""
