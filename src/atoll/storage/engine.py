"""ManagedEngine: the rules of the storage server, once, over any backend."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from atoll.model.errors import AtollError, StorageConflictError
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
from atoll.storage.backend import (
    Chap,
    DeviceBackend,
    DurabilityBackend,
    Place,
    VolumeBackend,
)
from atoll.storage.catalogue import Catalogue, lun_of
from atoll.storage.exports import Exports
from atoll.storage.guards import Guards
from atoll.storage.identity import check_initiator, check_name, target_id, target_name
from atoll.storage.limits import Allowances, Limits
from atoll.storage.locks import Locks
from atoll.storage.records import GroupRecord, LunRecord, Owed, Records, SnapshotRecord
from atoll.storage.repair import Repair

RUN = Path("/run/atoll")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a system's admin decided.

    What no record explains is removed after `grace_seconds`. `chap` is by
    initiator.
    """

    allowed: Allowances = field(default_factory=Allowances)
    grace_seconds: float = 7 * 86400
    chap: Mapping[str, Chap] = field(default_factory=dict)


class ManagedEngine:
    """A StorageEngine over a backend, remembering in `records` what exists.

    An object is owed for removal before the backend makes it, and recorded when
    it is made; it is forgotten, and owed again, before the backend removes it.
    So the records alone say what exists, and the next call on the same group
    clears what a killed one left.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        open_backend: Callable[[Place], VolumeBackend],
        rules: Rules | None = None,
        reading: Callable[[BlockReader], BlockReader] = lambda reader: reader,
    ) -> None:
        """`reading` is put around each LUN that is read."""
        self._name = name
        self._reading = reading
        self._records = records
        rules = rules or Rules()
        system_id = records.system_id
        self._run = RUN / system_id
        self._locks = Locks(self._run)
        self._backend = open_backend(Place(self._run, records, system_id))
        self._exports = Exports(self._backend, records, rules.chap)
        self._catalogue = Catalogue(name, records)
        self._guards = Guards(records)
        self._limits = Limits(name, self._backend, records, rules.allowed)
        self._repair = Repair(
            self._backend, records, self._locks, self._exports, rules.grace_seconds
        )
        self._repair.release()

    @property
    def name(self) -> str:
        """The storage system's name in the settings."""
        return self._name

    @property
    def runtime_directory(self) -> Path:
        """Sockets, locks and logs."""
        return self._run

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return self._backend.capabilities

    def capacity(self) -> PoolCapacity:
        """How full the pool is."""
        return self._limits.capacity()

    def alarms(self) -> Sequence[PoolAlarm]:
        """Thresholds of the pool that were passed, the worst first."""
        return self._limits.alarms()

    def devices(self) -> Sequence[PoolDevice]:
        """The pool's disks."""
        return self._devices().devices()

    def add_device(self, path: str) -> None:
        """Give the pool another empty disk while it is in use."""
        with self._locks.held("_devices"):
            self._devices().add_device(path)

    def remove_device(self, path: str) -> None:
        """Move all data off a disk and let it go, while the pool is in use."""
        with self._locks.held("_devices"):
            self._devices().remove_device(path)

    def durability_choices(self) -> Sequence[DurabilityChoice]:
        """When a write counts as written, and what each choice costs here."""
        if not isinstance(self._backend, DurabilityBackend):
            raise StorageConflictError(
                f"{self._name} acknowledges writes as its storage system does; there is nothing to "
                "choose here."
            )
        return self._backend.durability_choices()

    def groups(self) -> Sequence[LunGroup]:
        """All LUN groups, clones included."""
        return [self._catalogue.group(record) for record in self._records.groups()]

    def create_group(self, group: str) -> LunGroup:
        """An empty LUN group."""
        check_name("LUN group", group)
        with self._changing(group):
            record = self._records.group(group)
            if record is None:
                self._limits.require_room()
                made = uuid4().hex
                with self._making(Owed("group", group, made, made)):
                    self._backend.create_group(made)
                    self._records.add_group(made, group)
            elif record.origin is not None:
                raise StorageConflictError(
                    f"{group} is a clone of {'@'.join(record.origin)}; choose another name for "
                    "the LUN group."
                )
            return self._catalogue.group(self._catalogue.known_group(group))

    def delete_group(self, group: str, *, force: bool = False) -> None:
        """Remove a group and its LUNs, with `force` also what is presented and snapshots."""
        with self._changing(group):
            record = self._records.group(group)
            if record is not None:
                self._delete_group(record, force=force)

    def create_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """A thin LUN."""
        check_name("LUN", lun)
        self._check_size(lun, size_bytes)
        with self._changing(group):
            record = self._catalogue.known_group(group)
            found = self._catalogue.find_lun(record, lun)
            if found is None:
                self._guards.not_read_only(record)
                self._limits.require_room()
                self._limits.require_promise(size_bytes)
                found = self._create_lun(record, lun, size_bytes)
            if found.size_bytes != size_bytes:
                raise StorageConflictError(
                    f"LUN {group}/{lun} exists with {found.size_bytes} bytes, not {size_bytes}; "
                    "grow it or choose another name."
                )
            return lun_of(group, found)

    def grow_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """Make a LUN larger while it is in use."""
        self._check_size(lun, size_bytes)
        with self._changing(group):
            record = self._catalogue.known_group(group)
            found = self._catalogue.known_lun(record, lun)
            if size_bytes < found.size_bytes:
                raise StorageConflictError(
                    f"LUN {group}/{lun} has {found.size_bytes} bytes and cannot shrink to "
                    f"{size_bytes}; create a smaller LUN and move the data."
                )
            self._guards.not_read_only(record)
            if size_bytes > found.size_bytes:
                self._limits.require_promise(size_bytes - found.size_bytes)
                self._records.resize_lun(found.volume, size_bytes)
            # Also when it was recorded before: who did may have died before this.
            self._backend.grow_volume(record.id, found.volume, size_bytes)
            if found.volume in self._records.presented(record.id):
                self._exports.apply(record)
            return lun_of(group, replace(found, size_bytes=size_bytes))

    def rename_lun(self, group: str, lun: str, name: str) -> Lun:
        """Another name for a LUN, which changes nothing else."""
        check_name("LUN", name)
        with self._changing(group):
            record = self._catalogue.known_group(group)
            found, taken = (self._catalogue.find_lun(record, each) for each in (lun, name))
            if found is None and taken is not None:  # it was renamed before
                return lun_of(group, taken)
            found = self._catalogue.known_lun(record, lun)
            if taken is not None and taken != found:
                raise StorageConflictError(
                    f"LUN group {group} has a LUN {name} already; choose another name."
                )
            self._records.rename_lun(found.volume, name)
            return lun_of(group, replace(found, name=name))

    def move_lun(self, group: str, lun: str, to: str) -> Lun:
        """Put a LUN into another group, with its identity."""
        with self._changing(group, to):
            record, target = (self._catalogue.known_group(name) for name in (group, to))
            found, taken = (
                self._catalogue.find_lun(record, lun),
                self._catalogue.find_lun(target, lun),
            )
            if found is None and taken is not None:  # it was moved before
                return lun_of(to, taken)
            found = self._catalogue.known_lun(record, lun)
            if group == to:
                return lun_of(group, found)
            self._guards.no_clone(record)
            self._guards.no_clone(target)
            if taken is not None:
                raise StorageConflictError(
                    f"LUN group {to} has a LUN {lun} already; rename one of them first."
                )
            self._guards.not_presented(record, [found])
            self._exports.apply(record)  # whoever withdrew it may have died before this
            self._records.begin_move(found.volume, target.id)
            self._repair.finish(to)
            return lun_of(to, found)

    def delete_lun(self, group: str, lun: str, *, force: bool = False) -> None:
        """Remove a LUN; with `force` also one in use, of which snapshots keep what they hold."""
        with self._changing(group):
            record = self._records.group(group)
            found = self._catalogue.find_lun(record, lun) if record else None
            if record is None or found is None:
                return
            if force:
                self._records.present(found.volume, ())
            else:
                self._guards.not_presented(record, [found])
                self._guards.not_held(record, found)
            self._exports.apply(record)
            self._records.remove_lun(
                record, found.volume, always=not self._backend.snapshots_need_volume
            )
            self._repair.finish(group)

    def require_room(self, group: str) -> None:
        """Refuse when the pool is below its reserve, whatever the group."""
        self._limits.require_room()

    def snapshot_group(
        self, group: str, name: str, expires_at: float | None = None
    ) -> GroupSnapshot:
        """Snapshot all LUNs of a group at one instant."""
        check_name("snapshot", name)
        with self._changing(group):
            record = self._catalogue.known_group(group)
            existing = self._records.snapshot(record.id, name)
            if existing is not None:
                return existing.taken
            self._limits.require_room()
            return self._take(record, name, expires_at).taken

    def snapshots(self, group: str) -> Sequence[GroupSnapshot]:
        """A group's snapshots, oldest first; none of a group that is not there."""
        record = self._records.group(group)
        return [each.taken for each in self._records.snapshots(record.id)] if record else []

    def keep_snapshot(
        self, group: str, name: str, expires_at: float | None = None
    ) -> GroupSnapshot:
        """Say when a snapshot may go; None is never."""
        with self._changing(group):
            found = self._catalogue.known_snapshot(self._catalogue.known_group(group), name)
            self._records.keep_snapshot(found.id, expires_at)
            return replace(found.taken, expires_at=expires_at)

    def annotate_snapshot(self, group: str, name: str, annotation: str) -> None:
        """Write on a snapshot what it is worth."""
        with self._changing(group):
            found = self._catalogue.known_snapshot(self._catalogue.known_group(group), name)
            self._records.annotate(found.id, annotation)

    def annotation(self, group: str, name: str) -> str | None:
        """What was written on a snapshot."""
        record = self._records.group(group)
        found = self._records.snapshot(record.id, name) if record else None
        return self._records.annotation(found.id) if found else None

    def expire_snapshots(self) -> Sequence[str]:
        """Delete the snapshots whose time is over, but for those with clones."""
        gone = []
        for record in self._records.groups():
            for each in self._records.snapshots(record.id):
                due = each.taken.expires_at
                if due is None or due > time.time() or self._records.clones_of(each.id):
                    continue
                self.delete_snapshot(record.name, each.taken.name)
                gone.append(f"{record.name}@{each.taken.name}")
        return gone

    def delete_snapshot(self, group: str, name: str) -> None:
        """Remove a snapshot."""
        with self._changing(group):
            record = self._records.group(group)
            found = self._records.snapshot(record.id, name) if record else None
            if record is None or found is None:
                return
            self._guards.not_cloned(record, found)
            self._records.remove_snapshot(record, found)
            self._repair.finish(group)

    def revert_group(self, group: str, snapshot: str) -> LunGroup:
        """Make every LUN what it was in a snapshot."""
        with self._changing(group):
            record = self._catalogue.known_group(group)
            found = self._catalogue.known_snapshot(record, snapshot)
            if not self._backend.capabilities.revert:
                raise StorageConflictError(
                    f"The storage system {self._name} cannot revert {group} to {snapshot}; clone "
                    "the snapshot and present the clone instead."
                )
            luns = self._records.luns(record.id)
            self._guards.not_read_only(record)
            self._guards.not_presented(record, luns)
            if later := [lun.name for lun in luns if lun.volume not in found.volumes]:
                raise StorageConflictError(
                    f"Snapshot {group}@{snapshot} does not hold LUN {', '.join(later)}; move it to "
                    "another group or delete it first."
                )
            self._exports.apply(record)  # whoever withdrew it may have died before this
            now = {lun.volume: lun.size_bytes for lun in luns}
            sizes = {volume: size for _, volume, size in found.members if volume in now}
            self._records.begin_revert(record.id, found.id, sizes)
            try:
                self._repair.finish(group)
            except StorageConflictError:  # the system cannot, and has not begun
                self._records.abandon_revert(record.id, found.id, now)
                raise
            return self._catalogue.group(record)

    def clone(self, group: str, snapshot: str, clone: str, *, read_only: bool = False) -> LunGroup:
        """A copy of a snapshot as a group of its own."""
        check_name("clone", clone)
        with self._changing(group, clone):
            record = self._records.group(clone)
            if record is None:
                origin = self._catalogue.known_group(group)
                found = self._catalogue.known_snapshot(origin, snapshot)
                if read_only and not self._backend.capabilities.read_only_clones:
                    raise StorageConflictError(
                        f"The storage system {self._name} cannot keep initiators from writing to "
                        f"a clone; make {clone} a writable one."
                    )
                self._clone(found, clone, read_only=read_only)
            elif record.origin != (group, snapshot) or record.read_only != read_only:
                raise StorageConflictError(
                    f"{clone} exists and is no {'read-only' if read_only else 'writable'} clone "
                    f"of {group}@{snapshot}; choose another name."
                )
            return self._catalogue.group(self._catalogue.known_group(clone))

    def delete_clone(self, clone: str) -> None:
        """Withdraw and remove a clone."""
        with self._changing(clone):
            record = self._records.group(clone)
            if record is None:
                return
            if record.origin is None:
                raise StorageConflictError(
                    f"{clone} is a LUN group, not a clone; delete it as a group if you mean it."
                )
            self._guards.no_snapshots(record)
            self._forget_group(record)

    def present(self, group: str, lun: str, initiators: Sequence[str]) -> Presentation:
        """Let exactly these initiators reach the LUN, replacing the list before."""
        names = sorted({check_initiator(name) for name in initiators})
        with self._changing(group):
            record = self._catalogue.known_group(group)
            found = self._catalogue.known_lun(record, lun)
            self._exports.check(f"{group}/{lun}", names)
            if found.lost:
                raise StorageConflictError(
                    f"LUN {group}/{lun} was lost by the storage system; restore it, or delete it."
                )
            self._records.present(found.volume, names)
            self._exports.apply(record)
            return next(
                each for each in self._exports.presentations(record) if each.lun == found.name
            )

    def withdraw(self, group: str, lun: str) -> None:
        """End all access to the LUN."""
        with self._changing(group):
            record = self._records.group(group)
            found = self._catalogue.find_lun(record, lun) if record else None
            if record is None or found is None:
                return
            self._records.present(found.volume, ())
            # Also when it was recorded before: the one who did may have died before this.
            self._exports.apply(record)

    def presentations(self) -> Sequence[Presentation]:
        """What is presented, also while `stop` keeps it from being served."""
        return [
            each
            for record in self._records.groups()
            for each in self._exports.presentations(record)
        ]

    def changed_extents(self, group: str, lun: str, older: str, newer: str) -> Iterator[Extent]:
        """Ranges of the LUN that may differ between two snapshots of its group."""
        after, volume = self._catalogue.snapshot_volume(group, lun, newer)
        before = self._catalogue.known_snapshot(self._catalogue.known_group(group), older)
        if volume not in before.volumes:
            raise StorageConflictError(
                f"Snapshot {group}@{older} does not hold the LUN {lun} of {newer}; it was created "
                "later, or deleted and made anew."
            )
        return self._backend.changed_extents(volume, before.id, after.id)

    def open_snapshot(self, group: str, lun: str, snapshot: str) -> BlockReader:
        """Read a LUN as it was."""
        found, volume = self._catalogue.snapshot_volume(group, lun, snapshot)
        return self._reading(self._backend.open_snapshot(volume, found.id))

    def reconcile(self) -> Sequence[str]:
        """Finish or clear what a crash cut short and serve again what is presented."""
        return self._repair.reconcile()

    def stop(self) -> None:
        """End what serves LUNs on this machine; `reconcile` starts it again."""
        names = {record.id: record.name for record in self._records.groups()}
        for group in sorted({*names, *self._backend.served()}):
            with self._locks.held(names.get(group, group)):
                self._backend.stop(group)

    @contextmanager
    def _changing(self, *groups: str) -> Iterator[None]:
        for group in groups:
            check_name("LUN group", group)
        with self._locks.held(*groups):
            for group in groups:
                self._repair.finish(group)
            yield

    @contextmanager
    def _making(self, *owed: Owed) -> Iterator[None]:
        """Owe what is made in the block, until it is recorded there; clear it if that fails."""
        self._records.owe(*owed)
        try:
            yield
        except BaseException:
            with suppress(AtollError):  # then the next call does it
                self._repair.pay([each for each in owed if each in self._records.owed()])
            raise

    def _create_lun(self, group: GroupRecord, lun: str, size_bytes: int) -> LunRecord:
        volume = self._new_volume()
        with self._making(Owed("volume", group.name, group.id, volume)):
            identity = self._backend.create_volume(
                group.id, volume, size_bytes, f"{group.name}/{lun}"
            )
            made = LunRecord(
                volume, lun, size_bytes, identity, self._target(group.name, lun, volume)
            )
            self._records.add_lun(group.id, made)
        return made

    def _take(self, group: GroupRecord, name: str, expires_at: float | None) -> SnapshotRecord:
        luns = [lun for lun in self._records.luns(group.id) if not lun.lost]
        snapshot = uuid4().hex
        volumes = tuple(lun.volume for lun in luns)
        with self._making(Owed("snapshot", group.name, group.id, snapshot, volumes)):
            times = self._backend.take_snapshot(group.id, snapshot, volumes)
            taken = GroupSnapshot(
                group.name,
                name,
                times.started_at,
                times.finished_at,
                times.pause_seconds,
                tuple((lun.name, lun.size_bytes) for lun in luns),
                expires_at,
            )
            members = tuple((lun.name, lun.volume, lun.size_bytes) for lun in luns)
            record = SnapshotRecord(snapshot, taken, members)
            self._records.add_snapshot(record, group.id)
        return record

    def _clone(self, snapshot: SnapshotRecord, clone: str, *, read_only: bool) -> None:
        made = uuid4().hex
        copies = {volume: self._new_volume() for volume in snapshot.volumes}
        labels = {copies[volume]: f"{clone}/{lun}" for lun, volume, _ in snapshot.members}
        with self._making(
            *(Owed("volume", clone, made, volume) for volume in copies.values()),
            Owed("group", clone, made, made),
        ):
            identities = self._backend.clone(snapshot.id, made, copies, labels)
            luns = [
                LunRecord(
                    copies[volume],
                    lun,
                    size_bytes,
                    identities[copies[volume]],
                    self._target(clone, lun, copies[volume]),
                )
                for lun, volume, size_bytes in snapshot.members
            ]
            self._records.add_group(made, clone, snapshot.id, luns, read_only=read_only)

    def _delete_group(self, group: GroupRecord, *, force: bool) -> None:
        luns = self._records.luns(group.id)
        snapshots = self._records.snapshots(group.id)
        if force:
            for snapshot in snapshots:
                self._guards.not_cloned(group, snapshot)
            for lun in luns:
                self._records.present(lun.volume, ())
            for snapshot in snapshots:
                self._records.remove_snapshot(group, snapshot)
        else:
            self._guards.not_presented(group, luns)
            self._guards.no_snapshots(group)
        self._forget_group(group)

    def _forget_group(self, group: GroupRecord) -> None:
        for lun in self._records.luns(group.id):
            self._records.present(lun.volume, ())
        self._exports.apply(group)
        self._records.remove_group(group, always=not self._backend.snapshots_need_volume)
        self._repair.finish(group.name)

    def _new_volume(self) -> str:
        """An id whose target number no other LUN's has, as initiators see both."""
        taken = {target_id(volume) for volume in self._records.held_volumes()}
        while target_id(volume := secrets.token_hex(16)) in taken:
            continue
        return volume

    def _target(self, group: str, lun: str, volume: str) -> str:
        target = target_name(self._name, group, lun)
        # A LUN that was renamed or moved keeps its target's name, which may be this one.
        return f"{target}:{volume[:8]}" if self._records.target_taken(target) else target

    def _devices(self) -> DeviceBackend:
        if not isinstance(self._backend, DeviceBackend):
            raise StorageConflictError(
                f"The disks of {self._name} are managed by the storage system itself; use its own "
                "tools."
            )
        return self._backend

    def _check_size(self, lun: str, size_bytes: int) -> None:
        unit = self._backend.capabilities.unit_bytes
        if size_bytes <= 0 or size_bytes % unit:
            raise StorageConflictError(
                f"LUN {lun} cannot have {size_bytes} bytes; choose a multiple of {unit >> 20} MiB."
            )
