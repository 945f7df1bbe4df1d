"""VMs as they were at one instant, for whoever serves them: from a run's snapshots or a restore point.

Opening is left to the moment somebody looks: a run may have a thousand VMs, and
a job reads one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from atoll.blocks.readers import MappedReader
from atoll.island.copy import MAX_VMX_BYTES, SnapshotView
from atoll.model.certificate import CertifiedDisk, CertifiedVm
from atoll.model.consistency import Consistency
from atoll.model.inventory import VirtualDisk
from atoll.model.plan import PlannedDisk
from atoll.model.points import DiskImage, RestorePoint
from atoll.model.readers import BlockReader
from atoll.repository.repository import Repository

MAX_NVRAM_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """A disk of a served VM. `key` is the device's, `path` where it lay, `[datastore] folder/x.vmdk`.

    `open` gives a reader of the disk's bytes, which the caller closes.
    """

    key: int
    label: str
    path: str
    size_bytes: int
    open: Callable[[], BlockReader]

    @property
    def file(self) -> str:
        """The name of its VMDK."""
        return self.path.rpartition("/")[2].rpartition("] ")[2]


@dataclass(frozen=True, slots=True)
class ServedVm:
    """A VM at one instant, `taken_at` in seconds since the epoch.

    `configuration` gives the small files beside the disks, VMX and NVRAM, by
    name; those that the source does not have are left out.
    """

    name: str
    instance_uuid: str
    run: str
    taken_at: float
    consistency: Consistency
    guest_os: str
    configuration: Callable[[], dict[str, bytes]]
    disks: tuple[ServedDisk, ...]


def point_vm(repository: Repository, point: RestorePoint) -> ServedVm:
    """A VM from its restore point."""

    def configuration() -> dict[str, bytes]:
        return {f"{point.vm}.vmx": point.vmx.encode()} if point.vmx else {}

    def disk(image: DiskImage) -> ServedDisk:
        return ServedDisk(
            key=image.key,
            label=image.label,
            path=image.path,
            size_bytes=image.size_bytes,
            open=lambda: repository.open_disk(image),
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
    )


def snapshot_vm(
    vm: CertifiedVm, run: str, taken_at: float, view: Callable[[str], SnapshotView]
) -> ServedVm:
    """A VM straight from storage snapshots; `view` gives the opened snapshot of a LUN group.

    The views must stay open as long as the VM is served.
    """
    disks = tuple(
        ServedDisk(
            key=disk.key,
            label=f"disk {number}",
            path=disk.path,
            size_bytes=disk.size_bytes,
            open=_opener(disk, view),
        )
        for number, disk in enumerate(vm.disks, 1)
    )
    return ServedVm(
        name=vm.name,
        instance_uuid=vm.instance_uuid,
        run=run,
        taken_at=taken_at,
        consistency=vm.consistency,
        guest_os=vm.guest_os,
        configuration=lambda: _configuration(vm, view),
        disks=disks,
    )


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
