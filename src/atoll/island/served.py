"""VMs as they were at one instant, for whoever serves them: from a run's snapshots or a restore point.

Opening is left to the moment somebody looks: a run may have a thousand VMs, and
a job reads one of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from atoll.blocks.changes import changed_disk_extents
from atoll.blocks.readers import MappedReader
from atoll.island.copy import MAX_VMX_BYTES, SnapshotView
from atoll.model.certificate import Certificate, CertifiedDisk, CertifiedVm
from atoll.model.consistency import Consistency
from atoll.model.extents import Extent
from atoll.model.inventory import VirtualDisk
from atoll.model.plan import PlannedDisk
from atoll.model.points import DiskImage, RestorePoint
from atoll.model.readers import BlockReader
from atoll.repository.repository import Repository

MAX_NVRAM_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk of a served VM. `key` is the device's, `path` where it lay, `[datastore] folder/x.vmdk`.

    `open` gives a reader of the disk's bytes, which the caller closes. `changed` gives the ranges
    that may differ from an older state, ordered and merged, none missed; None without an older one.
    """

    key: int
    label: str
    path: str
    size_bytes: int
    open: Callable[[], BlockReader]
    changed: Callable[[], Iterable[Extent]] | None = None

    @property
    def file(self) -> str:
        """The name of its VMDK."""
        return self.path.rpartition("/")[2].rpartition("] ")[2]


@dataclass(frozen=True, slots=True)
class ServedVm:
    """A VM at one instant, `taken_at` in seconds since the epoch.

    `configuration` gives the small files beside the disks, VMX and NVRAM, by
    name; those that the source does not have are left out. `since` is the older run that its
    disks' changes are measured from, empty when there is none.
    """

    name: str
    instance_uuid: str
    run: str
    taken_at: float
    consistency: Consistency
    guest_os: str
    configuration: Callable[[], dict[str, bytes]]
    disks: tuple[ServedDisk, ...]
    since: str = ""


def point_vm(
    repository: Repository, point: RestorePoint, since: RestorePoint | None = None
) -> ServedVm:
    """A VM from its restore point; with `since`, an older point of it, what changed is known."""

    def configuration() -> dict[str, bytes]:
        return {f"{point.vm}.vmx": point.vmx.encode()} if point.vmx else {}

    def disk(image: DiskImage) -> ServedDisk:
        return ServedDisk(
            key=image.key,
            label=image.label,
            path=image.path,
            size_bytes=image.size_bytes,
            open=lambda: repository.open_disk(image),
            changed=_changed_between(repository, image, since) if since else None,
        )

    return ServedVm(
        name=point.vm,
        instance_uuid=point.instance_uuid,
        run=point.run,
        taken_at=point.created_at,
        consistency=point.proof.consistency,
        guest_os=point.guest_os,
        configuration=configuration,
        disks=tuple(map(disk, point.disks)),
        since=since.run if since else "",
    )


@dataclass(frozen=True, slots=True)
class Snapshots:
    """A run's snapshots: its VMs as certified, and the opened snapshot of a LUN group by its name."""

    certificate: Certificate
    view: Callable[[str], SnapshotView]

    def disk(self, vm: str, key: int) -> CertifiedDisk | None:
        """A VM's disk by the VM's instance UUID and the device key."""
        for known in self.certificate.vms:
            if known.instance_uuid == vm:
                return next((disk for disk in known.disks if disk.key == key), None)
        return None


def snapshot_vm(
    vm: CertifiedVm, taken_at: float, run: Snapshots, since: Snapshots | None = None
) -> ServedVm:
    """A VM of a run straight from its snapshots, which must stay open as long as it is served.

    With `since`, an older run, what changed is known from the storage's own diff.
    """
    disks = tuple(
        ServedDisk(
            key=disk.key,
            label=f"disk {number}",
            path=disk.path,
            size_bytes=disk.size_bytes,
            open=_opener(disk, run.view),
            changed=_changed_since(vm, disk, run, since) if since else None,
        )
        for number, disk in enumerate(vm.disks, 1)
    )
    return ServedVm(
        name=vm.name,
        instance_uuid=vm.instance_uuid,
        run=run.certificate.run,
        taken_at=taken_at,
        consistency=vm.consistency,
        guest_os=vm.guest_os,
        configuration=lambda: _configuration(vm, run.view),
        disks=disks,
        since=since.certificate.run if since else "",
    )


def _changed_between(
    repository: Repository, image: DiskImage, since: RestorePoint
) -> Callable[[], Iterable[Extent]]:
    def changed() -> Iterable[Extent]:
        for older in since.disks:
            if older.key == image.key:
                return repository.changed_extents(older, image)
        return [Extent(0, image.size_bytes)]

    return changed


def _changed_since(
    vm: CertifiedVm, disk: CertifiedDisk, run: Snapshots, since: Snapshots
) -> Callable[[], Iterable[Extent]]:
    def changed() -> Iterable[Extent]:
        newer = run.view(disk.group)
        disk_map = newer.disk_map(_planned(disk))
        before = since.disk(vm.instance_uuid, disk.key)
        if before is None or before.group != disk.group:
            return [Extent(0, disk_map.size_bytes)]
        older = since.view(disk.group)
        old_map = older.disk_map(_planned(before))
        # A LUN that the disk did not lie on before may not be in the older snapshot.
        common = [lun for lun in disk_map.luns if lun in old_map.luns]
        ranges = {lun: newer.changes(lun, older.snapshot.name) for lun in common}
        return changed_disk_extents(old_map, disk_map, ranges)

    return changed


def _opener(disk: CertifiedDisk, view: Callable[[str], SnapshotView]) -> Callable[[], BlockReader]:
    planned = _planned(disk)

    def open_disk() -> BlockReader:
        opened = view(disk.group)
        return MappedReader(opened.disk_map(planned), opened.luns)

    return open_disk


def _planned(disk: CertifiedDisk) -> PlannedDisk:
    datastore, inside = _split(disk.path)
    virtual = VirtualDisk(disk.key, "", datastore, inside, disk.size_bytes, "persistent")
    return PlannedDisk(virtual, disk.group, disk.vmfs_uuid, disk.luns, disk.raw_lun)


def _configuration(vm: CertifiedVm, view: Callable[[str], SnapshotView]) -> dict[str, bytes]:
    datastore, vmx = _split(vm.vmx)
    home = next(
        (disk for disk in vm.disks if disk.luns and _split(disk.path)[0] == datastore), None
    )
    if home is None:
        return {}  # on a datastore of no group of this run, or of no disk in it
    volume = view(home.group).volume(_planned(home))
    folder = vmx.rpartition("/")[0]
    found = {}
    for name in volume.listdir(folder):
        if name.endswith((".vmx", ".nvram", ".vmxf", ".vmsd")):
            limit = MAX_NVRAM_BYTES if name.endswith(".nvram") else MAX_VMX_BYTES
            found[name] = volume.read_file(f"{folder}/{name}", limit)
    return found


def _split(path: str) -> tuple[str, str]:
    store, _, inside = path.partition("] ")
    return store.removeprefix("["), inside
