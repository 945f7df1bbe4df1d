"""What one run will do, decided before anything is touched."""

from dataclasses import dataclass

from atoll.model.inventory import VirtualDisk, VirtualMachine


@dataclass(frozen=True, slots=True)
class PlannedDisk:
    """A disk, its LUN group, and the LUNs below it (names in the order of the volume's extents)."""

    disk: VirtualDisk
    group: str
    vmfs_uuid: str
    luns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlannedVm:
    """A VM of the job with its disks."""

    vm: VirtualMachine
    disks: tuple[PlannedDisk, ...]
    has_agent: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One run over one LUN group."""

    run: str
    group: str
    vms: tuple[PlannedVm, ...]
    bystanders: tuple[str, ...]
    """VMs with a disk on the group that are not in the job; for them the snapshot is crash-consistent."""

    @property
    def luns(self) -> tuple[str, ...]:
        """Names of the LUNs the disks lie on, sorted."""
        return tuple(sorted({lun for vm in self.vms for disk in vm.disks for lun in disk.luns}))
