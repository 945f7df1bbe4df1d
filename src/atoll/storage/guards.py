"""What must not be done while something stands in its way; each refusal is a StorageConflictError."""

from collections.abc import Sequence

from atoll.model.errors import StorageConflictError
from atoll.storage.records import GroupRecord, LunRecord, Records, SnapshotRecord


class Guards:
    """Looks into the records. Callers hold the group's lock."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def not_read_only(self, group: GroupRecord) -> None:
        """Refuse what would change a read-only clone."""
        if group.read_only:
            raise StorageConflictError(
                f"{group.name} is a read-only clone and stays as it is; make a writable one."
            )

    def no_clone(self, group: GroupRecord) -> None:
        """Refuse LUNs that would join or leave a clone.

        A clone goes with all that is in it, and stands on its origin's snapshot.
        """
        if group.origin is not None:
            raise StorageConflictError(
                f"{group.name} is a clone, which LUNs neither join nor leave; copy the data "
                "instead."
            )

    def not_presented(self, group: GroupRecord, luns: Sequence[LunRecord]) -> None:
        """Refuse what would pull a LUN from under its hosts."""
        presented = self._records.presented(group.id)
        if names := [f"{group.name}/{lun.name}" for lun in luns if lun.volume in presented]:
            raise StorageConflictError(f"LUN {', '.join(names)} is presented; withdraw it first.")

    def not_held(self, group: GroupRecord, lun: LunRecord) -> None:
        """Refuse to delete a LUN that snapshots of its group hold."""
        holding = [
            each.taken.name
            for each in self._records.snapshots(group.id)
            if lun.volume in each.volumes
        ]
        if holding:
            raise StorageConflictError(
                f"LUN {group.name}/{lun.name} is in {len(holding)} snapshots, {holding[0]} the "
                "oldest; delete them first, or force it: they keep what they hold."
            )

    def no_snapshots(self, group: GroupRecord) -> None:
        """Refuse to delete a group with snapshots."""
        if taken := self._records.snapshots(group.id):
            raise StorageConflictError(
                f"LUN group {group.name} has {len(taken)} snapshots, {taken[0].taken.name} the "
                "oldest; delete them first."
            )

    def not_cloned(self, group: GroupRecord, snapshot: SnapshotRecord) -> None:
        """Refuse to delete a snapshot that clones stand on."""
        if clones := self._records.clones_of(snapshot.id):
            raise StorageConflictError(
                f"Snapshot {group.name}@{snapshot.taken.name} carries {', '.join(clones)}; delete "
                "the clone first."
            )
