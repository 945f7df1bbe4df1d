"""An ONTAP SVM as a backend: a LUN group is a FlexVol, so one snapshot takes all its LUNs."""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, cast

from atoll.model.errors import StorageConflictError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Capabilities, Portal
from atoll.storage.backend import Export, Notes, Place, Room, SnapshotTimes, VolumeIdentity
from atoll.storage.drivers.array import (
    Proxy,
    ReadingCopies,
    ReadingCopy,
    numbered,
    refuse_read_only,
)
from atoll.storage.drivers.ontap.flexvols import FlexVol, FlexVols, Taken
from atoll.storage.drivers.ontap.igroups import Igroups
from atoll.storage.drivers.ontap.names import Names
from atoll.storage.drivers.ontap.session import Ontap, OntapRefusedError


class OntapBackend:
    """A VolumeBackend over one SVM."""

    snapshots_need_volume = False

    def __init__(
        self,
        ontap: Ontap,
        flexvols: FlexVols,
        igroups: Igroups,
        names: Names,
        place: Place,
        proxy: Proxy,
        *,
        aggregate: str,
        os_type: str,
        eradicate: bool,
        move_seconds: float,
    ) -> None:
        self._ontap = ontap
        self._flexvols = flexvols
        self._igroups = igroups
        self._names = names
        self._notes: Notes = place.notes
        self._proxy = proxy
        self._aggregate = aggregate
        self._os_type = os_type
        self._eradicate = eradicate
        self._move_seconds = move_seconds
        self._copies = ReadingCopies(place, self, proxy)

    @property
    def capabilities(self) -> Capabilities:
        """ONTAP's REST API lists no changed blocks of a LUN, and a LUN map cannot be read-only."""
        protocols = cast("frozenset[Literal['iscsi', 'fc']]", self._igroups.protocols())
        return Capabilities(
            changed_extents="compared",
            direct_read=False,
            read_only_clones=False,
            revert=True,
            protocols=protocols,
        )

    def clear(self) -> None:
        """Remove reading copies whose readers died."""
        self._copies.clear()

    def room(self) -> Room:
        """The aggregate's size and what is left of it."""
        found = self._ontap.find(
            "Aggregate",
            "space.block_storage.size,space.block_storage.available",
            name=self._aggregate,
        )
        if not found:
            raise StorageConflictError(
                f"ONTAP at {self._ontap.name} shows no aggregate {self._aggregate}; correct its "
                "name, or let Atoll's user read aggregates."
            )
        space = found[0]["space"]["block_storage"]
        return Room(int(space["size"]), int(space["available"]))

    def volumes(self) -> Mapping[str, int]:
        """All LUNs in our groups' FlexVols."""
        return {
            lun.volume: lun.size_bytes
            for lun in self._flexvols.luns(self._names.flexvols)
            if lun.volume is not None
        }

    def snapshots(self) -> Collection[str]:
        """Our snapshots of our groups' FlexVols."""
        found = self._flexvols.snapshots(self._names.snapshots)
        return {each for taken in found if (each := self._names.snapshot_id(taken.name))}

    def groups(self) -> Collection[str]:
        """Our FlexVols."""
        found = self._flexvols.matching(self._names.flexvols)
        return {group for each in found if (group := self._names.group_id(each.name))}

    def create_group(self, group: str) -> None:
        """An empty FlexVol."""
        self._flexvols.create(self._names.flexvol(group), "Atoll LUN group")

    def delete_group(self, group: str) -> None:
        """Delete the FlexVol, which must have no LUNs but those an unfinished clone left in it."""
        flexvol = self._flexvols.find(self._names.flexvol(group))
        if flexvol is None:
            return
        left = self._flexvols.luns(flexvol.name)
        if left and flexvol.base is None:
            raise StorageConflictError(
                f"FlexVol {flexvol.name} still has {len(left)} LUNs, {left[0].path} among them, "
                "which would go with it; delete them first."
            )
        self._igroups.withdraw(f"/vol/{flexvol.name}/*")
        self._flexvols.remove(flexvol, force=self._eradicate)

    def create_volume(self, group: str, volume: str, size_bytes: int, label: str) -> VolumeIdentity:
        """A thin LUN."""
        self._fit(self._known(group), size_bytes)
        path = self._names.lun(group, volume)
        return self._flexvols.create_lun(path, size_bytes, self._os_type, label).identity

    def grow_volume(self, group: str, volume: str, size_bytes: int) -> None:
        """Resize the LUN if it is smaller."""
        lun = self._flexvols.known_lun(self._names.lun(group, volume))
        if lun.size_bytes < size_bytes:
            self._fit(self._known(group), size_bytes - lun.size_bytes)
            self._flexvols.change_lun(lun, "grow", space={"size": size_bytes})

    def move_volume(self, volume: str, group: str, to: str) -> None:
        """Have the cluster move the LUN to the other FlexVol."""
        target = self._names.lun(to, volume)
        lun = self._flexvols.lun(target)
        if lun is None:
            lun = self._flexvols.known_lun(self._names.lun(group, volume))
            self._fit(self._known(to), lun.size_bytes)
        self._flexvols.move_lun(lun, target, self._move_seconds)

    def delete_volume(self, group: str, volume: str) -> None:
        """Unmap and delete the LUN, in whatever group a move that was cut short left it."""
        for lun in self._flexvols.luns(self._names.flexvols):
            if lun.volume == volume:
                self._igroups.withdraw(lun.path)
                self._flexvols.remove_luns([lun])
        self._igroups.forget(volume)

    def take_snapshot(self, group: str, snapshot: str, volumes: Sequence[str]) -> SnapshotTimes:
        """One snapshot of the FlexVol; what sizes its LUNs have is noted, as ONTAP will not say."""
        started = time.time()
        if volumes:
            flexvol = self._known(group)
            sizes = {
                lun.volume: lun.size_bytes
                for lun in self._flexvols.luns(flexvol.name)
                if lun.volume in volumes
            }
            if missing := [volume for volume in volumes if volume not in sizes]:
                raise StorageConflictError(
                    f"FlexVol {flexvol.name} has no LUN {missing[0]}, so no snapshot was taken; "
                    "bring it back."
                )
            self._notes.put_note(f"sizes:{snapshot}", json.dumps(sizes))
            started = time.time()
            self._flexvols.take(flexvol, self._names.snapshot(snapshot))
        return SnapshotTimes(started, time.time(), 0.0)

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Delete the FlexVol's snapshot."""
        for taken in self._flexvols.snapshots(self._names.snapshot(snapshot)):
            try:
                self._flexvols.delete_snapshot(taken)
            except OntapRefusedError:
                # A dead reader's FlexClone may stand on it.
                self._copies.clear()
                self._flexvols.delete_snapshot(taken)
        self._notes.put_note(f"sizes:{snapshot}", None)

    def clone(
        self, snapshot: str, group: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mapping[str, VolumeIdentity]:
        """A FlexClone, whose LUNs then get their new names."""
        if not volumes:
            self.create_group(group)
            return {}
        flexvol = self._flexvols.clone(
            self._names.flexvol(group), self._taken(snapshot), "Atoll clone"
        )
        ours = set(volumes.values())
        for lun in self._flexvols.luns(flexvol.name):
            copy = lun.volume if lun.volume in ours else volumes.get(lun.volume or "")
            if copy is None:
                self._flexvols.remove_luns([lun])
            else:
                path = self._names.lun(group, copy)
                self._flexvols.settle_lun(lun, path, labels.get(copy, ""))
        made = {
            lun.volume: lun.identity
            for lun in self._flexvols.luns(flexvol.name)
            if lun.volume in ours
        }
        if missing := ours - made.keys():
            raise StorageConflictError(
                f"FlexClone {flexvol.name} lacks {len(missing)} LUNs of snapshot {snapshot}; they "
                "were not in it, see who else works on the cluster."
            )
        return {volume: identity for volume, identity in made.items() if volume is not None}

    def revert(self, group: str, snapshot: str, volumes: Sequence[str]) -> None:
        """Overwrite each LUN as a clone of what it was in the FlexVol's snapshot."""
        taken = self._taken(snapshot)
        for volume in volumes:
            lun = self._flexvols.known_lun(self._names.lun(group, volume))
            source = f"/vol/{taken.flexvol}/.snapshot/{taken.name}/{volume}"
            self._flexvols.change_lun(lun, "revert", clone={"source": {"name": source}})

    def changed_extents(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """The whole LUN: what changed must be found by comparing."""
        for snapshot in (older, newer):
            self._taken(snapshot)
        return iter([Extent(0, self._size_in(newer, volume))])

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read it in a FlexClone over iSCSI."""
        return self._copies.open(volume, snapshot)

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """Map the group's LUNs to exactly these initiators."""
        refuse_read_only(exports, f"ONTAP at {self._ontap.name}")
        flexvol = self._names.flexvol(group)
        maps = self._igroups.maps(f"/vol/{flexvol}/*")
        luns = {lun.volume: lun for lun in self._flexvols.luns(flexvol)} if exports else {}
        wanted = []
        for export in exports:
            lun = luns.get(export.volume)
            if lun is None:
                raise StorageConflictError(
                    f"FlexVol {flexvol} has no LUN {export.volume} to present; reconcile tells "
                    "what is lost."
                )
            self._flexvols.enable(lun)
            wanted.append((export, lun.uuid))
        return self._igroups.serve(wanted, maps)

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """All interfaces of the SVM that the export's initiators can use."""
        return self._igroups.portals_of(export)

    def served(self) -> Collection[str]:
        """None by this machine: the cluster serves by itself."""
        return ()

    def release(self, group: str) -> bool:
        """There is no barrier: a FlexVol's snapshot is atomic by itself."""
        return False

    def stop(self, group: str) -> bool:
        """Nothing on this machine serves."""
        return False

    def reading_copies(self) -> Collection[str]:
        """Tokens in the names of FlexClones."""
        found = self._flexvols.matching(self._names.copies)
        return {token for each in found if (token := self._names.copy_token(each.name))}

    def make_reading_copy(self, token: str, volume: str, snapshot: str) -> ReadingCopy:
        """A FlexClone, and the LUN in it mapped to this machine."""
        portals = self._igroups.portals([self._proxy.initiator])
        if not portals:
            raise StorageConflictError(
                f"ONTAP at {self._ontap.name} has no iSCSI interface in the SVM, and snapshots are "
                "read over iSCSI; give it one that this machine reaches."
            )
        flexvol = self._flexvols.clone(
            self._names.copy(token), self._taken(snapshot), "Atoll reads a snapshot"
        )
        path = f"/vol/{flexvol.name}/{volume}"
        lun = self._flexvols.known_lun(path)
        self._flexvols.enable(lun)
        number = self._igroups.map_proxy(lun.uuid, path, self._proxy.initiator, self._proxy.chap)
        return ReadingCopy(numbered(portals, number), lun.identity.naa)

    def remove_reading_copy(self, token: str) -> None:
        """Unmap what is in the FlexClone and delete it for good: it holds nothing of its own."""
        flexvol = self._flexvols.find(self._names.copy(token))
        if flexvol is not None:
            self._igroups.withdraw(f"/vol/{flexvol.name}/*")
            self._flexvols.remove(flexvol, force=True)

    def _known(self, group: str) -> FlexVol:
        found = self._flexvols.find(self._names.flexvol(group))
        if found is None:
            raise StorageConflictError(
                f"FlexVol {self._names.flexvol(group)} is not there; it was removed by other "
                "means, bring it back."
            )
        return found

    def _fit(self, flexvol: FlexVol, more_bytes: int) -> None:
        held = sum(lun.size_bytes for lun in self._flexvols.luns(flexvol.name))
        self._flexvols.fit(flexvol, held + more_bytes)

    def _taken(self, snapshot: str) -> Taken:
        found = self._flexvols.snapshots(self._names.snapshot(snapshot))
        if not found:
            raise StorageConflictError(
                f"ONTAP at {self._ontap.name} has no snapshot {self._names.snapshot(snapshot)}; it "
                "was deleted by other means."
            )
        return found[0]

    def _size_in(self, snapshot: str, volume: str) -> int:
        noted = self._notes.note(f"sizes:{snapshot}")
        sizes: dict[str, int] = json.loads(noted) if noted else {}
        if volume not in sizes:
            raise StorageConflictError(
                f"It is not noted how large volume {volume} was in snapshot {snapshot}; take "
                "another snapshot and compare with that."
            )
        return sizes[volume]
