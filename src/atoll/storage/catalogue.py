"""Looks up groups, LUNs and snapshots by name, with an error for what is not there."""

from atoll.model.errors import StorageConflictError
from atoll.model.storage import Lun, LunGroup
from atoll.storage.records import GroupRecord, LunRecord, Records, SnapshotRecord


class Catalogue:
    """Read access to one system's records. Errors are StorageConflictError."""

    def __init__(self, system: str, records: Records) -> None:
        self._system = system
        self._records = records

    def group(self, record: GroupRecord) -> LunGroup:
        """The group with its LUNs."""
        luns = tuple(lun_of(record.name, lun) for lun in self._records.luns(record.id))
        origin = "@".join(record.origin) if record.origin else None
        return LunGroup(record.name, luns, origin, record.read_only)

    def known_group(self, group: str) -> GroupRecord:
        """The group's record."""
        record = self._records.group(group)
        if record is None:
            raise StorageConflictError(
                f"{self._system} has no LUN group {group}; create it or correct the name."
            )
        return record

    def find_lun(self, group: GroupRecord, lun: str) -> LunRecord | None:
        """The LUN's record, or None."""
        return next((one for one in self._records.luns(group.id) if one.name == lun), None)

    def known_lun(self, group: GroupRecord, lun: str) -> LunRecord:
        """The LUN's record."""
        record = self.find_lun(group, lun)
        if record is None:
            raise StorageConflictError(
                f"LUN group {group.name} has no LUN {lun}; create it or correct the name."
            )
        return record

    def known_snapshot(self, group: GroupRecord, name: str) -> SnapshotRecord:
        """The snapshot's record."""
        found = self._records.snapshot(group.id, name)
        if found is None:
            raise StorageConflictError(
                f"LUN group {group.name} has no snapshot {name}; it expired or was never taken."
            )
        return found

    def snapshot_volume(self, group: str, lun: str, name: str) -> tuple[SnapshotRecord, str]:
        """A snapshot and the volume that is the LUN in it.

        Names say what a LUN is called now; of one that has gone, what it was called then.
        """
        record = self.known_group(group)
        snapshot = self.known_snapshot(record, name)
        current = self.find_lun(record, lun)
        if current is not None and current.volume in snapshot.volumes:
            return snapshot, current.volume
        for then, volume, _ in snapshot.members:
            if then == lun:
                return snapshot, volume
        raise StorageConflictError(
            f"Snapshot {group}@{name} holds no LUN {lun}; it was created later or removed before."
        )


def lun_of(group: str, record: LunRecord) -> Lun:
    """The LUN a record is of."""
    identity = record.identity
    return Lun(
        record.name, group, record.size_bytes, identity.naa, identity.serial, identity.vendor,
        identity.product, record.volume, record.lost,
    )  # fmt: skip
