"""What one run will do, decided before anything is touched."""

from dataclasses import dataclass

from atoll.model.consistency import Consistency
from atoll.model.inventory import VirtualDisk, VirtualMachine


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """A disk, its LUN group, and the LUNs below it.

    `luns` are those of the VMFS volume `vmfs_uuid` that its files lie on, in the
    order of the volume's extents; both are empty for a raw device mapping without
    VMware snapshots, which lies on `raw_lun` alone. With VMware snapshots it lies on
    both. `shared_with` names other VMs that run and have the disk too.
    """

    disk: VirtualDisk
    group: str
    vmfs_uuid: str
    luns: tuple[str, ...]
    raw_lun: str = ""
    shared_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """A VM of the job with its disks."""

    vm: VirtualMachine
    disks: tuple[PlannedDisk, ...]
    has_agent: bool

    @property
    def groups(self) -> tuple[str, ...]:
        """The LUN groups its disks lie in, sorted."""
        return tuple(sorted({disk.group for disk in self.disks}))


@dataclass(frozen=True, slots=True)
class Bystander:
    """A VM with a disk on a LUN group of the run that is not in the job, and so is not held.

    `consistency` is what the run's snapshots hold of it, and `reason` why no more.
    """

    name: str
    instance_uuid: str
    consistency: Consistency
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: every LUN group that a disk of its VMs lies in is snapshot within one hold."""

    run: str
    vms: tuple[PlannedVm, ...]
    bystanders: tuple[Bystander, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the LUN groups, sorted."""
        return tuple(sorted({group for vm in self.vms for group in vm.groups}))

    def luns(self, group: str) -> tuple[str, ...]:
        """Names of a group's LUNs with VMFS volumes that the disks lie on, sorted."""
        return tuple(sorted({lun for disk in self._disks(group) for lun in disk.luns}))

    def raw_luns(self, group: str) -> tuple[str, ...]:
        """Names of a group's LUNs that are disks by themselves, by raw device mappings, sorted."""
        return tuple(sorted({disk.raw_lun for disk in self._disks(group) if disk.raw_lun}))

    def _disks(self, group: str) -> list[PlannedDisk]:
        return [disk for vm in self.vms for disk in vm.disks if disk.group == group]
