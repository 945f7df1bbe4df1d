"""What a driver owes: volumes, snapshots of several at one instant, copies, and who reaches them.

A driver is a VolumeBackend. It knows volumes and snapshots by ids that ManagedEngine makes up and
never uses twice; names, guards, idempotency and crash recovery are ManagedEngine's and need no
second thought in a driver.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from atoll.model.extents import Extent
from atoll.model.readers import BlockReader
from atoll.model.storage import Capabilities, DurabilityChoice, PoolDevice, Portal


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of a pool."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class VolumeIdentity:
    """How a volume introduces itself to initiators, for as long as it exists.

    `naa` is `naa.` and 32 lower-case hex digits. Targets of ours are told what to
    say (`atoll.storage.identity`); arrays say what they like.
    """

    naa: str
    serial: str
    vendor: str
    product: str


@dataclass(frozen=True, slots=True)
class SnapshotTimes:
    """Seconds since the epoch that enclose the instant, and for how long writes were held back."""

    started_at: float
    finished_at: float
    pause_seconds: float


@dataclass(frozen=True, slots=True)
class Chap:
    """What an initiator logs in with, and what the target answers with when that is mutual.

    Secrets have 12 to 16 bytes, as every initiator in the field can take.
    """

    user: str
    secret: str
    mutual_user: str | None = None
    mutual_secret: str | None = None

    def __repr__(self) -> str:
        return f"Chap(user={self.user!r})"


@dataclass(frozen=True, slots=True)
class Export:
    """A volume as it is to be reached: `target` is its iSCSI name, the same for ever.

    `chap` by initiator; either every initiator of an export has one or none.
    """

    volume: str
    target: str
    identity: VolumeIdentity
    size_bytes: int
    initiators: tuple[str, ...]
    chap: Mapping[str, Chap]
    read_only: bool


class Notes(Protocol):
    """Short facts that outlive every process, by key."""

    def note(self, key: str) -> str | None:
        """What is noted, or None."""
        ...

    def notes(self, prefix: str) -> dict[str, str]:
        """All notes whose key begins so."""
        ...

    def put_note(self, key: str, value: str | None) -> None:
        """Note it, or forget it."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend keeps what is not in the storage system.

    `run` is for sockets, locks and logs, gone at a restart of the machine; `notes`
    stay. `id` (12 hex digits) and `seed` tell systems of one machine apart.
    """

    run: Path
    notes: Notes
    id: str

    @property
    def seed(self) -> int:
        """The id as a number."""
        return int(self.id, 16)


class VolumeBackend(Protocol):
    """A storage system seen as volumes in groups.

    Ids (of groups, volumes, snapshots) are 32 lower-case hex digits. Every call
    is idempotent: what is there already is right, deleting what is absent
    succeeds, and a call cut short by kill -9 is repeated or followed by the
    delete. A backend marks what it makes, so that `volumes` and `snapshots` list
    nothing of anybody else's. Raises StorageUnreachableError, PoolFullError
    (having changed nothing) and, for what cannot be done, StorageConflictError.
    ManagedEngine serialises calls about one group; calls about several groups
    may come at once, from any thread or process.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this system can do."""
        ...

    @property
    def snapshots_need_volume(self) -> bool:
        """Whether a volume must stay as long as a snapshot holds it, as on most systems."""
        ...

    def room(self) -> Room:
        """How full the pool is."""
        ...

    def volumes(self) -> Mapping[str, int]:
        """Size in bytes of every volume we made, whole or not."""
        ...

    def snapshots(self) -> Collection[str]:
        """Every snapshot we made, whole or not."""
        ...

    def groups(self) -> Collection[str]:
        """Every group the system keeps an object for; empty where groups are only our records."""
        ...

    def create_group(self, group: str) -> None:
        """Make what a group needs."""
        ...

    def delete_group(self, group: str) -> None:
        """Remove what a group needed; its volumes are gone before."""
        ...

    def create_volume(self, group: str, volume: str, size_bytes: int, label: str) -> VolumeIdentity:
        """A thin volume that reads as zeros. `label` (`group/lun`) is for people who look."""
        ...

    def grow_volume(self, group: str, volume: str, size_bytes: int) -> None:
        """Make a volume at least this large while it is in use."""
        ...

    def move_volume(self, volume: str, group: str, to: str) -> None:
        """Put a volume that nobody reaches into another group."""
        ...

    def delete_volume(self, group: str, volume: str) -> None:
        """Remove a volume, wherever it is; `group` is the last one known."""
        ...

    def take_snapshot(self, group: str, snapshot: str, volumes: Sequence[str]) -> SnapshotTimes:
        """Snapshot these volumes at one instant.

        A write acknowledged on one before another is issued on the next is never
        missing when that other is there. When it cannot be so, raise and leave
        nothing; no volume's writes stay held, whoever dies.
        """
        ...

    def delete_snapshot(self, snapshot: str, volumes: Sequence[str]) -> None:
        """Remove a snapshot, wholly; `volumes` are those known to be in it, none if nobody knows."""
        ...

    def clone(
        self, snapshot: str, group: str, volumes: Mapping[str, str], labels: Mapping[str, str]
    ) -> Mapping[str, VolumeIdentity]:
        """Writable copies of a snapshot's volumes in constant time, in a group that is new.

        `volumes` maps each origin to its copy's id, `labels` a copy's id to what it is
        called; returns the copies' identities.
        """
        ...

    def revert(self, group: str, snapshot: str, volumes: Sequence[str]) -> None:
        """Make these volumes, which nobody reaches, what they were in the snapshot, size and all.

        StorageConflictError only before anything was changed.
        """
        ...

    def changed_extents(self, volume: str, older: str, newer: str) -> Iterator[Extent]:
        """Ranges that may differ between two snapshots; ordered, merged, never one missing.

        Past the older one's end only what holds data is listed.
        """
        ...

    def open_snapshot(self, volume: str, snapshot: str) -> BlockReader:
        """Read a volume as it was."""
        ...

    def serve(self, group: str, exports: Sequence[Export]) -> Sequence[str]:
        """Let exactly these be reached, as they say; one sentence per thing that was not so.

        Initiators no longer named lose their sessions before this returns. A
        volume that grew is shown with its new size.
        """
        ...

    def portals(self, group: str, export: Export) -> Sequence[Portal]:
        """Where an export is reached, once and for ever the same."""
        ...

    def served(self) -> Collection[str]:
        """Groups of which something is served, ours or forgotten."""
        ...

    def release(self, group: str) -> bool:
        """Lift a barrier on a group's writes that a dead process left; whether there was one."""
        ...

    def stop(self, group: str) -> bool:
        """End what serves a group on this machine, until `serve` is called; whether it ran."""
        ...


