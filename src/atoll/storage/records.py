"""What a storage system's engine remembers: groups, LUNs, snapshots, who sees what, in SQLite.

A commit here is the instant at which an object exists or is gone; the storage system follows, and
whatever a crash cut short can be told from these records.
"""

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import GroupSnapshot
from atoll.storage.backend import VolumeIdentity

_FORMAT = 2
_ANNOTATION = "annotation/"
_SCHEMA = """
CREATE TABLE lun_group (
  id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, origin TEXT REFERENCES snapshot,
  read_only INTEGER NOT NULL DEFAULT 0);
CREATE TABLE lun (
  volume TEXT PRIMARY KEY, lun_group TEXT NOT NULL REFERENCES lun_group ON DELETE CASCADE,
  name TEXT NOT NULL, size_bytes INTEGER NOT NULL, naa TEXT NOT NULL, serial TEXT NOT NULL,
  vendor TEXT NOT NULL, product TEXT NOT NULL, target TEXT NOT NULL UNIQUE,
  lost INTEGER NOT NULL DEFAULT 0, UNIQUE (lun_group, name));
CREATE TABLE snapshot (
  id TEXT PRIMARY KEY, lun_group TEXT NOT NULL REFERENCES lun_group, name TEXT NOT NULL,
  started_at REAL NOT NULL, finished_at REAL NOT NULL, pause_seconds REAL NOT NULL,
  expires_at REAL, UNIQUE (lun_group, name));
CREATE TABLE snapshot_lun (
  snapshot TEXT NOT NULL REFERENCES snapshot ON DELETE CASCADE, lun TEXT NOT NULL,
  volume TEXT NOT NULL, size_bytes INTEGER NOT NULL, PRIMARY KEY (snapshot, volume));
CREATE INDEX snapshot_lun_volume ON snapshot_lun (volume);
CREATE TABLE initiator (
  volume TEXT NOT NULL REFERENCES lun ON DELETE CASCADE, name TEXT NOT NULL,
  PRIMARY KEY (volume, name));
CREATE TABLE owed (
  kind TEXT NOT NULL, lock TEXT NOT NULL, lun_group TEXT NOT NULL, id TEXT NOT NULL,
  volumes TEXT NOT NULL, PRIMARY KEY (kind, lun_group, id));
CREATE TABLE intent (
  kind TEXT NOT NULL, lun_group TEXT NOT NULL, argument TEXT NOT NULL,
  PRIMARY KEY (kind, lun_group, argument));
CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A LUN group; `origin` is (group, snapshot) by name for a clone."""

    id: str
    name: str
    origin: tuple[str, str] | None
    read_only: bool


