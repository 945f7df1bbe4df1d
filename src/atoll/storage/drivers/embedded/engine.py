"""The embedded engine: LUNs are files on btrfs, a LUN group is a subvolume with a tgtd."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from uuid import uuid4

from atoll.model.errors import PoolFullError, StorageConflictError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import GroupSnapshot, Lun, LunGroup, PoolCapacity, Presentation
from atoll.storage.drivers.embedded import btrfs
from atoll.storage.drivers.embedded.barrier import BarrierBrokenError, while_held
from atoll.storage.drivers.embedded.btrfs import pool_errors
from atoll.storage.drivers.embedded.catalogue import Catalogue
from atoll.storage.drivers.embedded.changes import differences
from atoll.storage.drivers.embedded.daemon import Durability
from atoll.storage.drivers.embedded.exports import Exports
from atoll.storage.drivers.embedded.identity import check_initiator, check_name
from atoll.storage.drivers.embedded.pool import making, open_pool, settle
from atoll.storage.drivers.embedded.records import LunRecord
from atoll.storage.drivers.embedded.repair import Repair
from atoll.storage.image_reader import ImageReader

_UNIT_BYTES = 1 << 20


class EmbeddedEngine:
    """A StorageEngine over the pool at `root`.

    Portals listen on `portal_address`, each group on a port of its own out of
    `portal_ports`. Snapshots and new LUNs are refused when less than
    `reserve_bytes` are free. `durability` says when a write is acknowledged:
    `disk` when it is on the pool's disks, `cache` when the host has it, so that
    a host crash loses what the initiator has not flushed.

    Objects are made under a working name, recorded, then given their name; they
    are forgotten, then removed. So the records alone say what exists.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        portal_address: str = "127.0.0.1",
        portal_ports: Sequence[int] = range(23260, 32260),
        reserve_bytes: int = 1 << 30,
        durability: Durability = "disk",
    ) -> None:
        self._name = name
        self._pool = open_pool(root)
        self._records = self._pool.records
        self._reserve_bytes = reserve_bytes
        self._exports = Exports(self._pool, portal_address, portal_ports, durability)
        self._catalogue = Catalogue(self._pool)
        self._repair = Repair(self._pool, self._exports)
        self._repair.release()

    @property
    def name(self) -> str:
        """The storage system's name in the settings."""
        return self._name

    @property
    def runtime_directory(self) -> Path:
        """Sockets, locks and the daemons' logs."""
        return self._pool.run

    def capacity(self) -> PoolCapacity:
        """How full the pool is."""
        with pool_errors(f"measure the pool at {self._pool.root}"):
            status = os.statvfs(self._pool.root)
        provisioned = sum(lun.size_bytes for group in self.groups() for lun in group.luns)
        return PoolCapacity(
            status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize, provisioned
        )

    def groups(self) -> Sequence[LunGroup]:
        """All LUN groups, clones included."""
        return [self._catalogue.group(record) for record in self._records.groups()]

    def create_group(self, group: str) -> LunGroup:
        """An empty LUN group: a subvolume."""
        check_name("LUN group", group)
        with self._changing(f"create LUN group {group}", group):
            record = self._records.group(group)
            if record is None:
                self._require_room()
                path = self._pool.group(group)
                self._repair.discard(making(path))
                btrfs.create_subvolume(making(path))
                self._records.add_group(group)
                settle(path)
            elif record.origin is not None:
                raise StorageConflictError(
                    f"{group} is a clone of {'@'.join(record.origin)}; choose another name for "
                    "the LUN group."
                )
            return self._catalogue.group(self._catalogue.known_group(group))

    def delete_group(self, group: str) -> None:
        """Remove a group and its LUNs."""
        with self._changing(f"delete LUN group {group}", group):
            if self._records.group(group) is not None:
                self._delete_group(group)

    def create_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """A thin LUN; `size_bytes` is a multiple of 1 MiB."""
        check_name("LUN", lun)
        _check_size(lun, size_bytes)
        with self._changing(f"create LUN {group}/{lun}", group):
            self._catalogue.known_group(group)
            path = self._pool.image(group, lun)
            if self._catalogue.lun_record(group, lun) is None:
                self._require_room()
                making(path).unlink(missing_ok=True)
                making(path).touch(mode=0o600, exist_ok=False)
                with making(path).open("r+b") as image:
                    os.ftruncate(image.fileno(), size_bytes)
                    os.fsync(image.fileno())
                self._records.add_lun(LunRecord(group, lun, uuid4()))
                settle(path)
            made = self._catalogue.lun(self._catalogue.known_lun(group, lun))
            if made.size_bytes != size_bytes:
                raise StorageConflictError(
                    f"LUN {group}/{lun} exists with {made.size_bytes} bytes, not {size_bytes}; "
                    "grow it or choose another name."
                )
            return made

    def grow_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """Make a LUN larger. Sessions on it are dropped once; initiators log in again, then rescan."""
        _check_size(lun, size_bytes)
        with self._changing(f"grow LUN {group}/{lun}", group):
            current = self._catalogue.lun(self._catalogue.known_lun(group, lun)).size_bytes
            if size_bytes < current:
                raise StorageConflictError(
                    f"LUN {group}/{lun} has {current} bytes and cannot shrink to {size_bytes}; "
                    "create a smaller LUN and move the data."
                )
            with self._pool.image(group, lun).open("r+b") as image:
                os.ftruncate(image.fileno(), size_bytes)
                os.fsync(image.fileno())
            if lun in self._records.presented(group):
                self._exports.apply(group)
            return self._catalogue.lun(self._catalogue.known_lun(group, lun))

    def delete_lun(self, group: str, lun: str) -> None:
        """Remove a LUN; snapshots keep what they hold of it."""
        with self._changing(f"delete LUN {group}/{lun}", group):
            if self._catalogue.lun_record(group, lun) is None:
                return
            self._refuse_if_presented(group, (lun,))
            self._exports.apply(group)  # whoever withdrew it may have died before this
            path = self._pool.image(group, lun)
            settle(path)
            self._records.remove_lun(group, lun, self._pool.relative(path))
            self._repair.finish_removals(group)

    def require_room(self, group: str) -> None:
        """Refuse when the pool is below its reserve, whatever the group."""
        with pool_errors(f"measure the pool at {self._pool.root}"):
            self._require_room()

    def snapshot_group(self, group: str, name: str) -> GroupSnapshot:
        """Snapshot all LUNs of a group at one instant, its tgtd held still meanwhile."""
        check_name("snapshot", name)
        with self._changing(f"snapshot LUN group {group} as {name}", group):
            self._catalogue.known_group(group)
            existing = self._records.snapshot(group, name)
            if existing is not None:
                return existing
            self._require_room()
            luns = self._records.luns(group)
            for lun in luns:
                self._flush(lun)
            path = self._pool.snapshot(group, name)
            path.parent.mkdir(exist_ok=True)
            self._repair.discard(making(path))
            taken = self._take(group, name, luns, making(path))
            self._records.add_snapshot(taken)
            settle(path)
            return taken

    def snapshots(self, group: str) -> Sequence[GroupSnapshot]:
        """A group's snapshots, oldest first."""
        return self._records.snapshots(group)

    def delete_snapshot(self, group: str, name: str) -> None:
        """Remove a snapshot."""
        with self._changing(f"delete snapshot {group}@{name}", group):
            if self._records.snapshot(group, name) is None:
                return
            if clones := self._records.clones_of(group, name):
                raise StorageConflictError(
                    f"Snapshot {group}@{name} carries {', '.join(clones)}; delete the clone first."
                )
            path = self._pool.snapshot(group, name)
            settle(path)
            self._records.remove_snapshot(group, name, self._pool.relative(path))
            self._repair.finish_removals(group)

    def clone(self, group: str, snapshot: str, clone: str) -> LunGroup:
        """A writable copy of a snapshot as a group of its own."""
        check_name("clone", clone)
        origin = (group, snapshot)
        action = f"clone {group}@{snapshot} as {clone}"
        with self._changing(action, group, clone):
            record = self._records.group(clone)
            if record is None:
                taken = self._catalogue.known_snapshot(group, snapshot)
                path = self._pool.group(clone)
                self._repair.discard(making(path))
                btrfs.snapshot(self._pool.snapshot(group, snapshot), making(path), read_only=False)
                luns = [LunRecord(clone, lun, uuid4()) for lun, _ in taken.lun_sizes]
                self._records.add_group(clone, origin, luns)
                settle(path)
            elif record.origin != origin:
                raise StorageConflictError(
                    f"{clone} exists and is no clone of {group}@{snapshot}; choose another name."
                )
            return self._catalogue.group(self._catalogue.known_group(clone))

    def delete_clone(self, clone: str) -> None:
        """Withdraw and remove a clone."""
        with self._changing(f"delete clone {clone}", clone):
            record = self._records.group(clone)
            if record is None:
                return
            if record.origin is None:
                raise StorageConflictError(
                    f"{clone} is a LUN group, not a clone; delete it as a group if you mean it."
                )
            self._refuse_if_snapshotted(clone)
            self._exports.stop(clone)
            for lun in self._records.presented(clone):
                self._records.present(clone, lun, ())
            self._delete_group(clone)

    def present(self, group: str, lun: str, initiators: Sequence[str]) -> Presentation:
        """Let exactly these initiators reach the LUN; sessions of others end."""
        names = tuple(sorted({check_initiator(name) for name in initiators}))
        if not names:
            raise StorageConflictError(
                f"No initiator was named for LUN {group}/{lun}; withdraw it to end all access."
            )
        with self._changing(f"present LUN {group}/{lun}", group):
            self._catalogue.lun(self._catalogue.known_lun(group, lun))
            self._records.present(group, lun, names)
            self._exports.apply(group)
            return Presentation(lun, group, names, (self._exports.portal(group, lun),))

    def withdraw(self, group: str, lun: str) -> None:
        """End all access to the LUN."""
        with self._changing(f"withdraw LUN {group}/{lun}", group):
            if lun in self._records.presented(group):
                self._records.present(group, lun, ())
            # Also when it was recorded before: the one who did may have died before this.
            self._exports.apply(group)

    def presentations(self) -> Sequence[Presentation]:
        """What is presented, also while `stop` keeps the daemons down."""
        return [
            Presentation(lun, record.name, names, (self._exports.portal(record.name, lun),))
            for record in self._records.groups()
            for lun, names in self._records.presented(record.name).items()
        ]

    def changed_extents(self, group: str, lun: str, older: str, newer: str) -> Iterator[Extent]:
        """Ranges that may differ, from both snapshots' extent trees; memory does not grow with them."""
        paths = [self._catalogue.snapshot_image(group, name, lun) for name in (older, newer)]
        return _changed(paths[0], paths[1])

    def open_snapshot(self, group: str, lun: str, snapshot: str) -> BlockReader:
        """Read a LUN as it was, straight from its image."""
        return ImageReader(self._catalogue.snapshot_image(group, snapshot, lun))

    def reconcile(self) -> Sequence[str]:
        """Finish or clear what a crash cut short and serve again what is presented."""
        with pool_errors("reconcile the pool"):
            return self._repair.reconcile()

    def stop(self) -> None:
        """End all daemons of the pool, so that it can be unmounted; `reconcile` starts them again."""
        known = {record.name for record in self._records.groups()}
        for group in sorted(known | set(self._exports.daemons())):
            with self._pool.lock(group):
                self._exports.stop(group)

    @contextmanager
    def _changing(self, action: str, *groups: str) -> Iterator[None]:
        for group in groups:
            check_name("LUN group", group)
        with self._pool.lock(*groups), pool_errors(action):
            for group in groups:
                self._repair.finish(group)
            yield

    def _take(self, group: str, name: str, luns: Sequence[LunRecord], path: Path) -> GroupSnapshot:
        take = partial(btrfs.snapshot, self._pool.group(group), path, read_only=True)
        try:
            with self._exports.process(group) or nullcontext() as process:
                if process is None and self._records.presented(group):
                    raise StorageUnreachableError(
                        f"The iSCSI daemon of LUN group {group} is not found, so its writes cannot be "
                        "held back and no snapshot was taken; `atoll cleanup` starts it again."
                    )
                times = while_held(process, take)
        except BarrierBrokenError:
            self._repair.discard(path)
            raise
        sizes = tuple((lun.name, (path / f"{lun.name}.img").stat().st_size) for lun in luns)
        return GroupSnapshot(
            group, name, times.started_at, times.finished_at, times.pause_seconds, sizes
        )

    def _delete_group(self, group: str) -> None:
        self._refuse_if_presented(group, [lun.name for lun in self._records.luns(group)])
        self._refuse_if_snapshotted(group)
        self._exports.stop(group)
        path = self._pool.group(group)
        settle(path)
        self._records.remove_group(group, self._pool.relative(path))
        self._repair.finish_removals(group)

    def _flush(self, lun: LunRecord) -> None:
        # What is on disk before the barrier need not be written behind it.
        descriptor = os.open(self._pool.image(lun.group, lun.name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def _require_room(self) -> None:
        free = self._pool.free_bytes()
        if free < self._reserve_bytes:
            raise PoolFullError(
                f"The pool {self._pool.name} has {free} bytes free, below its reserve of "
                f"{self._reserve_bytes}, and nothing was changed; make room or add a disk."
            )

    def _refuse_if_presented(self, group: str, luns: Sequence[str]) -> None:
        if presented := [lun for lun in luns if lun in self._records.presented(group)]:
            raise StorageConflictError(
                f"LUN {', '.join(f'{group}/{lun}' for lun in presented)} is presented; "
                "withdraw it first."
            )

    def _refuse_if_snapshotted(self, group: str) -> None:
        if taken := self._records.snapshots(group):
            raise StorageConflictError(
                f"LUN group {group} has {len(taken)} snapshots, {taken[0].name} the oldest; "
                "delete them first."
            )


def _changed(older: Path, newer: Path) -> Iterator[Extent]:
    with (
        pool_errors(f"compare {older} with {newer}"),
        older.open("rb") as before,
        newer.open("rb") as after,
    ):
        size_bytes = os.fstat(after.fileno()).st_size
        yield from differences(
            btrfs.file_extents(before.fileno()), btrfs.file_extents(after.fileno()), size_bytes
        )


def _check_size(lun: str, size_bytes: int) -> None:
    if size_bytes <= 0 or size_bytes % _UNIT_BYTES:
        raise StorageConflictError(
            f"LUN {lun} cannot have {size_bytes} bytes; choose a multiple of 1 MiB."
        )