@runtime_checkable
class DeviceBackend(Protocol):
    """A backend whose pool is made of disks that can come and go while it is in use."""

    def devices(self) -> Sequence[PoolDevice]:
        """The pool's disks."""
        ...

    def add_device(self, path: str) -> None:
        """Give the pool another disk, which must be empty; one it has already is right."""
        ...

    def remove_device(self, path: str) -> None:
        """Move everything off a disk and let it go; may take hours, repeatable, absent is success.

        PoolFullError, before anything moves, when the others have no room for it.
        """
        ...


@runtime_checkable
class DurabilityBackend(Protocol):
    """A backend that lets the admin choose when a write counts as written."""

    def durability_choices(self) -> Sequence[DurabilityChoice]:
        """The choices with what each costs on this pool, measured now, in seconds."""
        ...


class Driver(Protocol):
    """A driver's module, as `atoll.storage.drivers` names it. `settings` are its own `Settings`."""

    Settings: type[BaseModel]

    def state_directory(self, name: str, settings: Any) -> Path:
        """Where the records of the storage system `name` are kept."""
        ...

    def create(self, name: str, settings: Any) -> None:
        """Prepare the storage system, or find it prepared; raises AtollError when it is unfit."""
        ...

    def open_backend(self, name: str, settings: Any, place: Place) -> VolumeBackend:
        """The backend of the system, which is prepared."""
        ...
