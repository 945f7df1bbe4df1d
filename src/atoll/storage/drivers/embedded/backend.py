"""The embedded backend: volumes are files on btrfs, a group is a subvolume with a tgtd."""

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Capabilities, DurabilityChoice, PoolDevice, Portal
from atoll.storage.backend import Export, Place, Room, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.embedded import btrfs, devices, durability
from atoll.storage.drivers.embedded.btrfs import pool_errors
from atoll.storage.drivers.embedded.changes import differences
from atoll.storage.drivers.embedded.pool import Pool, sync_directory
from atoll.storage.identity import identity_of
from atoll.storage.image_reader import ImageReader
from atoll.storage.targets.tgt import BackingStore, Durability, TgtTargets
from atoll.storage.targets.tgt.barrier import BarrierBrokenError, while_held

_FICLONE = 0x40049409
_LABEL = "user.atoll.lun"


class EmbeddedBackend:
    """A VolumeBackend, DeviceBackend and DurabilityBackend over a pool on this machine."""

    capabilities = Capabilities()
    snapshots_need_volume = False

    def __init__(
        self,
        pool: Pool,
        place: Place,
        addresses: Sequence[str],
        ports: Sequence[int],
        durability_chosen: Durability,
    ) -> None:
        self._pool = pool
        self._durability = durability_chosen
        self._targets = TgtTargets(place, addresses, ports, self._backing, durability_chosen)

    def room(self) -> Room:
        """How full the file system is."""
        with pool_errors(f"measure the pool at {self._pool.root}"):
            status = os.statvfs(self._pool.root)
        return Room(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)

    def volumes(self) -> Mapping[str, int]:
        """Size in bytes of every image."""
        with pool_errors("list the volumes"):
            return self._pool.volumes()

    def snapshots(self) -> Collection[str]:
        """Every snapshot's subvolume."""
        with pool_errors("list the snapshots"):
            return {path.name for path in self._pool.snapshots_directory.iterdir()}

    def groups(self) -> Collection[str]:
        """Every group's subvolume."""
        with pool_errors("list the groups"):
            return self._pool.groups()

    def create_group(self, group: str) -> None:
        """A subvolume."""
        with pool_errors("create a LUN group"):
            if not btrfs.is_subvolume(self._pool.group(group)):
                btrfs.create_subvolume(self._pool.group(group))

    def delete_group(self, group: str) -> None:
        """Remove the subvolume and free the port."""
        with pool_errors("delete a LUN group"):
            for path in (self._pool.unfinished_group(group), self._pool.group(group)):
                btrfs.destroy_subvolume(path)
        self._targets.forget(group)

    def create_volume(self, group: str, volume: str, size_bytes: int, label: str) -> VolumeIdentity:
        """A sparse file."""
        path = self._pool.image(group, volume)
        with pool_errors(f"create LUN {label}"):
            path.touch(mode=0o600)
            os.setxattr(path, _LABEL, label.encode())
            _extend(path, size_bytes)
            sync_directory(path.parent)
        return identity_of(volume)

    def grow_volume(self, group: str, volume: str, size_bytes: int) -> None:
        """Make the file longer; `serve` shows it."""
        with pool_errors("grow a LUN"):
            _extend(self._pool.image(group, volume), size_bytes)

    def move_volume(self, volume: str, group: str, to: str) -> None:
        """Share the file's extents with one in the other subvolume, then remove it here."""
        source, target = self._pool.image(group, volume), self._pool.image(to, volume)
        with pool_errors("move a LUN"):
            if source.exists() and not target.exists():
                fresh = target.with_suffix(".new")
                fresh.touch(mode=0o600)
                with source.open("rb") as old, fresh.open("r+b") as new:
                    fcntl.ioctl(new, _FICLONE, old.fileno())
                    os.setxattr(new.fileno(), _LABEL, os.getxattr(old.fileno(), _LABEL))
                    os.fsync(new.fileno())
                fresh.rename(target)
                sync_directory(target.parent)
            source.unlink(missing_ok=True)
            sync_directory(source.parent)

    def delete_volume(self, group: str, volume: str) -> None:
        """Remove the file."""
        with pool_errors("delete a LUN"):
            for path in self._pool.images(volume):
                path.unlink(missing_ok=True)
                sync_directory(path.parent)

    def take_snapshot(self, group: str, snapshot: str, volumes: Sequence[str]) -> SnapshotTimes:
        """Snapshot the subvolume, its tgtd held still meanwhile."""
        path = self._pool.snapshot(snapshot)
        with pool_errors("snapshot a LUN group"):
            for volume in volumes:
                _flush(self._pool.image(group, volume))
            take = partial(btrfs.snapshot, self._pool.group(group), path, read_only=True)
            with self._targets.process(group) or nullcontext() as process:
                if process is None and group in self._targets.served():
                    raise StorageUnreachableError(
                        "The iSCSI daemon of the LUN group is not found, so its writes cannot be "
                        "held back and no snapshot was taken; `atoll cleanup` starts it again."
                    )
                try:
                    return while_held(process, take)
                except BarrierBrokenError:
                    btrfs.destroy_subvolume(path)
                    raise

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Remove the subvolume."""
        with pool_errors("delete a snapshot"):
            btrfs.destroy_subvolume(self._pool.snapshot(snapshot))

    def clone(
        self, snapshot: str, group: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mapping[str, VolumeIdentity]:
        """Snapshot the snapshot, and call its files what they now are."""
        fresh = self._pool.unfinished_group(group)
        with pool_errors("clone a snapshot"):
            btrfs.destroy_subvolume(fresh)
            btrfs.snapshot(self._pool.snapshot(snapshot), fresh, read_only=False)
            for path in list(fresh.glob("*.img")):
                copy = volumes.get(path.stem)
                if copy is None:
                    path.unlink()
                    continue
                os.setxattr(path, _LABEL, labels[copy].encode())
                path.rename(path.with_stem(copy))
            fresh.rename(self._pool.group(group))
            sync_directory(self._pool.group_directory)
        return {volume: identity_of(volume) for volume in volumes.values()}

    def revert(self, group: str, snapshot: str, volumes: Sequence[str]) -> None:
        """Put a snapshot of the snapshot in the subvolume's place."""
        fresh, place = self._pool.unfinished_group(group), self._pool.group(group)
        with pool_errors("revert a LUN group"):
            btrfs.destroy_subvolume(fresh)
            btrfs.snapshot(self._pool.snapshot(snapshot), fresh, read_only=False)
            for path in list(fresh.glob("*.img")):
                if path.stem not in volumes:
                    path.unlink()
            btrfs.destroy_subvolume(place)
            fresh.rename(place)
            sync_directory(self._pool.group_directory)

    def changed_extents(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """From both snapshots' extent trees; memory does not grow with them."""
        return _changed(
            self._pool.snapshot_image(older, volume), self._pool.snapshot_image(newer, volume)
        )

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read the file."""
        return ImageReader(self._pool.snapshot_image(snapshot, volume))

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """Over iSCSI, from the group's tgtd."""
        return self._targets.serve(group, exports)

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """One for each of the machine's addresses."""
        return self._targets.portals(group, export)

    def served(self) -> Collection[str]:
        """Groups with a tgtd."""
        return self._targets.served()

    def release(self, group: str) -> bool:
        """Let a tgtd run that was stopped."""
        return self._targets.release(group)

    def stop(self, group: str) -> bool:
        """End the group's tgtd."""
        return self._targets.stop(group)

    def devices(self) -> Sequence[PoolDevice]:
        """The file system's disks."""
        with pool_errors("list the pool's disks"):
            return devices.list_devices(self._pool.root)

    def add_device(self, path: str) -> None:
        """`btrfs device add`."""
        with pool_errors(f"add {path}"):
            devices.add_device(self._pool.root, path)

    def remove_device(self, path: str) -> None:
        """`btrfs device remove`."""
        with pool_errors(f"remove {path}"):
            devices.remove_device(self._pool.root, path)

    def durability_choices(self) -> Sequence[DurabilityChoice]:
        """From the disks or from memory."""
        with pool_errors("measure the pool"):
            return durability.choices(self._pool.root, self._durability)

    def _backing(self, group: str, export: Export) -> BackingStore:
        return BackingStore("rdwr", str(self._pool.image(group, export.volume)))


def _extend(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as image:
        if os.fstat(image.fileno()).st_size < size_bytes:
            os.ftruncate(image.fileno(), size_bytes)
        os.fsync(image.fileno())


def _flush(path: Path) -> None:
    """What is on disk before the barrier need not be written behind it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


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
