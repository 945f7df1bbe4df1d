"""The Ceph backend: volumes are RBD images, snapshots are taken behind the group's tgtd."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from atoll.model.errors import AtollError, StorageUnreachableError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Capabilities, Portal
from atoll.storage.backend import Export, Place, Room, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.ceph.access import Access
from atoll.storage.drivers.ceph.reader import SnapshotReader
from atoll.storage.identity import identity_of
from atoll.storage.targets.tgt import BackingStore, TgtTargets
from atoll.storage.targets.tgt.answers import while_answers_held

_WINDOW_BYTES = 16 << 30
"""What is compared at once, so that the answer's size has a bound."""

_LIMIT_SECONDS = 5.0
"""For how long a snapshot may hold writes: ESX gives up on a VMFS heartbeat after 8 s."""


class CephBackend:
    """A VolumeBackend over a pool.

    Groups are only our records: what becomes of an image does not depend on them.
    """

    capabilities = Capabilities()
    snapshots_need_volume = True

    def __init__(
        self, access: Access, place: Place, addresses: Sequence[str], ports: Sequence[int]
    ) -> None:
        self._access = access
        self._sidecars = access.sidecars()
        self._targets = TgtTargets(place, addresses, ports, self._backing)

    def room(self) -> Room:
        """What the pool holds and can still take, after replication, and below its quota."""
        total_bytes, free_bytes = self._call("room")
        return Room(total_bytes, free_bytes)

    def volumes(self) -> Mapping[str, int]:
        """Every image of this system."""
        found: dict[str, int] = self._call("volumes")
        return found

    def snapshots(self) -> Collection[str]:
        """Every snapshot that an image of this system has."""
        found: list[str] = self._call("snapshots")
        return found

    def groups(self) -> Collection[str]:
        """None: groups are only records."""
        return ()

    def create_group(self, group: str) -> None:
        """Nothing to make."""

    def delete_group(self, group: str) -> None:
        """Free the port."""
        self._targets.forget(group)

    def create_volume(self, group: str, volume: str, size_bytes: int, label: str) -> VolumeIdentity:
        """An image."""
        self._call("create_volume", volume=volume, size_bytes=size_bytes, label=label)
        return identity_of(volume)

    def grow_volume(self, group: str, volume: str, size_bytes: int) -> None:
        """Resize the image; `serve` shows it."""
        self._call("grow_volume", volume=volume, size_bytes=size_bytes)

    def move_volume(self, volume: str, group: str, to: str) -> None:
        """Nothing to do: the image does not know its group."""

    def delete_volume(self, group: str, volume: str) -> None:
        """Remove the image; takes as long as it holds data."""
        self._call("delete_volume", volume=volume)

    def take_snapshot(self, group: str, snapshot: str, volumes: Sequence[str]) -> SnapshotTimes:
        """Snapshot the images, all at the same time, their tgtd's answers held back meanwhile."""
        try:
            return self._take_snapshot(group, snapshot, list(volumes))
        except AtollError:
            # What cannot be removed now, the caller owes: the first error says more.
            with suppress(AtollError):
                self.delete_snapshot(snapshot, volumes)
            raise

    def _take_snapshot(self, group: str, snapshot: str, volumes: list[str]) -> SnapshotTimes:
        with (
            self._sidecars.borrowed() as sidecar,
            self._targets.process(group) or nullcontext() as process,
        ):
            if process is None and group in self._targets.served():
                raise StorageUnreachableError(
                    "The iSCSI daemon of the LUN group is not found, so its writes cannot be "
                    "held back and no snapshot was taken; `atoll cleanup` starts it again."
                )
            sidecar.call("prepare_snapshot", snapshot=snapshot, volumes=volumes)
            take = partial(
                sidecar.call, "take_snapshot", snapshot=snapshot, limit_seconds=_LIMIT_SECONDS
            )
            times = while_answers_held(process, take, limit_seconds=_LIMIT_SECONDS)
            sidecar.call("finish_snapshot")
            return times

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Remove it from every image."""
        self._call("delete_snapshot", snapshot=snapshot, volumes=list(volumes))

    def clone(
        self, snapshot: str, group: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mapping[str, VolumeIdentity]:
        """Images that borrow the snapshot's data."""
        self._call("clone", snapshot=snapshot, volumes=dict(volumes), labels=dict(labels))
        return {volume: identity_of(volume) for volume in volumes.values()}

    def revert(self, group: str, snapshot: str, volumes: Sequence[str]) -> None:
        """Roll the images back, object by object."""
        self._call("revert", snapshot=snapshot, volumes=list(volumes))

    def changed_extents(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """From what the disks know of each object: exact where it had one, discards included."""
        last = None
        for start, length in self._changed(volume, older, newer):
            if last is not None and last.end == start:
                last = Extent(last.offset, last.length + length)
                continue
            if last is not None:
                yield last
            last = Extent(start, length)
        if last is not None:
            yield last

    def _changed(self, volume: str, older: str, newer: str) -> Iterator[tuple[int, int]]:
        """The same, cut at the end of each window."""
        with self._sidecars.borrowed() as sidecar:
            size_bytes = sidecar.call("open_snapshot", volume=volume, snapshot=newer)
            try:
                for offset in range(0, size_bytes, _WINDOW_BYTES):
                    yield from sidecar.call(
                        "changed", volume=volume, older=older, newer=newer, offset=offset,
                        length=min(_WINDOW_BYTES, size_bytes - offset),
                    )  # fmt: skip
            finally:
                with suppress(StorageUnreachableError):  # then it ends, and that closes it too
                    sidecar.call("close_snapshot", volume=volume, snapshot=newer)

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read the image's snapshot by librbd."""
        return SnapshotReader(self._sidecars, volume, snapshot)

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
        """Never anything: what is held back flows when its holder dies."""
        return False

    def stop(self, group: str) -> bool:
        """End the group's tgtd."""
        return self._targets.stop(group)

    def _call(self, call: str, **arguments: object) -> Any:
        with self._sidecars.borrowed() as sidecar:
            return sidecar.call(call, **arguments)

    def _backing(self, group: str, export: Export) -> BackingStore:
        return self._access.backing_store(export.volume)