@dataclass(frozen=True, slots=True)
class LunRecord:
    """A LUN, its volume, and the name of its iSCSI target."""

    volume: str
    name: str
    size_bytes: int
    identity: VolumeIdentity
    target: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot and its volumes as (LUN's name then, volume, size in bytes)."""

    id: str
    taken: GroupSnapshot
    members: tuple[tuple[str, str, int], ...]

    @property
    def volumes(self) -> tuple[str, ...]:
        """Ids of the volumes it holds."""
        return tuple(volume for _, volume, _ in self.members)


@dataclass(frozen=True, slots=True)
class Owed:
    """A removal still to be done: whatever has this id, if the records do not claim it.

    Entered before an object is made and when one is forgotten, so that neither
    can be cut short unnoticed. Removed only under the lock named `lock`, which
    whoever makes it holds. `volumes` are a snapshot's.
    """

    kind: Literal["group", "volume", "snapshot"]
    lock: str
    group: str
    id: str
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Intent:
    """Something begun that must be carried through: `revert` to a snapshot, `move` a volume here."""

    kind: Literal["revert", "move"]
    group: str
    argument: str


class Records:
    """The records of one storage system. Every method is one transaction, durable on return.

    Groups given as a string are meant by id, but for `name`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def exists(self) -> bool:
        """Whether they were laid out."""
        return self._path.exists()

    def create(self) -> None:
        """Lay out empty records; those that exist are left as they are."""
        with self._transaction("EXCLUSIVE", create=True) as rows:
            (version,) = rows.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    rows.execute(statement)
                rows.execute("INSERT INTO note VALUES ('id', ?)", (secrets.token_hex(6),))
                rows.execute(f"PRAGMA user_version = {_FORMAT}")
        self._path.chmod(0o600)

    @property
    def system_id(self) -> str:
        """12 hex digits that tell systems of one machine apart."""
        found = self.note("id")
        if found is None:
            raise StorageUnreachableError(
                f"The records {self._path} lack their id; restore them from a copy."
            )
        return found

    def groups(self) -> list[GroupRecord]:
        """All groups, by name."""
        with self._transaction() as rows:
            return [_group(row) for row in rows.execute(f"{_GROUPS} ORDER BY g.name")]

    def group(self, name: str) -> GroupRecord | None:
        """One group, or None."""
        with self._transaction() as rows:
            row = rows.execute(f"{_GROUPS} WHERE g.name = ?", (name,)).fetchone()
            return _group(row) if row else None

    def add_group(
        self,
        group: str,
        name: str,
        origin: str | None = None,
        luns: Sequence[LunRecord] = (),
        *,
        read_only: bool = False,
    ) -> None:
        """A new group with its LUNs; it and they are no longer owed. `origin` is a snapshot's id."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute(
                "INSERT INTO lun_group VALUES (?, ?, ?, ?)", (group, name, origin, read_only)
            )
            _settle(rows, "group", group)
            for lun in luns:
                _insert_lun(rows, group, lun)

    def remove_group(self, group: GroupRecord, *, always: bool) -> None:
        """Forget a group without snapshots and its LUNs, as `remove_lun` does, and owe its removal."""
        with self._transaction("IMMEDIATE") as rows:
            volumes = rows.execute("SELECT volume FROM lun WHERE lun_group = ?", (group.id,))
            for (volume,) in volumes.fetchall():
                _forget_lun(rows, group, volume, always=always)
            rows.execute("DELETE FROM lun_group WHERE id = ?", (group.id,))
            _owe(rows, Owed("group", group.name, group.id, group.id))

    def clones_of(self, snapshot: str) -> list[str]:
        """Names of the clones that stand on a snapshot."""
        with self._transaction() as rows:
            found = rows.execute("SELECT name FROM lun_group WHERE origin = ?", (snapshot,))
            return [name for (name,) in found]

    def luns(self, group: str) -> list[LunRecord]:
        """A group's LUNs, by name."""
        with self._transaction() as rows:
            found = rows.execute(f"{_LUNS} WHERE lun_group = ? ORDER BY name", (group,))
            return [_lun(row) for row in found]

    def add_lun(self, group: str, lun: LunRecord) -> None:
        """A new LUN, no longer owed."""
        with self._transaction("IMMEDIATE") as rows:
            _insert_lun(rows, group, lun)

    def rename_lun(self, volume: str, name: str) -> None:
        """Another name for a LUN."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("UPDATE lun SET name = ? WHERE volume = ?", (name, volume))

    def resize_lun(self, volume: str, size_bytes: int) -> None:
        """How large a LUN is to be; the engine makes it so."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("UPDATE lun SET size_bytes = ? WHERE volume = ?", (size_bytes, volume))

    def set_lost(self, volume: str, *, lost: bool) -> None:
        """Whether the storage system still has a LUN's volume."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("UPDATE lun SET lost = ? WHERE volume = ?", (lost, volume))

    def begin_move(self, volume: str, to: str) -> None:
        """A LUN is in another group from now on, and its volume must follow."""
        with self._transaction("IMMEDIATE") as rows:
            (old,) = rows.execute(
                "SELECT lun_group FROM lun WHERE volume = ?", (volume,)
            ).fetchone()
            rows.execute("UPDATE lun SET lun_group = ? WHERE volume = ?", (to, volume))
            rows.execute("INSERT INTO intent VALUES ('move', ?, ?)", (to, f"{volume} {old}"))

    def remove_lun(self, group: GroupRecord, volume: str, *, always: bool) -> None:
        """Forget a LUN and owe its volume's removal: unless snapshots hold it, or `always`."""
        with self._transaction("IMMEDIATE") as rows:
            _forget_lun(rows, group, volume, always=always)

    def target_taken(self, target: str) -> bool:
        """Whether a LUN has this target's name."""
        with self._transaction() as rows:
            found = rows.execute("SELECT 1 FROM lun WHERE target = ?", (target,)).fetchone()
            return found is not None

    def snapshots(self, group: str) -> list[SnapshotRecord]:
        """A group's snapshots, oldest first."""
        with self._transaction() as rows:
            found = rows.execute(
                f"{_SNAPSHOTS} WHERE s.lun_group = ? ORDER BY s.started_at, s.rowid", (group,)
            ).fetchall()
            return [_snapshot(rows, row) for row in found]

    def snapshot(self, group: str, name: str) -> SnapshotRecord | None:
        """One snapshot, or None."""
        with self._transaction() as rows:
            row = rows.execute(
                f"{_SNAPSHOTS} WHERE s.lun_group = ? AND s.name = ?", (group, name)
            ).fetchone()
            return _snapshot(rows, row) if row else None

    def add_snapshot(self, snapshot: SnapshotRecord, group: str) -> None:
        """A snapshot that was taken, no longer owed."""
        taken = snapshot.taken
        with self._transaction("IMMEDIATE") as rows:
            rows.execute(
                "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    snapshot.id, group, taken.name, taken.started_at, taken.finished_at,
                    taken.pause_seconds, taken.expires_at,
                ),
            )  # fmt: skip
            rows.executemany(
                "INSERT INTO snapshot_lun VALUES (?, ?, ?, ?)",
                [(snapshot.id, *member) for member in snapshot.members],
            )
            _settle(rows, "snapshot", snapshot.id)

    def keep_snapshot(self, snapshot: str, expires_at: float | None) -> None:
        """When a snapshot may go, in seconds since the epoch; None is never."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("UPDATE snapshot SET expires_at = ? WHERE id = ?", (expires_at, snapshot))

    def annotation(self, snapshot: str) -> str | None:
        """What a snapshot's maker wrote on it."""
        return self.note(_ANNOTATION + snapshot)

    def annotate(self, snapshot: str, annotation: str) -> None:
        """Write it on a snapshot, in place of what was there."""
        self.put_note(_ANNOTATION + snapshot, annotation)

    def remove_snapshot(self, group: GroupRecord, snapshot: SnapshotRecord) -> None:
        """Forget a snapshot; owe its removal and that of volumes only it still held."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("DELETE FROM snapshot WHERE id = ?", (snapshot.id,))
            rows.execute("DELETE FROM note WHERE key = ?", (_ANNOTATION + snapshot.id,))
            _owe(
                rows,
                Owed("snapshot", group.name, group.id, snapshot.id, snapshot.volumes),
            )
            for volume in snapshot.volumes:
                if not _claimed(rows, volume):
                    _owe(rows, Owed("volume", group.name, group.id, volume))

    def held_volumes(self) -> set[str]:
        """Volumes that a LUN is or a snapshot holds."""
        with self._transaction() as rows:
            found = rows.execute("SELECT volume FROM lun UNION SELECT volume FROM snapshot_lun")
            return {volume for (volume,) in found}

    def presented(self, group: str) -> dict[str, tuple[str, ...]]:
        """Initiators by volume, for the LUNs of a group that are presented."""
        with self._transaction() as rows:
            found: dict[str, tuple[str, ...]] = {}
            for volume, name in rows.execute(
                "SELECT volume, initiator.name FROM initiator JOIN lun USING (volume) "
                "WHERE lun_group = ? ORDER BY lun.name, initiator.name",
                (group,),
            ):
                found[volume] = (*found.get(volume, ()), name)
            return found

    def present(self, volume: str, initiators: Sequence[str]) -> None:
        """Set a LUN's initiators, none for withdrawn."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("DELETE FROM initiator WHERE volume = ?", (volume,))
            rows.executemany(
                "INSERT INTO initiator VALUES (?, ?)",
                [(volume, name) for name in sorted(set(initiators))],
            )

    def owe(self, *owed: Owed) -> None:
        """Enter what is about to be made, or found to be nobody's."""
        with self._transaction("IMMEDIATE") as rows:
            for each in owed:
                _owe(rows, each)

    def owed(self, under: str | None = None) -> list[Owed]:
        """What is to be removed, under one lock or all; snapshots first, groups last."""
        with self._transaction() as rows:
            found = rows.execute(
                "SELECT kind, lock, lun_group, id, volumes FROM owed "
                "WHERE ?1 IS NULL OR lock = ?1 "
                "ORDER BY CASE kind WHEN 'snapshot' THEN 0 WHEN 'volume' THEN 1 ELSE 2 END, id",
                (under,),
            )
            return [
                Owed(kind, lock, lun_group, each, tuple(json.loads(volumes)))
                for kind, lock, lun_group, each, volumes in found
            ]

    def paid(self, owed: Owed) -> None:
        """A removal is done."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute(
                "DELETE FROM owed WHERE kind = ? AND lun_group = ? AND id = ?",
                (owed.kind, owed.group, owed.id),
            )

    def begin_revert(self, group: str, snapshot: str, sizes: Mapping[str, int]) -> None:
        """A group is what a snapshot was from now on, and its volumes must follow; sizes by volume."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("INSERT OR IGNORE INTO intent VALUES ('revert', ?, ?)", (group, snapshot))
            rows.executemany(
                "UPDATE lun SET size_bytes = ? WHERE volume = ?",
                [(size, volume) for volume, size in sizes.items()],
            )

    def abandon_revert(self, group: str, snapshot: str, sizes: Mapping[str, int]) -> None:
        """It was refused, so a group is what it was; sizes by volume."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute(
                "DELETE FROM intent WHERE kind = 'revert' AND lun_group = ? AND argument = ?",
                (group, snapshot),
            )
            rows.executemany(
                "UPDATE lun SET size_bytes = ? WHERE volume = ?",
                [(size, volume) for volume, size in sizes.items()],
            )

    def intents(self, group: str | None = None) -> list[Intent]:
        """What was begun and not carried through, in one group or all."""
        with self._transaction() as rows:
            found = rows.execute(
                "SELECT kind, lun_group, argument FROM intent WHERE ?1 IS NULL OR lun_group = ?1 "
                "ORDER BY rowid",
                (group,),
            )
            return [Intent(*row) for row in found]

    def carried_out(self, intent: Intent) -> None:
        """It is done."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute(
                "DELETE FROM intent WHERE kind = ? AND lun_group = ? AND argument = ?",
                (intent.kind, intent.group, intent.argument),
            )

    def note(self, key: str) -> str | None:
        """What is noted, or None."""
        with self._transaction() as rows:
            row = rows.execute("SELECT value FROM note WHERE key = ?", (key,)).fetchone()
            return row[0] if row else None

    def notes(self, prefix: str) -> dict[str, str]:
        """All notes whose key begins so."""
        with self._transaction() as rows:
            found = rows.execute(
                "SELECT key, value FROM note WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
            )
            return dict(found.fetchall())

    def put_note(self, key: str, value: str | None) -> None:
        """Note it, or forget it."""
        with self._transaction("IMMEDIATE") as rows:
            if value is None:
                rows.execute("DELETE FROM note WHERE key = ?", (key,))
            else:
                rows.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (key, value))

    @contextmanager
    def _transaction(
        self,
        kind: Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"] = "DEFERRED",
        *,
        create: bool = False,
    ) -> Iterator[sqlite3.Connection]:
        # Reads are deferred, so that a pool gone read-only can still be read from.
        # A connection a transaction: nothing stays open that would keep the pool from unmounting.
        mode = "rwc" if create else "rw"
        try:
            rows = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode={mode}", timeout=30, isolation_level=None,
                uri=True,
            )  # fmt: skip
            try:
                rows.execute("PRAGMA synchronous = EXTRA")
                rows.execute("PRAGMA foreign_keys = ON")
                rows.execute(f"BEGIN {kind}")
                if not create:
                    self._check_format(rows)
                yield rows
                rows.execute("COMMIT")
            finally:
                rows.close()  # rolls back what was not committed
        except sqlite3.Error as error:
            raise StorageUnreachableError(
                f"The storage records {self._path} cannot be used: {error}; check the file system "
                "they lie on and its free space."
            ) from error

    def _check_format(self, rows: sqlite3.Connection) -> None:
        (version,) = rows.execute("PRAGMA user_version").fetchone()
        if version != _FORMAT:
            raise StorageUnreachableError(
                f"The storage records {self._path} have format {version}, this Atoll knows "
                f"{_FORMAT}; use the version of Atoll that wrote them."
            )


