"""Looks up groups, LUNs and snapshots, in records and on disk, with an error for what is not there."""

from pathlib import Path

from atoll.model.errors import StorageConflictError, StorageUnreachableError
from atoll.model.storage import GroupSnapshot, Lun, LunGroup
from atoll.storage.drivers.embedded.identity import identity_of
from atoll.storage.drivers.embedded.pool import Pool, settle
from atoll.storage.drivers.embedded.records import GroupRecord, LunRecord


class Catalogue:
    """Read access to one pool. Errors are StorageConflictError for names nobody knows."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._records = pool.records

    def group(self, record: GroupRecord) -> LunGroup:
        """The group with its LUNs."""
        luns = tuple(self.lun(lun) for lun in self._records.luns(record.name))
        return LunGroup(record.name, luns, "@".join(record.origin) if record.origin else None)

    def lun(self, record: LunRecord) -> Lun:
        """The LUN with its size; StorageUnreachableError when its image is gone."""
        path = self._pool.image(record.group, record.name)
        settle(self._pool.group(record.group))
        settle(path)
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError as error:
            raise StorageUnreachableError(
                f"LUN {record.group}/{record.name} is recorded but its image {path} is gone; "
                "restore it from a snapshot or delete the LUN."
            ) from error
        identity = identity_of(record.uuid)
        return Lun(record.name, record.group, size_bytes, identity.naa, identity.serial)

    def known_group(self, group: str) -> GroupRecord:
        """The group's record."""
        record = self._records.group(group)
        if record is None:
            raise StorageConflictError(
                f"The pool {self._pool.name} has no LUN group {group}; create it or correct the "
                "name."
            )
        return record

    def lun_record(self, group: str, lun: str) -> LunRecord | None:
        """The LUN's record, or None."""
        return next((one for one in self._records.luns(group) if one.name == lun), None)

    def known_lun(self, group: str, lun: str) -> LunRecord:
        """The LUN's record."""
        record = self.lun_record(group, lun)
        if record is None:
            self.known_group(group)
            raise StorageConflictError(
                f"LUN group {group} has no LUN {lun}; create it or correct the name."
            )
        return record

    def known_snapshot(self, group: str, name: str) -> GroupSnapshot:
        """The snapshot, in its place."""
        found = self._records.snapshot(group, name)
        if found is None:
            raise StorageConflictError(
                f"LUN group {group} has no snapshot {name}; it expired or was never taken."
            )
        settle(self._pool.snapshot(group, name))
        return found

    def snapshot_image(self, group: str, name: str, lun: str) -> Path:
        """A LUN's bytes in a snapshot."""
        taken = self.known_snapshot(group, name)
        if lun not in dict(taken.lun_sizes):
            raise StorageConflictError(
                f"Snapshot {group}@{name} holds no LUN {lun}; it was created later or removed "
                "before."
            )
        return self._pool.snapshot_image(group, name, lun)
