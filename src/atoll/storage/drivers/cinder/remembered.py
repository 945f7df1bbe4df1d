"""What Cinder would keep in its database, in the storage system's notes: one note an object.

A note is made before the object and forgotten after it, so that whatever there may be is known.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from atoll.storage.backend import Notes
from atoll.storage.drivers.cinder.facts import Facts

GIB = 1 << 30
_FACTS_SECONDS = 86400.0


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `model` is what its driver had us keep, in the fields of Cinder's volumes.

    `made` once the driver said so; `unsure` as long as it may be larger than `gib`,
    for a call that grows it has not ended well. `token` is that of a reading copy,
    which is no volume to the engine.
    """

    id: str
    group: str
    gib: int
    label: str
    model: Mapping[str, Any] = field(default_factory=dict)
    made: bool = False
    unsure: bool = False
    token: str = ""

    def told(self, others: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """What the sidecar is told; `others` are the connectors of its hosts, but for one concerned."""
        return {
            "id": self.id,
            "gib": self.gib,
            "label": self.label,
            "model": dict(self.model),
            "connectors": list(others),
        }


@dataclass(frozen=True, slots=True)
class Member:
    """One volume's part of a snapshot."""

    gib: int
    model: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of volumes of a group, by volume; `whole` when the array took it of the group."""

    id: str
    group: str
    members: Mapping[str, Member]
    whole: bool
    model: Mapping[str, Any] = field(default_factory=dict)

    def told(self, volume: str) -> dict[str, Any]:
        """What the sidecar is told of one volume's part."""
        member = self.members[volume]
        return {
            "id": snapshot_of(self.id, volume),
            "gib": member.gib,
            "model": dict(member.model),
            "whole": self.told_whole() if self.whole else None,
        }

    def told_whole(self) -> dict[str, Any]:
        """What the sidecar is told of the group's snapshot."""
        return {"id": self.id, "model": dict(self.model), "group": Group(self.group).told()}


@dataclass(frozen=True, slots=True)
class Group:
    """A group that the array has an object for; with a `token` that of a reading copy."""

    id: str
    model: Mapping[str, Any] = field(default_factory=dict)
    token: str = ""

    def told(self) -> dict[str, Any]:
        """What the sidecar is told."""
        return {"id": self.id, "model": dict(self.model)}


@dataclass(frozen=True, slots=True)
class Connection:
    """A host that reaches a volume, or may: `kind` and `data` as Cinder tells, once that is done.

    `here` when it is this machine, to read.
    """

    volume: str
    group: str
    connector: Mapping[str, Any]
    here: bool = False
    kind: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The host's name on the array."""
        return str(self.connector["host"])


class Remembered:
    """The notes of one storage system."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def facts(self, driver: str) -> Facts | None:
        """What a driver said, unless it is too long ago."""
        found = json.loads(self._notes.note(f"facts:{driver}") or "{}")
        if found.get("until", 0) < time.time():
            return None
        return Facts(**found["facts"])

    def keep_facts(self, driver: str, facts: Facts) -> None:
        """Note what a driver said now."""
        told = {"until": time.time() + _FACTS_SECONDS, "facts": asdict(facts)}
        self._notes.put_note(f"facts:{driver}", json.dumps(told))

    def volume(self, volume: str) -> Volume | None:
        """What is known of a volume."""
        found = self._notes.note(f"volume:{volume}")
        return Volume(**json.loads(found)) if found is not None else None

    def volumes(self) -> dict[str, Volume]:
        """All volumes but reading copies, by id."""
        return {volume.id: volume for volume in self._volumes() if not volume.token}

    def copies(self) -> list[Volume]:
        """All reading copies."""
        return [volume for volume in self._volumes() if volume.token]

    def keep_volume(self, volume: Volume) -> None:
        """Note it as it is now."""
        self._notes.put_note(f"volume:{volume.id}", json.dumps(asdict(volume)))

    def forget_volume(self, volume: str) -> None:
        """It is gone."""
        self._notes.put_note(f"volume:{volume}", None)

    def snapshot(self, snapshot: str) -> Snapshot | None:
        """What is known of a snapshot."""
        found = self._notes.note(f"snapshot:{snapshot}")
        return _snapshot(json.loads(found)) if found is not None else None

    def snapshots(self) -> list[str]:
        """The ids of all snapshots."""
        return [key.partition(":")[2] for key in self._notes.notes("snapshot:")]

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Note it as it is now."""
        self._notes.put_note(f"snapshot:{snapshot.id}", json.dumps(asdict(snapshot)))

    def forget_snapshot(self, snapshot: str) -> None:
        """It is gone."""
        self._notes.put_note(f"snapshot:{snapshot}", None)

    def group(self, group: str) -> Group | None:
        """What is known of a group of the array's."""
        found = self._notes.note(f"group:{group}")
        return Group(**json.loads(found)) if found is not None else None

    def groups(self) -> list[str]:
        """The ids of the array's groups, but for those of reading copies."""
        found = (Group(**json.loads(each)) for each in self._notes.notes("group:").values())
        return [group.id for group in found if not group.token]

    def keep_group(self, group: Group) -> None:
        """Note it as it is now."""
        self._notes.put_note(f"group:{group.id}", json.dumps(asdict(group)))

    def forget_group(self, group: str) -> None:
        """It is gone."""
        self._notes.put_note(f"group:{group}", None)

    def connections(self, volume: str = "") -> list[Connection]:
        """Who reaches a volume, or all of them."""
        prefix = f"connection:{volume}:" if volume else "connection:"
        return [Connection(**json.loads(each)) for each in self._notes.notes(prefix).values()]

    def keep_connection(self, connection: Connection) -> None:
        """Note it as it is now."""
        self._notes.put_note(_key(connection), json.dumps(asdict(connection)))

    def forget_connection(self, connection: Connection) -> None:
        """It is ended."""
        self._notes.put_note(_key(connection), None)

    def _volumes(self) -> Iterator[Volume]:
        for found in self._notes.notes("volume:").values():
            yield Volume(**json.loads(found))


def snapshot_of(snapshot: str, volume: str) -> str:
    """The id of one volume's part of a snapshot, the same whenever it is asked for."""
    return sha256(f"{snapshot}:{volume}".encode()).hexdigest()[:32]


def _key(connection: Connection) -> str:
    return f"connection:{connection.volume}:{connection.host}"


def _snapshot(found: dict[str, Any]) -> Snapshot:
    members = {volume: Member(**each) for volume, each in found.pop("members").items()}
    return Snapshot(members=members, **found)