_GROUPS = (
    "SELECT g.id, g.name, o.name, s.name, g.read_only FROM lun_group g "
    "LEFT JOIN snapshot s ON s.id = g.origin LEFT JOIN lun_group o ON o.id = s.lun_group"
)
_LUNS = "SELECT volume, name, size_bytes, naa, serial, vendor, product, target, lost FROM lun"
_SNAPSHOTS = (
    "SELECT s.id, g.name, s.name, s.started_at, s.finished_at, s.pause_seconds, s.expires_at "
    "FROM snapshot s JOIN lun_group g ON g.id = s.lun_group"
)


def _group(row: tuple[str, str, str | None, str | None, int]) -> GroupRecord:
    group, name, origin_group, origin_snapshot, read_only = row
    origin = (origin_group, origin_snapshot) if origin_group and origin_snapshot else None
    return GroupRecord(group, name, origin, bool(read_only))


def _lun(row: tuple[str, str, int, str, str, str, str, str, int]) -> LunRecord:
    volume, name, size_bytes, naa, serial, vendor, product, target, lost = row
    identity = VolumeIdentity(naa, serial, vendor, product)
    return LunRecord(volume, name, size_bytes, identity, target, bool(lost))


def _snapshot(
    rows: sqlite3.Connection, row: tuple[str, str, str, float, float, float, float | None]
) -> SnapshotRecord:
    snapshot, group, name, started_at, finished_at, pause_seconds, expires_at = row
    members = tuple(
        rows.execute(
            "SELECT lun, volume, size_bytes FROM snapshot_lun WHERE snapshot = ? ORDER BY lun",
            (snapshot,),
        )
    )
    sizes = tuple((lun, size) for lun, _, size in members)
    taken = GroupSnapshot(group, name, started_at, finished_at, pause_seconds, sizes, expires_at)
    return SnapshotRecord(snapshot, taken, members)


