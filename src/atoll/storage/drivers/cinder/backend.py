"""A VolumeBackend over one of Cinder's drivers."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from atoll.model.errors import AtollError, StorageConflictError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Capabilities, Portal
from atoll.storage.backend import Export, Room, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.cinder.data_path import DataPath
from atoll.storage.drivers.cinder.facts import Facts, HostProtocol
from atoll.storage.drivers.cinder.remembered import (
    GIB,
    Group,
    Member,
    Remembered,
    Snapshot,
    Volume,
)
from atoll.storage.sidecar.client import Sidecar


class CinderBackend:
    """Groups are the array's where its `driver` has consistent snapshots of them.

    `served_here` when `path` is a target of this machine.
    """

    snapshots_need_volume = True

    def __init__(
        self,
        driver: str,
        remembered: Remembered,
        sidecar: Sidecar,
        path: DataPath,
        *,
        served_here: bool,
    ) -> None:
        self._driver = driver
        self._remembered = remembered
        self._sidecar = sidecar
        self._path = path
        self._served_here = served_here

    @cached_property
    def capabilities(self) -> Capabilities:
        """As the driver says; the array itself cannot keep hosts from writing."""
        protocols: frozenset[HostProtocol] = frozenset({"iscsi"})
        return Capabilities(
            changed_extents="compared",
            direct_read=self._served_here,
            read_only_clones=self._served_here,
            revert=self._facts.revert,
            protocols=protocols if self._served_here else self._facts.protocols,
            chap=self._served_here,
            unit_bytes=GIB,
        )

    def room(self) -> Room:
        """As the driver reports it, to a hundredth of a GiB."""
        total_bytes, free_bytes = self._sidecar.call("room")
        return Room(total_bytes, free_bytes)

    def volumes(self) -> Mapping[str, int]:
        """Those noted, as far as the system can be asked for them."""
        return self._path.sizes(self._remembered.volumes())

    def snapshots(self) -> Collection[str]:
        """Those noted."""
        return self._remembered.snapshots()

    def groups(self) -> Collection[str]:
        """Those the array has an object for."""
        return self._remembered.groups()

    def create_group(self, group: str) -> None:
        """A group of the array's, where that makes a difference."""
        if not self._facts.group_snapshots or self._remembered.group(group) is not None:
            return
        made = Group(group)
        self._remembered.keep_group(made)
        self._remembered.keep_group(
            replace(made, model=self._sidecar.call("create_group", group=made.told()))
        )

    def delete_group(self, group: str) -> None:
        """Remove it."""
        found = self._remembered.group(group)
        if found is not None:
            self._sidecar.call("delete_group", group=found.told())
            self._remembered.forget_group(group)
        self._path.forget_group(group)

    def create_volume(self, group: str, volume: str, size_bytes: int, label: str) -> VolumeIdentity:
        """A volume in its group."""
        wanted = Volume(volume, group, _gib(size_bytes, label), label)
        made = self._remembered.volume(volume)
        if made is None or not made.made:
            self._clear(made)
            self._remembered.keep_volume(wanted)
            model = self._sidecar.call(
                "create_volume", volume=wanted.told(), group=self._told_group(group)
            )
            made = replace(wanted, model=model, made=True)
            self._remembered.keep_volume(made)
        return self._path.identify(made)

    def grow_volume(self, group: str, volume: str, size_bytes: int) -> None:
        """Extend it; hosts see that at their next rescan."""
        known = self._known(volume)
        gib = _gib(size_bytes, known.label)
        if known.unsure:  # some drivers add to what there is, and would do so twice
            known = replace(known, gib=self._path.measure(known) // GIB, unsure=False)
        if known.gib < gib:
            self._remembered.keep_volume(replace(known, unsure=True))
            model = self._sidecar.call("grow", volume=self._told(known), gib=gib)
            known = replace(known, gib=gib, model=model)
        self._remembered.keep_volume(known)

    def move_volume(self, volume: str, group: str, to: str) -> None:
        """From one of the array's groups into another."""
        known = self._known(volume)
        leaves, joins = self._told_group(group), self._told_group(to)
        if known.group != to and (leaves or joins):
            model = self._sidecar.call("move", volume=known.told(), leaves=leaves, joins=joins)
            known = replace(known, model=model)
        self._remembered.keep_volume(replace(known, group=to))

    def delete_volume(self, group: str, volume: str) -> None:
        """Disconnect and delete it."""
        known = self._remembered.volume(volume)
        if known is not None:
            self._clear(known)

    def take_snapshot(self, group: str, snapshot: str, volumes: Sequence[str]) -> SnapshotTimes:
        """By the array of its group, or one by one while nothing is acknowledged."""
        if not volumes:
            now = time.time()
            return SnapshotTimes(now, now, 0.0)
        self.delete_snapshot(snapshot, volumes)
        members = {volume: Member(self._known(volume).gib) for volume in volumes}
        taken = Snapshot(snapshot, group, members, whole=self._remembered.group(group) is not None)
        self._remembered.keep_snapshot(taken)
        try:
            return self._take(taken)
        except AtollError:
            with suppress(AtollError):  # then the engine does it
                self.delete_snapshot(snapshot, volumes)
            raise

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Remove it as it was made."""
        taken = self._remembered.snapshot(snapshot)
        if taken is None:
            return
        if taken.whole:
            self._sidecar.call(
                "delete_group_snapshot",
                group_snapshot=taken.told_whole(),
                pairs=self._pairs(taken),
            )
        else:
            for part, volume in self._pairs(taken):
                self._sidecar.call("delete_snapshot", snapshot=part, volume=volume)
        self._remembered.forget_snapshot(snapshot)

    def clone(
        self, snapshot: str, group: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mapping[str, VolumeIdentity]:
        """A volume from each part of the snapshot, in a group of their own."""
        taken = self._taken(snapshot)
        copies = [
            Volume(volume, group, taken.members[origin].gib, labels.get(volume, ""))
            for origin, volume in volumes.items()
        ]
        made = [self._remembered.volume(copy.id) for copy in copies]
        if not all(each is not None and each.made for each in made):
            self._clone(taken, list(volumes), copies, group)
        return {copy.id: self._path.identify(self._known(copy.id)) for copy in copies}

    def revert(self, group: str, snapshot: str, volumes: Sequence[str]) -> None:
        """One after the other, as nobody reaches them."""
        taken = self._taken(snapshot)
        for volume in volumes:
            known = self._known(volume)
            self._sidecar.call("revert", volume=known.told(), snapshot=taken.told(volume))
            if known.gib != taken.members[volume].gib:  # not every array takes the size back, too
                gib = self._path.measure(known) // GIB
                self._remembered.keep_volume(replace(known, gib=gib))

    def changed_extents(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """All of it: Cinder has no call for what changed."""
        yield Extent(0, self._taken(newer).members[volume].gib * GIB)

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read a volume as it was."""
        return self._path.open_snapshot(volume, snapshot)

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """By this machine's target or the array's."""
        return self._path.serve(group, exports)

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """Where an export is reached."""
        return self._path.portals(group, export)

    def served(self) -> Collection[str]:
        """Groups that this machine's target serves."""
        return self._path.served()

    def release(self, group: str) -> bool:
        """Lift a barrier that a dead process left."""
        return self._path.release(group)

    def stop(self, group: str) -> bool:
        """End this machine's target of a group."""
        return self._path.stop(group)

    @cached_property
    def _facts(self) -> Facts:
        """Asked once a day: the driver takes seconds to start, and presenting may not need it."""
        facts = self._remembered.facts(self._driver)
        if facts is None:
            facts = Facts(**self._sidecar.call("facts"))
            self._remembered.keep_facts(self._driver, facts)
        return facts

    def _clone(
        self, taken: Snapshot, origins: Sequence[str], copies: Sequence[Volume], group: str
    ) -> None:
        """All of them in one call, after what is left of one that was cut short is gone."""
        for copy in copies:
            self._clear(self._remembered.volume(copy.id))
        self.delete_group(group)
        if taken.whole:
            self._remembered.keep_group(Group(group))
        for copy in copies:
            self._remembered.keep_volume(copy)
        models = self._sidecar.call(
            "copy",
            parts=[
                (copy.told(), taken.told(origin), self._known(origin).told())
                for origin, copy in zip(origins, copies, strict=True)
            ],
            group=self._told_group(group),
        )
        for copy, model in zip(copies, models, strict=True):
            self._remembered.keep_volume(replace(copy, model=model, made=True))

    def _take(self, taken: Snapshot) -> SnapshotTimes:
        if taken.whole:
            return self._kept(
                taken,
                self._sidecar.call(
                    "take_group_snapshot",
                    group_snapshot=taken.told_whole(),
                    pairs=self._pairs(taken),
                ),
            )
        if len(taken.members) == 1:
            return self._kept(taken, self._take_each(taken))
        replies: list[dict[str, Any]] = []
        times = self._path.while_held(taken.group, lambda: replies.append(self._take_each(taken)))
        self._kept(taken, replies[0])
        return times

    def _take_each(self, taken: Snapshot) -> dict[str, Any]:
        reply: dict[str, Any] = self._sidecar.call("take_snapshots", pairs=self._pairs(taken))
        return reply

    def _kept(self, taken: Snapshot, reply: Mapping[str, Any]) -> SnapshotTimes:
        members = {
            volume: replace(member, model=model)
            for (volume, member), model in zip(taken.members.items(), reply["models"], strict=True)
        }
        self._remembered.keep_snapshot(
            replace(taken, members=members, model=reply.get("model", {}))
        )
        return SnapshotTimes(reply["started_at"], reply["finished_at"], 0.0)

    def _clear(self, volume: Volume | None) -> None:
        """Remove a volume, whole or not, and the note of it."""
        if volume is None:
            return
        self._path.let_go(volume)
        self._sidecar.call(
            "delete_volume", volume=volume.told(), group=self._told_group(volume.group)
        )
        self._remembered.forget_volume(volume.id)

    def _pairs(self, taken: Snapshot) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Each part of a snapshot with its volume."""
        return [(taken.told(volume), self._told(self._known(volume))) for volume in taken.members]

    def _told(self, volume: Volume) -> dict[str, Any]:
        connected = self._remembered.connections(volume.id)
        return volume.told(_connectors(connected))

    def _told_group(self, group: str) -> dict[str, Any] | None:
        found = self._remembered.group(group)
        return found.told() if found is not None else None

    def _known(self, volume: str) -> Volume:
        found = self._remembered.volume(volume)
        if found is None:
            raise StorageConflictError(
                f"Volume {volume} is in no note of this storage system; restore its records, or "
                "delete the LUN."
            )
        return found

    def _taken(self, snapshot: str) -> Snapshot:
        found = self._remembered.snapshot(snapshot)
        if found is None:
            raise StorageConflictError(
                f"Snapshot {snapshot} is in no note of this storage system; restore its records, or "
                "delete it."
            )
        return found


def _connectors(connections: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [connection.connector for connection in connections]


def _gib(size_bytes: int, label: str) -> int:
    if size_bytes % GIB:
        raise StorageConflictError(
            f"{label} cannot have {size_bytes} bytes: Cinder's volumes have whole GiB."
        )
    return size_bytes // GIB
