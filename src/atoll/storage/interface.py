"""What every storage engine owes, in the shape of CSI's VolumeGroupSnapshot and GetMetadataDelta."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import GroupSnapshot, Lun, LunGroup, PoolCapacity, Presentation


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

    def capacity(self) -> PoolCapacity:
        """How full the pool is."""
        ...

    def groups(self) -> Sequence[LunGroup]:
        """All LUN groups, clones included, with their LUNs."""
        ...

    def create_group(self, group: str) -> LunGroup:
        """An empty LUN group."""
        ...

    def delete_group(self, group: str) -> None:
        """Remove a group and its LUNs; StorageConflictError while presented or with snapshots."""
        ...

    def create_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """A thin LUN with an identity that never changes; StorageConflictError if the size differs."""
        ...

    def grow_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """Make a LUN larger while it is in use; never shrinks."""
        ...

    def delete_lun(self, group: str, lun: str) -> None:
        """Remove a LUN; StorageConflictError while presented."""
        ...

    def require_room(self, group: str) -> None:
        """Raise PoolFullError when `snapshot_group` would now, so that nobody is held for nothing."""
        ...

    def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
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

    def clone(self, group: str, snapshot: str, clone: str) -> LunGroup:
        """A writable copy of a snapshot in constant time, as a group of LUNs with identities of their own."""
        ...

    def delete_clone(self, clone: str) -> None:
        """Withdraw and remove a clone."""
        ...

    def present(self, group: str, lun: str, initiators: Sequence[str]) -> Presentation:
        """Let exactly these initiators (IQNs) reach the LUN, replacing the list before."""
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
        """Bring the engine in line with its records after a crash; returns one sentence per repair."""
        ...