def _insert_lun(rows: sqlite3.Connection, group: str, lun: LunRecord) -> None:
    identity = lun.identity
    rows.execute(
        "INSERT INTO lun VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
        (
            lun.volume, group, lun.name, lun.size_bytes, identity.naa, identity.serial,
            identity.vendor, identity.product, lun.target,
        ),
    )  # fmt: skip
    _settle(rows, "volume", lun.volume)


def _forget_lun(rows: sqlite3.Connection, group: GroupRecord, volume: str, *, always: bool) -> None:
    rows.execute("DELETE FROM lun WHERE volume = ?", (volume,))
    if always or not _claimed(rows, volume):
        _owe(rows, Owed("volume", group.name, group.id, volume))


def _claimed(rows: sqlite3.Connection, volume: str) -> bool:
    found = rows.execute(
        "SELECT 1 FROM lun WHERE volume = ?1 UNION SELECT 1 FROM snapshot_lun WHERE volume = ?1",
        (volume,),
    )
    return found.fetchone() is not None


def _owe(rows: sqlite3.Connection, owed: Owed) -> None:
    rows.execute(
        "INSERT OR IGNORE INTO owed VALUES (?, ?, ?, ?, ?)",
        (owed.kind, owed.lock, owed.group, owed.id, json.dumps(owed.volumes)),
    )


def _settle(rows: sqlite3.Connection, kind: str, identifier: str) -> None:
    rows.execute("DELETE FROM owed WHERE kind = ? AND id = ?", (kind, identifier))
