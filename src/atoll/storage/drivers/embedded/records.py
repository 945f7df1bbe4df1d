"""What the pool remembers: groups, LUNs, snapshots, presentations, in one SQLite file.

A commit here is the instant at which an object exists or is gone; the file system follows, and
whatever a crash cut short can be told from these records.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

from atoll.model.errors import StorageUnreachableError
from atoll.model.storage import GroupSnapshot
from atoll.storage.drivers.embedded.identity import identity_of

_FORMAT = 1
_SCHEMA = """
CREATE TABLE lun_group (
  name TEXT PRIMARY KEY, origin_group TEXT, origin_snapshot TEXT, port INTEGER UNIQUE);
CREATE TABLE lun (
  lun_group TEXT NOT NULL REFERENCES lun_group ON DELETE CASCADE, name TEXT NOT NULL,
  uuid TEXT NOT NULL UNIQUE, target_id INTEGER NOT NULL UNIQUE, PRIMARY KEY (lun_group, name));
CREATE TABLE snapshot (
  lun_group TEXT NOT NULL REFERENCES lun_group, name TEXT NOT NULL, started_at REAL NOT NULL,
  finished_at REAL NOT NULL, pause_seconds REAL NOT NULL, PRIMARY KEY (lun_group, name));
CREATE TABLE snapshot_lun (
  lun_group TEXT NOT NULL, snapshot TEXT NOT NULL, lun TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  PRIMARY KEY (lun_group, snapshot, lun),
  FOREIGN KEY (lun_group, snapshot) REFERENCES snapshot ON DELETE CASCADE);
CREATE TABLE initiator (
  lun_group TEXT NOT NULL, lun TEXT NOT NULL, name TEXT NOT NULL,
  PRIMARY KEY (lun_group, lun, name), FOREIGN KEY (lun_group, lun) REFERENCES lun);
CREATE TABLE removal (path TEXT PRIMARY KEY);
"""


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """A LUN group; `origin` is (group, snapshot) for a clone, `port` its portal's once it had one."""

    name: str
    origin: tuple[str, str] | None
    port: int | None


@dataclass(frozen=True, slots=True)
class LunRecord:
    """A LUN. Its size is its image's, so growing needs no second truth."""

    group: str
    name: str
    uuid: UUID


