"""Finishes or clears what a crash cut short, and compares the records with the storage system."""

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from atoll.storage.backend import VolumeBackend
from atoll.storage.exports import Exports
from atoll.storage.locks import Locks
from atoll.storage.records import GroupRecord, Intent, Owed, Records

_STRANGER = "stranger:"
"""Begins the note of when something that no record explains was first seen."""

_CLEARED = ("daemon", "snapshot", "volume", "group")


@dataclass(frozen=True, slots=True)
class Stranger:
    """Something of ours, by its mark, that no record explains; a daemon by the group it serves."""

    kind: Literal["daemon", "group", "snapshot", "volume"]
    id: str

    @property
    def note(self) -> str:
        """Where the time it was first seen is noted."""
        return f"{_STRANGER}{self.kind}:{self.id}"


class Repair:
    """`finish` wants the group's lock held; `release` and `reconcile` take locks themselves."""

    def __init__(
        self,
        backend: VolumeBackend,
        records: Records,
        locks: Locks,
        exports: Exports,
        grace_seconds: float,
    ) -> None:
        self._backend = backend
        self._records = records
        self._locks = locks
        self._exports = exports
        self._grace_seconds = grace_seconds

    def release(self) -> None:
        """Lift every barrier whose holder is dead; the living hold the group's lock."""
        served = self._backend.served()
        names = {record.id: record.name for record in self._records.groups()} if served else {}
        for group in served:
            with self._locks.held_if_free(names.get(group, group)) as ours:
                if ours:
                    self._backend.release(group)

    def finish(self, name: str) -> list[str]:
        """What must be right before a group is changed: writes flow, what was begun is done."""
        done = []
        group = self._records.group(name)
        if group is not None:
            if self._backend.release(group.id):
                done.append(f"Let writes to LUN group {name} through again.")
            for intent in self._records.intents(group.id):
                done.append(self._carry_out(group, intent))
        return done + self.pay(self._records.owed(name))

    def pay(self, owed: Iterable[Owed]) -> list[str]:
        """Remove what is owed, under the lock of each."""
        done = []
        for each in owed:
            if each.kind == "snapshot":
                self._backend.delete_snapshot(each.id, each.volumes)
            elif each.kind == "volume":
                self._backend.delete_volume(each.group, each.id)
            else:
                self._backend.stop(each.group)
                self._backend.delete_group(each.id)
            self._records.paid(each)
            done.append(f"Removed {each.kind} {each.id}, which was left from an earlier call.")
        return done

    def reconcile(self) -> list[str]:
        """All groups in turn; one sentence per repair, and per thing that needs a person."""
        names = {record.name for record in self._records.groups()}
        names |= {owed.lock for owed in self._records.owed()}
        done = []
        for name in sorted(names):
            with self._locks.held(name):
                done += self.finish(name)
        done += self._compare()
        for name in sorted(names):
            with self._locks.held(name):
                group = self._records.group(name)
                if group is not None:
                    done += self._exports.apply(group)
        return done + self._strangers()

    def _carry_out(self, group: GroupRecord, intent: Intent) -> str:
        if intent.kind == "move":
            volume, _, old = intent.argument.partition(" ")
            self._backend.move_volume(volume, old, group.id)
            said = f"Finished moving volume {volume} to LUN group {group.name}."
        else:
            self.revert(group, intent.argument)
            said = f"Finished reverting LUN group {group.name}."
        self._records.carried_out(intent)
        return said

    def revert(self, group: GroupRecord, snapshot: str) -> None:
        """Make a group's volumes what the snapshot with this id holds of them."""
        held = {
            volume
            for record in self._records.snapshots(group.id)
            if record.id == snapshot
            for volume in record.volumes
        }
        ours = [lun.volume for lun in self._records.luns(group.id) if lun.volume in held]
        if ours:
            self._backend.revert(group.id, snapshot, ours)

    def _compare(self) -> list[str]:
        """Tell what the system lost, and finish what grew."""
        done = []
        there, taken = self._backend.volumes(), self._backend.snapshots()
        for group in self._records.groups():
            if self._as_recorded(group, there, taken):
                continue
            with self._locks.held(group.name):  # once more, while nobody changes it
                done += self._compare_group(
                    group, self._backend.volumes(), self._backend.snapshots()
                )
        return done

    def _as_recorded(
        self, group: GroupRecord, there: Mapping[str, int], taken: Collection[str]
    ) -> bool:
        return all(
            there.get(lun.volume) == lun.size_bytes and not lun.lost
            for lun in self._records.luns(group.id)
        ) and all(
            record.id in taken for record in self._records.snapshots(group.id) if record.members
        )

    def _compare_group(
        self, group: GroupRecord, there: Mapping[str, int], taken: Collection[str]
    ) -> list[str]:
        done = []
        for lun in self._records.luns(group.id):
            size_bytes = there.get(lun.volume)
            name = f"{group.name}/{lun.name}"
            if size_bytes is None:
                done.append(
                    f"LUN {name} is recorded but its volume {lun.volume} is not there; restore "
                    "it, or delete the LUN by name."
                )
            elif size_bytes < lun.size_bytes:
                self._backend.grow_volume(group.id, lun.volume, lun.size_bytes)
                done.append(f"Finished growing LUN {name} to {lun.size_bytes} bytes.")
            elif size_bytes > lun.size_bytes:
                self._records.resize_lun(lun.volume, size_bytes)
                done.append(f"LUN {name} was grown to {size_bytes} bytes by other means; noted.")
            if lun.lost != (size_bytes is None):
                self._records.set_lost(lun.volume, lost=size_bytes is None)
        return done + [
            f"Snapshot {group.name}@{record.taken.name} is recorded but the storage system has it "
            "no more; delete it by name."
            for record in self._records.snapshots(group.id)
            if record.members and record.id not in taken
        ]

    def _strangers(self) -> list[str]:
        done = []
        found = self._unexplained() & self._unexplained()  # twice: what was just being removed
        known = self._records.notes(_STRANGER)
        for note in known.keys() - {stranger.note for stranger in found}:
            self._records.put_note(note, None)
        now = time.time()
        # What stands on another goes first: a group holds volumes, and these their snapshots.
        for stranger in sorted(found, key=lambda each: (_CLEARED.index(each.kind), each.id)):
            first = float(known.get(stranger.note, now))
            if stranger.note not in known:
                self._records.put_note(stranger.note, str(now))
            left = first + self._grace_seconds - now
            if left > 0:
                done.append(
                    f"The {stranger.kind} {stranger.id} is in no record and is removed in "
                    f"{left / 86400:.1f} days; if it matters, restore the records that knew it."
                )
            else:
                done += self._clear(stranger)
                self._records.put_note(stranger.note, None)
        return done

    def _clear(self, stranger: Stranger) -> list[str]:
        with self._locks.held(stranger.id):
            self._backend.stop(stranger.id)
            if stranger.kind != "daemon":
                owed = Owed(stranger.kind, stranger.id, stranger.id, stranger.id)
                self._records.owe(owed)
                self.pay([owed])
        return [
            f"Removed the {stranger.kind} {stranger.id}, which no record explained for "
            f"{self._grace_seconds / 86400:g} days."
        ]

    def _unexplained(self) -> set[Stranger]:
        # The system first: what is made meanwhile is owed or recorded before it exists.
        there = {
            *(Stranger("volume", each) for each in self._backend.volumes()),
            *(Stranger("snapshot", each) for each in self._backend.snapshots()),
            *(Stranger("group", each) for each in self._backend.groups()),
            *(Stranger("daemon", each) for each in self._backend.served()),
        }
        ours = {Stranger(each.kind, each.id) for each in self._records.owed()}
        ours |= {Stranger("volume", each) for each in self._records.held_volumes()}
        for group in self._records.groups():
            ours |= {Stranger("group", group.id), Stranger("daemon", group.id)}
            ours |= {
                Stranger("snapshot", record.id) for record in self._records.snapshots(group.id)
            }
        return there - ours
