"""What every storage engine owes, in the shape of CSI's VolumeGroupSnapshot and GetMetadataDelta."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import (
    Capabilities,
    DurabilityChoice,
    GroupSnapshot,
    Lun,
    LunGroup,
    PoolAlarm,
    PoolCapacity,
    PoolDevice,
    Presentation,
)


class StorageEngine(Protocol):
    """A storage system that keeps LUNs in groups.

    Every call is idempotent under the same names and safe to repeat after the
    caller was killed at any instruction: a half-made object is finished or
    cleared by the repeat, or by `reconcile`. Deleting what is absent succeeds.
    Raises StorageUnreachableError, PoolFullError (before anything is changed)
    and StorageConflictError. Names match `[a-z0-9][a-z0-9.-]{0,62}`.
    """

    @property
    def name(self) -> str:
        """The storage system's name in the settings."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        ...

    def capacity(self) -> PoolCapacity:
        """How full the pool is."""
        ...

    def alarms(self) -> Sequence[PoolAlarm]:
        """Thresholds of the pool that were passed, the worst first."""
        ...

    def devices(self) -> Sequence[PoolDevice]:
        """The pool's disks; StorageConflictError where the engine does not manage them."""
        ...

    def add_device(self, path: str) -> None:
        """Give the pool another empty disk while it is in use."""
        ...

    def remove_device(self, path: str) -> None:
        """Move all data off a disk and let it go, while the pool is in use.

        Takes as long as the data; cut short, it is repeated. PoolFullError, before
        anything moves, when the other disks have no room for it.
        """
        ...

    def durability_choices(self) -> Sequence[DurabilityChoice]:
        """When a write counts as written, and what each choice costs here, measured now.

        StorageConflictError where there is nothing to choose.
        """
        ...

    def groups(self) -> Sequence[LunGroup]:
        """All LUN groups, clones included, with their LUNs."""
        ...

    def create_group(self, group: str) -> LunGroup:
        """An empty LUN group."""
        ...

    def delete_group(self, group: str, *, force: bool = False) -> None:
        """Remove a group and its LUNs.

        StorageConflictError while presented or with snapshots; with `force` both go
        first, unless a clone stands on a snapshot.
        """
        ...

    def create_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """A thin LUN with an identity that never changes; StorageConflictError if the size differs."""
        ...

    def grow_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """Make a LUN larger while it is in use; never shrinks."""
        ...

    def rename_lun(self, group: str, lun: str, name: str) -> Lun:
        """Another name; identity, target and data stay, and so do older snapshots' names for it."""
        ...

    def move_lun(self, group: str, lun: str, to: str) -> Lun:
        """Put a LUN into another group, with its identity. StorageConflictError while presented.

        Snapshots of the group it leaves keep what they hold of it.
        """
        ...

    def delete_lun(self, group: str, lun: str, *, force: bool = False) -> None:
        """Remove a LUN; StorageConflictError while presented or held by a snapshot of its group.

        With `force` it is withdrawn first, and snapshots keep what they hold of it.
        """
        ...

    def require_room(self, group: str) -> None:
        """Raise PoolFullError when `snapshot_group` would now, so that nobody is held for nothing."""
        ...

    def snapshot_group(
        self, group: str, name: str, expires_at: float | None = None
    ) -> GroupSnapshot:
        """Snapshot all LUNs of a group at one instant.

        A write acknowledged on LUN A before another is issued on LUN B is never
        missing when B's is there. The engine refuses with PoolFullError before
        it holds anything when the pool is below its reserve. The same name again
        returns the snapshot that exists.
        """
        ...

    def snapshots(self, group: str) -> Sequence[GroupSnapshot]:
        """A group's snapshots, oldest first."""
        ...

    def delete_snapshot(self, group: str, name: str) -> None:
        """Remove a snapshot; StorageConflictError while a clone of it exists."""
        ...

    def keep_snapshot(
        self, group: str, name: str, expires_at: float | None = None
    ) -> GroupSnapshot:
        """Say when a snapshot may go (seconds since the epoch); None is never."""
        ...

    def annotate_snapshot(self, group: str, name: str, annotation: str) -> None:
        """Write on a snapshot what it is worth, in place of what was there; it goes with it."""
        ...

    def annotation(self, group: str, name: str) -> str | None:
        """What was written on a snapshot; None when nothing was or there is no such snapshot."""
        ...

    def expire_snapshots(self) -> Sequence[str]:
        """Delete the snapshots whose time is over, but for those with clones; `group@name` of each."""
        ...

    def revert_group(self, group: str, snapshot: str) -> LunGroup:
        """Make every LUN what it was in a snapshot, size and all; later snapshots stay.

        StorageConflictError while a LUN is presented, or when one is not in the
        snapshot. Once begun it is carried through, by the next call at the latest.
        """
        ...

    def clone(self, group: str, snapshot: str, clone: str, *, read_only: bool = False) -> LunGroup:
        """A copy of a snapshot in constant time, as a group of LUNs with identities of their own."""
        ...

    def delete_clone(self, clone: str) -> None:
        """Withdraw and remove a clone."""
        ...

    def present(self, group: str, lun: str, initiators: Sequence[str]) -> Presentation:
        """Let exactly these initiators reach the LUN, replacing the list before.

        IQNs, or `naa.` and a WWPN in 16 hex digits for Fibre Channel.
        """
        ...

    def withdraw(self, group: str, lun: str) -> None:
        """End all access to the LUN."""
        ...

    def presentations(self) -> Sequence[Presentation]:
        """What is presented now."""
        ...

    def changed_extents(self, group: str, lun: str, older: str, newer: str) -> Iterator[Extent]:
        """Ranges of the LUN that may differ between two snapshots of its group.

        Ordered, merged, a superset of what changed: never misses one. Where the
        LUN grew, the new part is listed as far as it holds data.
        """
        ...

    def open_snapshot(self, group: str, lun: str, snapshot: str) -> BlockReader:
        """Read a LUN as it was, straight from the engine."""
        ...

    def reconcile(self) -> Sequence[str]:
        """Bring the engine in line with its records after a crash; one sentence per repair.

        What no record explains is told of, and removed when that was so for the
        grace time; what is recorded and gone is told of and kept in the records.
        """
        ...

    def stop(self) -> None:
        """End what serves LUNs on this machine, whoever uses them; `reconcile` starts it again."""
        ...
