"""Restore points and what they hold."""

from dataclasses import dataclass, field

from atoll.model.consistency import ConsistencyProof


@dataclass(frozen=True, slots=True)
class DiskImage:
    """One disk of a restore point.

    `root` names the disk's chunk table in the repository (hex). `read_bytes` is
    what was read from the snapshot to make it, `changed_bytes` what the storage
    diff said had changed, `stored_bytes` what was added to the repository.
    `extent_map` names the disk's flattened extent map in the repository (hex),
    kept to find the next increment; empty when there is none. `luns` are those of
    the LUN group `group`; empty in points of older versions, where it is the point's.
    """

    key: int
    label: str
    path: str
    size_bytes: int
    root: str
    extent_map: str
    luns: tuple[str, ...]
    read_bytes: int
    changed_bytes: int
    stored_bytes: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a restore test saw. Free-form facts are in `facts`, e.g. `wal_replayed_bytes`."""

    proven_at: float
    passed: bool
    boot_seconds: float
    summary: str
    facts: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A VM as it was at one instant. `id` is unique in the repository and sorts by time.

    `created_at` is the snapshot's instant, seconds since the epoch. `snapshot` is
    what the storage snapshots that the next increment is measured from are called,
    one in each LUN group of its disks; `group` is the first of these. `catalogue` names the catalogue
    of its files in the repository (hex); empty when there is none.
    """

    id: str
    run: str
    vm: str
    instance_uuid: str
    created_at: float
    group: str
    snapshot: str
    incremental: bool
    proof: ConsistencyProof
    disks: tuple[DiskImage, ...]
    vmx: str
    guest_os: str
    catalogue: str = ""

    @property
    def groups(self) -> tuple[str, ...]:
        """The LUN groups that hold its snapshot, sorted."""
        return tuple(sorted({disk.group or self.group for disk in self.disks} or {self.group}))

    @property
    def blobs(self) -> frozenset[str]:
        """Names of all blobs of the repository that it needs beside its disk images."""
        return frozenset({disk.extent_map for disk in self.disks} | {self.catalogue}) - {""}
