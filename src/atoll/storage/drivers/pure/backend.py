"""A FlashArray as a backend: volumes, protection groups, and snapshots of these."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from atoll.model.errors import StorageConflictError
from atoll.model.extents import Extent, complement, merge
from atoll.model.readers import BlockReader
from atoll.model.storage import Capabilities, Portal
from atoll.storage.backend import Export, Place, Room, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.array import (
    Proxy,
    ReadingCopies,
    ReadingCopy,
    numbered,
    refuse_read_only,
)
from atoll.storage.drivers.pure.hosts import Hosts
from atoll.storage.drivers.pure.names import Names
from atoll.storage.drivers.pure.session import ArrayRefusedError, FlashArray, value

_VENDOR, _PRODUCT, _NAA_PREFIX = "PURE", "FlashArray", "naa.624a9370"
_TAGS = "atoll"
_BLOCK_BYTES = 4096
_SEGMENT_BYTES = 1 << 36
"""How much of a volume one comparison covers, which keeps the array's answers short."""


class PureBackend:
    """A VolumeBackend over a FlashArray. A LUN group is a protection group."""

    snapshots_need_volume = True

    def __init__(
        self, array: FlashArray, names: Names, place: Place, proxy: Proxy, *, eradicate: bool
    ) -> None:
        self._array = array
        self._names = names
        self._proxy = proxy
        self._eradicate = eradicate
        self._hosts = Hosts(array, names, place)
        self._copies = ReadingCopies(place, self, proxy)

    @property
    def capabilities(self) -> Capabilities:
        """Changes are listed; a connection cannot be read-only."""
        protocols = cast("frozenset[Literal['iscsi', 'fc']]", self._hosts.protocols())
        return Capabilities(
            changed_extents="listed",
            direct_read=False,
            read_only_clones=False,
            revert=True,
            protocols=protocols,
        )

    def clear(self) -> None:
        """Remove reading copies whose readers died."""
        self._copies.clear()

    def room(self) -> Room:
        """The array's usable capacity and what is left of it."""
        (space,) = self._array.call("get_arrays_space", "say how full it is")
        used = value(space, "space", "total_used")
        if used is None:
            used = value(space, "space", "total_physical")
        return Room(int(space.capacity), max(int(space.capacity) - int(used or 0), 0))

    def volumes(self) -> Mapping[str, int]:
        """All volumes with our mark that are not destroyed."""
        return {
            volume: int(each.provisioned)
            for each in self._our_volumes()
            if (volume := self._names.volume_id(each.name)) is not None
        }

    def snapshots(self) -> Collection[str]:
        """Our protection groups' snapshots that have our suffix and are not destroyed."""
        found = self._array.call(
            "get_protection_group_snapshots",
            "list its snapshots",
            filter=self._names.snapshots_filter,
            destroyed=False,
        )
        return {snapshot for each in found if (snapshot := self._names.snapshot_id(each.name))}

    def groups(self) -> Collection[str]:
        """Our protection groups that are not destroyed."""
        found = self._array.call(
            "get_protection_groups",
            "list its protection groups",
            filter=self._names.groups_filter,
            destroyed=False,
        )
        return {group for each in found if (group := self._names.group_id(each.name))}

    def create_group(self, group: str) -> None:
        """An empty protection group without a schedule."""
        name = self._names.group(group)
        self._array.make("post_protection_groups", f"create protection group {name}", names=[name])

    def delete_group(self, group: str) -> None:
        """Destroy the protection group; what snapshots it has must be gone."""
        name = self._names.group(group)
        try:
            left = self._array.call(
                "get_protection_group_snapshots",
                f"list the snapshots of {name}",
                source_names=[name],
                destroyed=False,
            )
        except ArrayRefusedError as error:
            if not error.absent:
                raise
            left = []
        if left:
            raise StorageConflictError(
                f"Protection group {name} still has {len(left)} snapshots, {left[0].name} among "
                "them, which would go with it; delete them first."
            )
        self._destroy("protection_groups", "protection_group", "ProtectionGroup", name)

    def create_volume(self, group: str, volume: str, size_bytes: int, label: str) -> VolumeIdentity:
        """A volume, in its protection group, with the label as a tag."""
        name = self._names.volume(volume)
        self._array.make(
            "post_volumes",
            f"create volume {name}",
            names=[name],
            volume=self._array.model("VolumePost", provisioned=size_bytes),
        )
        return self._settle(group, volume, label)

    def grow_volume(self, group: str, volume: str, size_bytes: int) -> None:
        """Resize the volume if it is smaller."""
        name = self._names.volume(volume)
        if int(self._volume(name).provisioned) < size_bytes:
            self._array.call(
                "patch_volumes",
                f"grow volume {name}",
                names=[name],
                volume=self._array.model("VolumePatch", provisioned=size_bytes),
            )

    def move_volume(self, volume: str, group: str, to: str) -> None:
        """From one protection group into another."""
        self._join(to, [volume])
        if self._names.volume(volume) in self._members(group):
            self._leave(group, volume)

    def delete_volume(self, group: str, volume: str) -> None:
        """Disconnect and destroy the volume."""
        name = self._names.volume(volume)
        if name in self._members(group):
            self._leave(group, volume)
        self._remove(name)
        self._hosts.forget(volume)

    def take_snapshot(self, group: str, snapshot: str, volumes: Sequence[str]) -> SnapshotTimes:
        """One snapshot of the protection group, which is one instant over its volumes."""
        name = self._names.group(group)
        started = time.time()
        if volumes:
            self._join(group, volumes)
            started = time.time()
            self._array.make(
                "post_protection_group_snapshots",
                f"snapshot protection group {name}",
                source_names=[name],
                apply_retention=False,
                protection_group_snapshot=self._array.model(
                    "ProtectionGroupSnapshotPost", suffix=self._names.snapshot_suffix(snapshot)
                ),
            )
        return SnapshotTimes(started, time.time(), 0.0)

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Destroy the protection group's snapshot."""
        for name in self._group_snapshots(snapshot):
            self._destroy(
                "protection_group_snapshots",
                "protection_group_snapshot",
                "ProtectionGroupSnapshotPatch",
                name,
            )

    def clone(
        self, snapshot: str, group: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mapping[str, VolumeIdentity]:
        """Copies of the volumes' snapshots, in a protection group of their own."""
        self.create_group(group)
        sources = self._volume_snapshots(snapshot, volumes)
        made = {}
        for origin, volume in volumes.items():
            self._copy(sources[origin], self._names.volume(volume))
            made[volume] = self._settle(group, volume, labels.get(volume, ""))
        return made

    def revert(self, group: str, snapshot: str, volumes: Sequence[str]) -> None:
        """Overwrite the volumes from the snapshot; the array keeps what was there for a day."""
        sources = self._volume_snapshots(snapshot, volumes)
        for volume in volumes:
            self._copy(sources[volume], self._names.volume(volume), overwrite=True)

    def changed_extents(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """The array compares both snapshots of the volume."""
        before = self._volume_snapshot(older, volume)
        after = self._volume_snapshot(newer, volume)
        common = min(int(before.provisioned), int(after.provisioned))
        return iter(
            merge(
                [
                    *self._differences(str(after.name), Extent(0, common), str(before.name)),
                    *self._differences(
                        str(after.name), Extent(common, int(after.provisioned) - common)
                    ),
                ]
            )
        )

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read a copy of it over iSCSI."""
        return self._copies.open(volume, snapshot)

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """Connect the group's volumes to exactly these initiators' hosts."""
        refuse_read_only(exports, f"FlashArray {self._array.name}")
        connected = self._hosts.connections()
        ours = {self._names.volume(export.volume) for export in exports}
        return self._hosts.serve(exports, connected, sorted(self._members(group) - ours))

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """All ports of the array that the export's initiators can use."""
        return self._hosts.portals_of(export)

    def served(self) -> Collection[str]:
        """None by this machine: the array serves by itself."""
        return ()

    def release(self, group: str) -> bool:
        """There is no barrier: the array's snapshots are atomic by themselves."""
        return False

    def stop(self, group: str) -> bool:
        """Nothing on this machine serves."""
        return False

    def reading_copies(self) -> Collection[str]:
        """Tokens in the names of volumes."""
        return {
            token
            for each in self._our_volumes()
            if (token := self._names.copy_token(each.name)) is not None
        }

    def make_reading_copy(self, token: str, volume: str, snapshot: str) -> ReadingCopy:
        """A copy of the volume's snapshot, connected to this machine's host."""
        name, source = self._names.reading_copy(token), self._volume_snapshot(snapshot, volume)
        portals = self._hosts.portals([self._proxy.initiator])
        if not portals:
            raise StorageConflictError(
                f"FlashArray {self._array.name} has no iSCSI port, and snapshots are read over "
                "iSCSI; give it one that this machine reaches."
            )
        self._copy(str(source.name), name)
        number = self._hosts.connect_proxy(name, self._proxy.initiator, self._proxy.chap)
        size_bytes = int(source.provisioned)

        def holes() -> Iterable[Extent]:
            mapped = self._differences(str(source.name), Extent(0, size_bytes))
            return complement(merge(mapped), size_bytes)

        return ReadingCopy(numbered(portals, number), self._identity(name).naa, holes)

    def remove_reading_copy(self, token: str) -> None:
        """Disconnect, destroy and eradicate it: it holds nothing that is not elsewhere."""
        self._remove(self._names.reading_copy(token), eradicate=True)

    def _our_volumes(self) -> list[Any]:
        return self._array.call(
            "get_volumes",
            "list its volumes",
            filter=self._names.volumes_filter,
            destroyed=False,
        )

    def _volume(self, name: str) -> Any:
        (found,) = self._array.call("get_volumes", f"find volume {name}", names=[name])
        return found

    def _identity(self, name: str) -> VolumeIdentity:
        serial = str(self._volume(name).serial)
        return VolumeIdentity(_NAA_PREFIX + serial.lower(), serial, _VENDOR, _PRODUCT)

    def _settle(self, group: str, volume: str, label: str) -> VolumeIdentity:
        """What makes a volume whole: its place in the protection group, and its tag."""
        name = self._names.volume(volume)
        self._join(group, [volume])
        self._array.call(
            "put_volumes_tags_batch",
            f"label volume {name}",
            resource_names=[name],
            tag=[self._array.model("NonCopyableTagBatch", namespace=_TAGS, key="lun", value=label)],
        )
        return self._identity(name)

    def _copy(self, source: str, name: str, *, overwrite: bool = False) -> None:
        # A volume that overwrites stays in the groups it is in; a new one is to be in ours alone.
        how = {"overwrite": True} if overwrite else {"with_default_protection": False}
        self._array.make(
            "post_volumes",
            f"copy {source} to {name}",
            names=[name],
            volume=self._array.model(
                "VolumePost", source=self._array.model("Reference", name=source)
            ),
            **how,
        )

    def _members(self, group: str) -> set[str]:
        name = self._names.group(group)
        try:
            found = self._array.call(
                "get_protection_groups_volumes", f"list the volumes of {name}", group_names=[name]
            )
        except ArrayRefusedError as error:
            if error.absent:
                return set()
            raise
        return {str(each.member.name) for each in found}

    def _join(self, group: str, volumes: Sequence[str]) -> None:
        there = self._members(group)
        missing = [name for each in volumes if (name := self._names.volume(each)) not in there]
        if missing:
            self._array.make(
                "post_protection_groups_volumes",
                f"put {', '.join(missing)} into {self._names.group(group)}",
                group_names=[self._names.group(group)],
                member_names=missing,
            )

    def _leave(self, group: str, volume: str) -> None:
        self._array.remove(
            "delete_protection_groups_volumes",
            f"take {self._names.volume(volume)} out of {self._names.group(group)}",
            group_names=[self._names.group(group)],
            member_names=[self._names.volume(volume)],
        )

    def _remove(self, name: str, *, eradicate: bool = False) -> None:
        self._hosts.withdraw(name)
        self._destroy("volumes", "volume", "VolumePatch", name, eradicate=eradicate)

    def _destroy(
        self, kind: str, argument: str, model: str, name: str, *, eradicate: bool = False
    ) -> None:
        """Destroy something, which the array can undo for a while, and eradicate it if so set."""
        patch = {argument: self._array.model(model, destroyed=True)}
        self._array.remove(f"patch_{kind}", f"destroy {name}", names=[name], **patch)
        if eradicate or self._eradicate:
            try:
                self._array.remove(f"delete_{kind}", f"eradicate {name}", names=[name])
            except ArrayRefusedError:
                # SafeMode keeps what is destroyed until its time is over; that is for the array's
                # admin to say.
                return

    def _group_snapshots(self, snapshot: str) -> list[str]:
        found = self._array.call(
            "get_protection_group_snapshots",
            "find a snapshot",
            filter=self._names.snapshot_filter(snapshot),
            destroyed=False,
        )
        return [str(each.name) for each in found if self._names.snapshot_id(each.name) == snapshot]

    def _volume_snapshots(self, snapshot: str, volumes: Iterable[str]) -> dict[str, str]:
        return {
            volume: str(each.name) for volume, each in self._in_snapshot(snapshot, volumes).items()
        }

    def _volume_snapshot(self, snapshot: str, volume: str) -> Any:
        return self._in_snapshot(snapshot, [volume])[volume]

    def _in_snapshot(self, snapshot: str, volumes: Iterable[str]) -> dict[str, Any]:
        """The snapshots of these volumes in a protection group's snapshot, by volume."""
        found: dict[str, Any] = {}
        for name in self._group_snapshots(snapshot):
            for each in self._array.call(
                "get_volume_snapshots", f"list {name}", filter=f"name='{name}.*'", destroyed=False
            ):
                volume = self._names.volume_in_snapshot(each.name)
                if volume is not None:
                    found[volume] = each
        if missing := [volume for volume in volumes if volume not in found]:
            raise StorageConflictError(
                f"FlashArray {self._array.name} has no snapshot {snapshot} of volume {missing[0]}; "
                "it was destroyed by other means, recover it on the array."
            )
        return found

    def _differences(self, name: str, within: Extent, base: str | None = None) -> Iterator[Extent]:
        """What differs from `base` there, or what holds data at all."""
        against = {} if base is None else {"base_name": base}
        for start in range(within.offset, within.end, _SEGMENT_BYTES):
            for page in self._array.pages(
                "get_volumes_diff",
                f"compare {name} with {base or 'nothing'}",
                names=[name],
                block_size=_BLOCK_BYTES,
                segment_offset=start,
                segment_length=min(_SEGMENT_BYTES, within.end - start),
                **against,
            ):
                yield from (Extent(int(each.offset), int(each.length)) for each in page)