class Records:
    """The records of one pool. Every method is one transaction, durable when it returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Lay out empty records; those that exist are left as they are."""
        with self._transaction("EXCLUSIVE", create=True) as rows:
            (version,) = rows.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    rows.execute(statement)
                rows.execute(f"PRAGMA user_version = {_FORMAT}")

    def groups(self) -> list[GroupRecord]:
        """All groups, by name."""
        with self._transaction() as rows:
            return [_group(row) for row in rows.execute("SELECT * FROM lun_group ORDER BY name")]

    def group(self, name: str) -> GroupRecord | None:
        """One group, or None."""
        with self._transaction() as rows:
            row = rows.execute("SELECT * FROM lun_group WHERE name = ?", (name,)).fetchone()
            return _group(row) if row else None

    def add_group(
        self, name: str, origin: tuple[str, str] | None = None, luns: Sequence[LunRecord] = ()
    ) -> None:
        """A new group with its LUNs."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute(
                "INSERT INTO lun_group (name, origin_group, origin_snapshot) VALUES (?, ?, ?)",
                (name, *(origin or (None, None))),
            )
            for lun in luns:
                _insert_lun(rows, lun)

    def remove_group(self, name: str, path: str) -> None:
        """Forget a group and its LUNs, and owe the removal of `path`."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("DELETE FROM initiator WHERE lun_group = ?", (name,))
            rows.execute("DELETE FROM lun_group WHERE name = ?", (name,))
            rows.execute("INSERT OR IGNORE INTO removal VALUES (?)", (path,))

    def set_port(self, group: str, port: int) -> None:
        """Remember the port of a group's portal."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("UPDATE lun_group SET port = ? WHERE name = ?", (port, group))

    def ports(self) -> set[int]:
        """All ports given out."""
        with self._transaction() as rows:
            found = rows.execute("SELECT port FROM lun_group WHERE port IS NOT NULL")
            return {port for (port,) in found}

    def clones_of(self, group: str, snapshot: str) -> list[str]:
        """Names of the clones that stand on a snapshot."""
        with self._transaction() as rows:
            found = rows.execute(
                "SELECT name FROM lun_group WHERE origin_group = ? AND origin_snapshot = ?",
                (group, snapshot),
            )
            return [name for (name,) in found]

    def luns(self, group: str) -> list[LunRecord]:
        """A group's LUNs, by name."""
        with self._transaction() as rows:
            found = rows.execute(
                "SELECT lun_group, name, uuid FROM lun WHERE lun_group = ? ORDER BY name", (group,)
            )
            return [LunRecord(row[0], row[1], UUID(row[2])) for row in found]

    def add_lun(self, lun: LunRecord) -> None:
        """A new LUN."""
        with self._transaction("IMMEDIATE") as rows:
            _insert_lun(rows, lun)

    def remove_lun(self, group: str, name: str, path: str) -> None:
        """Forget a LUN and owe the removal of `path`."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("DELETE FROM lun WHERE lun_group = ? AND name = ?", (group, name))
            rows.execute("INSERT OR IGNORE INTO removal VALUES (?)", (path,))

    def snapshots(self, group: str) -> list[GroupSnapshot]:
        """A group's snapshots, oldest first."""
        with self._transaction() as rows:
            found = rows.execute(
                "SELECT * FROM snapshot WHERE lun_group = ? ORDER BY started_at, rowid", (group,)
            ).fetchall()
            return [_snapshot(rows, row) for row in found]

    def snapshot(self, group: str, name: str) -> GroupSnapshot | None:
        """One snapshot, or None."""
        with self._transaction() as rows:
            row = rows.execute(
                "SELECT * FROM snapshot WHERE lun_group = ? AND name = ?", (group, name)
            ).fetchone()
            return _snapshot(rows, row) if row else None

    def add_snapshot(self, snapshot: GroupSnapshot) -> None:
        """A snapshot that was taken."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute(
                "INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)",
                (
                    snapshot.group,
                    snapshot.name,
                    snapshot.started_at,
                    snapshot.finished_at,
                    snapshot.pause_seconds,
                ),
            )
            rows.executemany(
                "INSERT INTO snapshot_lun VALUES (?, ?, ?, ?)",
                [(snapshot.group, snapshot.name, *size) for size in snapshot.lun_sizes],
            )

    def remove_snapshot(self, group: str, name: str, path: str) -> None:
        """Forget a snapshot and owe the removal of `path`."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("DELETE FROM snapshot WHERE lun_group = ? AND name = ?", (group, name))
            rows.execute("INSERT OR IGNORE INTO removal VALUES (?)", (path,))

    def presented(self, group: str) -> dict[str, tuple[str, ...]]:
        """Initiators by LUN, for the LUNs of a group that are presented."""
        with self._transaction() as rows:
            found: dict[str, tuple[str, ...]] = {}
            for lun, name in rows.execute(
                "SELECT lun, name FROM initiator WHERE lun_group = ? ORDER BY lun, name", (group,)
            ):
                found[lun] = (*found.get(lun, ()), name)
            return found

    def present(self, group: str, lun: str, initiators: Sequence[str]) -> None:
        """Set a LUN's initiators, none for withdrawn."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("DELETE FROM initiator WHERE lun_group = ? AND lun = ?", (group, lun))
            rows.executemany(
                "INSERT INTO initiator VALUES (?, ?, ?)",
                [(group, lun, name) for name in sorted(set(initiators))],
            )

    def removals(self) -> list[str]:
        """Paths below the pool's root that are still to be removed."""
        with self._transaction() as rows:
            return [path for (path,) in rows.execute("SELECT path FROM removal ORDER BY path")]

    def removed(self, path: str) -> None:
        """A removal is done."""
        with self._transaction("IMMEDIATE") as rows:
            rows.execute("DELETE FROM removal WHERE path = ?", (path,))

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
                f"The pool's records {self._path} cannot be used: {error}; check the pool's "
                "file system and its free space."
            ) from error

    def _check_format(self, rows: sqlite3.Connection) -> None:
        (version,) = rows.execute("PRAGMA user_version").fetchone()
        if version != _FORMAT:
            raise StorageUnreachableError(
                f"The pool's records {self._path} have format {version}, this Atoll knows "
                f"{_FORMAT}; use the version of Atoll that wrote them."
            )


def _insert_lun(rows: sqlite3.Connection, lun: LunRecord) -> None:
    rows.execute(
        "INSERT INTO lun VALUES (?, ?, ?, ?)",
        (lun.group, lun.name, str(lun.uuid), identity_of(lun.uuid).target_id),
    )


def _group(row: tuple[str, str | None, str | None, int | None]) -> GroupRecord:
    name, origin_group, origin_snapshot, port = row
    origin = (origin_group, origin_snapshot) if origin_group and origin_snapshot else None
    return GroupRecord(name, origin, port)


def _snapshot(rows: sqlite3.Connection, row: tuple[str, str, float, float, float]) -> GroupSnapshot:
    group, name, started_at, finished_at, pause_seconds = row
    sizes = rows.execute(
        "SELECT lun, size_bytes FROM snapshot_lun WHERE lun_group = ? AND snapshot = ? "
        "ORDER BY lun",
        (group, name),
    )
    return GroupSnapshot(group, name, started_at, finished_at, pause_seconds, tuple(sizes))
