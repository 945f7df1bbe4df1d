"""Several storage systems as one: each LUN group lives on one of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from atoll.model.errors import StorageConflictError
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
from atoll.storage.interface import StorageEngine

_Item = TypeVar("_Item")


def as_one(systems: Sequence[StorageEngine]) -> StorageEngine:
    """The one system there is, or a Federation."""
    return systems[0] if len(systems) == 1 else Federation(systems)


def systems_of(engine: StorageEngine) -> Sequence[StorageEngine]:
    """The systems of a Federation, or the engine itself."""
    return engine.systems if isinstance(engine, Federation) else [engine]


def system_with(engine: StorageEngine, group: str) -> str | None:
    """The name of the storage system that a LUN group lives on; None if on none."""
    if isinstance(engine, Federation):
        system = engine.system_with(group)
        return system.name if system else None
    return engine.name


class Federation:
    """A StorageEngine over several, whose groups have names of their own.

    A new group goes where the most is free, a clone where its snapshot is. A
    group's name must be on one system only: of two the first would hide the
    second, so that is an error.
    """

    def __init__(self, systems: Sequence[StorageEngine]) -> None:
        self._systems = tuple(systems)

    @property
    def name(self) -> str:
        """All names."""
        return "+".join(system.name for system in self._systems)

    @property
    def systems(self) -> Sequence[StorageEngine]:
        """The systems themselves."""
        return self._systems

    def system_with(self, group: str) -> StorageEngine | None:
        """The one that a group lives on; None if on none."""
        for system in self._systems:
            if any(each.name == group for each in system.groups()):
                return system
        return None

    @property
    def capabilities(self) -> Capabilities:
        """What every one of them can do."""
        each = [system.capabilities for system in self._systems]
        return Capabilities(
            changed_extents="listed"
            if all(one.changed_extents == "listed" for one in each)
            else "compared",
            direct_read=all(one.direct_read for one in each),
            read_only_clones=all(one.read_only_clones for one in each),
            revert=all(one.revert for one in each),
            protocols=frozenset.intersection(*(one.protocols for one in each)),
            unit_bytes=max(one.unit_bytes for one in each),
        )

    def capacity(self) -> PoolCapacity:
        """All together."""
        each = [system.capacity() for system in self._systems]
        return PoolCapacity(
            sum(one.total_bytes for one in each),
            sum(one.free_bytes for one in each),
            sum(one.provisioned_bytes for one in each),
        )

    def alarms(self) -> Sequence[PoolAlarm]:
        """Those of every system, which each names, the worst first."""
        return sorted(
            (
                replace(alarm, text=f"{system.name}: {alarm.text}")
                for system in self._systems
                for alarm in system.alarms()
            ),
            key=lambda alarm: alarm.level,  # critical comes before warning
        )

    def devices(self) -> Sequence[PoolDevice]:
        """A system's own: name it."""
        raise self._nameless()

    def add_device(self, path: str) -> None:
        """A system's own: name it."""
        raise self._nameless()

    def remove_device(self, path: str) -> None:
        """A system's own: name it."""
        raise self._nameless()

    def durability_choices(self) -> Sequence[DurabilityChoice]:
        """A system's own: name it."""
        raise self._nameless()

    def groups(self) -> Sequence[LunGroup]:
        """All LUN groups of all systems, by name."""
        found = sorted(
            (group for system in self._systems for group in system.groups()),
            key=lambda group: group.name,
        )
        for one, other in pairwise(found):
            if one.name == other.name:
                raise StorageConflictError(
                    f"Two storage systems have a LUN group {one.name}; move the LUNs of one of "
                    "them to a group of another name."
                )
        return found

    def create_group(self, group: str) -> LunGroup:
        """An empty LUN group, where the most is free."""
        return (self.system_with(group) or self._roomiest()).create_group(group)

    def delete_group(self, group: str, *, force: bool = False) -> None:
        """Remove a group and its LUNs."""
        if (system := self.system_with(group)) is not None:
            system.delete_group(group, force=force)

    def create_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """A thin LUN."""
        return self._at(group).create_lun(group, lun, size_bytes)

    def grow_lun(self, group: str, lun: str, size_bytes: int) -> Lun:
        """Make a LUN larger."""
        return self._at(group).grow_lun(group, lun, size_bytes)

    def rename_lun(self, group: str, lun: str, name: str) -> Lun:
        """Another name for a LUN."""
        return self._at(group).rename_lun(group, lun, name)

    def move_lun(self, group: str, lun: str, to: str) -> Lun:
        """Put a LUN into another group of the same system."""
        system = self._at(group)
        if system is not self._at(to):
            raise StorageConflictError(
                f"LUN groups {group} and {to} are on different storage systems; move the data by "
                "storage vMotion instead."
            )
        return system.move_lun(group, lun, to)

    def delete_lun(self, group: str, lun: str, *, force: bool = False) -> None:
        """Remove a LUN."""
        if (system := self.system_with(group)) is not None:
            system.delete_lun(group, lun, force=force)

    def require_room(self, group: str) -> None:
        """Refuse when the group's system is below its reserve."""
        self._at(group).require_room(group)

    def snapshot_group(
        self, group: str, name: str, expires_at: float | None = None
    ) -> GroupSnapshot:
        """Snapshot all LUNs of a group at one instant."""
        return self._at(group).snapshot_group(group, name, expires_at)

    def snapshots(self, group: str) -> Sequence[GroupSnapshot]:
        """A group's snapshots."""
        system = self.system_with(group)
        return system.snapshots(group) if system is not None else []

    def keep_snapshot(
        self, group: str, name: str, expires_at: float | None = None
    ) -> GroupSnapshot:
        """Say when a snapshot may go."""
        return self._at(group).keep_snapshot(group, name, expires_at)

    def annotate_snapshot(self, group: str, name: str, annotation: str) -> None:
        """Write on a snapshot what it is worth."""
        self._at(group).annotate_snapshot(group, name, annotation)

    def annotation(self, group: str, name: str) -> str | None:
        """What was written on a snapshot."""
        system = self.system_with(group)
        return system.annotation(group, name) if system is not None else None

    def expire_snapshots(self) -> Sequence[str]:
        """Delete the snapshots whose time is over, on every system."""
        return self._of_all(lambda system: system.expire_snapshots())

    def revert_group(self, group: str, snapshot: str) -> LunGroup:
        """Make every LUN what it was in a snapshot."""
        return self._at(group).revert_group(group, snapshot)

    def delete_snapshot(self, group: str, name: str) -> None:
        """Remove a snapshot."""
        if (system := self.system_with(group)) is not None:
            system.delete_snapshot(group, name)

    def clone(self, group: str, snapshot: str, clone: str, *, read_only: bool = False) -> LunGroup:
        """A copy of a snapshot, on the same system."""
        system = self._at(group)
        if self.system_with(clone) not in (None, system):
            raise StorageConflictError(
                f"Another storage system has a LUN group {clone}; choose another name."
            )
        return system.clone(group, snapshot, clone, read_only=read_only)

    def delete_clone(self, clone: str) -> None:
        """Withdraw and remove a clone."""
        if (system := self.system_with(clone)) is not None:
            system.delete_clone(clone)

    def present(self, group: str, lun: str, initiators: Sequence[str]) -> Presentation:
        """Let exactly these initiators reach the LUN."""
        return self._at(group).present(group, lun, initiators)

    def withdraw(self, group: str, lun: str) -> None:
        """End all access to the LUN."""
        if (system := self.system_with(group)) is not None:
            system.withdraw(group, lun)

    def presentations(self) -> Sequence[Presentation]:
        """What is presented, of all systems."""
        return self._of_all(lambda system: system.presentations())

    def changed_extents(self, group: str, lun: str, older: str, newer: str) -> Iterator[Extent]:
        """Ranges that may differ between two snapshots."""
        return self._at(group).changed_extents(group, lun, older, newer)

    def open_snapshot(self, group: str, lun: str, snapshot: str) -> BlockReader:
        """Read a LUN as it was."""
        return self._at(group).open_snapshot(group, lun, snapshot)

    def reconcile(self) -> Sequence[str]:
        """Bring every system in line with its records."""
        return self._of_all(lambda system: system.reconcile())

    def stop(self) -> None:
        """End what serves LUNs, on every system."""
        for system in self._systems:
            system.stop()

    def _at(self, group: str) -> StorageEngine:
        system = self.system_with(group)
        if system is None:
            raise StorageConflictError(
                f"No storage system has a LUN group {group}; create it or correct the name."
            )
        return system

    def _roomiest(self) -> StorageEngine:
        return max(self._systems, key=lambda system: system.capacity().free_bytes)

    def _of_all(self, ask: Callable[[StorageEngine], Sequence[_Item]]) -> list[_Item]:
        return [item for system in self._systems for item in ask(system)]

    def _nameless(self) -> StorageConflictError:
        return StorageConflictError(
            f"Which storage system is meant: {', '.join(each.name for each in self._systems)}? "
            "Name it with --system."
        )
