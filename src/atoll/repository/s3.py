"""Objects in a bucket of an S3 server."""

import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from atoll.model.errors import AtollError, ConfigurationError
from atoll.repository.s3_access import S3Access, S3Location
from atoll.repository.s3_faults import LockedVersion, Patience, S3Fault, explained
from atoll.repository.s3_objects import S3Objects, Version
from atoll.repository.s3_presence import (
    MAINTENANCE,
    SESSIONS,
    Beacon,
    Board,
    Rhythm,
    claim,
    living_sessions,
)
from atoll.repository.store import (
    Buffer,
    MissingObjectError,
    ObjectInfo,
    ObjectLockedError,
    SessionSeen,
)

if TYPE_CHECKING:
    from atoll.repository.s3_vault import Vault

T = TypeVar("T")

PROBES = "probes/"
_NEVER_LOCKED = (SESSIONS, MAINTENANCE, PROBES, "marks/", "drafts/")
_KEPT = ("packs/", "config")
"""What is not deleted while it is locked. Deleting the rest hides it: forgetting a point, taking a key
back and writing the index anew must not have to wait, and a pack is worth nothing without them."""
_PURGED = ("index/", "evidence/", *_NEVER_LOCKED)
"""Where what is hidden is removed once its lock has passed; see `temporaries`."""
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*(/[a-z0-9][a-z0-9.-]*)*")


class S3Lock:
    """The right to tidy, until it is released or its process was not heard of for long."""

    def __init__(self, beacon: Beacon, released: Callable[[], None]) -> None:
        self._beacon = beacon
        self._released = released

    def check(self) -> None:
        """RunConflictError if another may have the right by now; asks nobody."""
        self._beacon.check()

    def confirm(self) -> None:
        """The same, and RunConflictError if the server has the claim no more."""
        self._beacon.confirm()

    def release(self) -> None:
        """Remove the claim, which is this one's own by its name."""
        self._released()
        self._beacon.end()


class S3Store:
    """A prefix in a bucket.

    The server must list what was written before the listing began (AWS S3 has since 2020, and Ceph's
    gateway). Whether it heeds `If-None-Match: *` in a PUT is tried once, before this store's first
    write, with an object of its own: Ceph's gateway does not where a bucket has versions. There a
    HEAD comes before each PUT, and as all names but `config` are random, only two `create` calls in
    the same place at the same instant could meet.
    """

    def __init__(
        self,
        location: S3Location,
        objects: S3Objects,
        vault: "Vault | None" = None,
        patience: Patience = Patience(),  # noqa: B008 - immutable
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - immutable
    ) -> None:
        self._location = location
        self._objects = objects
        self._vault = vault
        self._patience = patience
        self._board = Board(
            objects, str(location), patience, rhythm, self._remove, self._remove_version
        )
        self._claimed: S3Lock | None = None
        self._heeded: bool | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        location: S3Location,
        access: S3Access,
        *,
        patience: Patience = Patience(),  # noqa: B008 - immutable
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - immutable
    ) -> Self:
        """A store; ConfigurationError if `access` is not complete. Nothing is asked of the server yet."""
        vault = None
        if access.lock_days is not None:
            from atoll.repository.s3_vault import Vault  # boto3 takes a third of a second

            vault = Vault(location, access, access.lock_days)
        return cls(location, S3Objects(location, access), vault, patience, rhythm)

    @property
    def location(self) -> str:
        """`s3://BUCKET/PREFIX`."""
        return str(self._location)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """One PUT. If an attempt's answer was lost, what is there afterwards may be what it put."""
        _check(name)
        self._prepare()
        data = b"".join(parts)
        try:
            self._patience.run(lambda: self._create(name, data))
        except S3Fault as fault:
            if fault.exists and fault.failures and self._holds(name, data):
                return
            raise explained(fault, f"write {name} to", self.location) from None

    def replace(self, name: str, parts: Sequence[Buffer]) -> None:
        """One PUT. Where there are locks, what was there stays as an older version until its own ends."""
        _check(name)
        self._fence()
        self._prepare()
        data = b"".join(parts)
        self._asked(f"write {name} to", lambda: self._write(name, data, only_new=False))

    def _create(self, name: str, data: bytes) -> None:
        heeded = bool(self._heeded)
        if not heeded and self._size(name) is not None:
            raise S3Fault(412, "PreconditionFailed")
        self._write(name, data, only_new=heeded)

    def _write(self, name: str, data: bytes, *, only_new: bool) -> None:
        if self._vault is not None and not name.startswith(_NEVER_LOCKED):
            self._vault.put(name, data, only_new=only_new)
        elif only_new:
            self._objects.create(name, data)
        else:
            self._objects.write(name, data)

    def _size(self, name: str) -> int | None:
        try:
            return self._objects.size(name)
        except S3Fault as fault:
            if fault.absent:
                return None
            raise

    def _holds(self, name: str, data: bytes) -> bool:
        """Whether an object is what was to be written, which nobody else could have made."""
        return self._asked(f"read {name} of", lambda: self._size(name)) == len(data) and (
            self.get(name) == data
        )

    def _prepare(self) -> None:
        """Learn what the server can, before the first write."""
        with self._lock:
            if self._heeded is not None:
                return
            if self._vault is not None:
                self._asked("write to", self._vault.check_bucket)
            probe = f"{PROBES}{secrets.token_hex(16)}"
            try:
                self._heeded = self._asked("write to", lambda: self._heeds(probe))
            finally:
                with suppress(AtollError):
                    self._remove(probe)

    def _heeds(self, probe: str) -> bool:
        """Whether of two objects of one name the second is refused."""
        try:
            self._objects.create(probe, b"1")
            self._objects.create(probe, b"2")
        except S3Fault as fault:
            if fault.exists:
                return True
            if fault.status in {400, 501}:
                return False  # it knows of no conditions and says so
            raise
        return False

    def get(self, name: str) -> bytes:
        """One GET."""
        _check(name)
        return self._read(name, lambda: self._objects.get(name))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """One GET with a range."""
        _check(name)
        if length == 0:
            self._read(name, lambda: self._objects.size(name))
            return b""
        try:
            return self._read(name, lambda: self._objects.get_range(name, offset, length))
        except _PastEnd:
            return b""

    def _read(self, name: str, request: Callable[[], T]) -> T:
        try:
            return self._patience.run(request)
        except S3Fault as fault:
            if fault.absent:
                raise MissingObjectError(
                    f"{name} is missing from the repository {self.location}; verify it to learn "
                    "what that touches."
                ) from None
            if fault.status == 416:
                raise _PastEnd from None
            raise explained(fault, f"read {name} of", self.location) from None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """A page at a time; after a failure it goes on behind the last name it had."""
        folder = prefix.rstrip("/")
        _check(folder)
        last: str | None = None
        failures = 0
        while True:
            try:
                for found in self._objects.list(folder, last):
                    failures = 0
                    last = found.name
                    yield ObjectInfo(found.name, found.size_bytes)
            except S3Fault as fault:
                failures += 1
                try:
                    self._patience.pause(fault, failures)
                except S3Fault:
                    raise explained(fault, f"list {prefix} of", self.location) from None
            else:
                return

    def delete(self, name: str) -> None:
        """Remove an object, or hide it until its lock has passed; ObjectLockedError if it is a pack."""
        _check(name)
        self._fence()
        self._remove(name)

    def _fence(self) -> None:
        """Whoever had the right to tidy and was taken for dead deletes nothing more."""
        if (held := self._claimed) is not None:
            held.check()

    def _remove(self, name: str) -> None:
        if self._vault is None:
            self._asked(f"delete {name} of", lambda: self._objects.delete(name))
            return
        vault = self._vault
        try:
            self._asked(f"delete {name} of", lambda: vault.remove(name))
        except LockedVersion as locked:
            if name.startswith(_KEPT):
                raise self._still_locked(name, locked) from None
            self._asked(f"delete {name} of", lambda: self._objects.delete(name))

    def _remove_version(self, name: str, version: str) -> None:
        if (vault := self._vault) is not None:
            try:
                self._asked(f"delete {name} of", lambda: vault.remove_version(name, version))
            except LockedVersion as locked:
                raise self._still_locked(name, locked) from None

    def _still_locked(self, name: str, locked: LockedVersion) -> ObjectLockedError:
        until = locked.until.astimezone()
        return ObjectLockedError(
            f"{name} of {self.location} is locked until {until:%Y-%m-%d %H:%M %Z} and stays; run "
            "again after that.",
            locked.until,
        )

    def settle(self, prefix: str) -> None:
        """Nothing to do: what a server shows is as durable as it will be."""
        _check(prefix.rstrip("/"))

    def temporaries(self) -> Sequence[ObjectInfo]:
        """Versions that were written over or deleted, once their lock has passed.

        Only of what can be made anew, so that a pack or a restore point that an intruder has hidden
        stays to be brought back. None without locks: a PUT that was cut leaves nothing.
        """
        if (vault := self._vault) is None:
            return ()
        found: list[ObjectInfo] = []
        for folder in _PURGED:
            by_name: defaultdict[str, list[Version]] = defaultdict(list)
            for version in self._asked("list versions of", partial(_listed, vault, folder)):
                by_name[version.name].append(version)
            for each in by_name.values():
                found += self._removable(vault, each)
        return found

    def _removable(self, vault: "Vault", versions: Sequence[Version]) -> Sequence[ObjectInfo]:
        """Of one object; markers last, for what they hide must not come to light."""
        old = [each for each in versions if not each.marker and not each.latest]
        free = [each for each in old if self._unlocked(vault, each)]
        markers = [each for each in versions if each.marker]
        if len(free) < len(old):
            markers = []
        return [ObjectInfo(f"{each.name} {each.id}", each.size_bytes) for each in (*free, *markers)]

    def _unlocked(self, vault: "Vault", version: Version) -> bool:
        try:
            return self._patience.run(lambda: vault.locked_until(version.name, version.id)) is None
        except S3Fault as fault:
            if fault.absent:
                return True
            raise explained(fault, f"look at {version.name} of", self.location) from None

    def delete_temporary(self, name: str) -> None:
        """Remove one version."""
        self._fence()
        of, _, version = name.partition(" ")
        self._remove_version(of, version)

    def join(self, text: bytes) -> Beacon:
        """An object in `sessions/`, written again every minute."""
        self._prepare()
        return Beacon(self._board, SESSIONS, text)

    def sessions(self) -> Sequence[SessionSeen]:
        """Those that were heard of within the limit; the others' objects are removed."""
        return living_sessions(self._board)

    def maintain(self) -> S3Lock:
        """A claim in `maintenance/`, written again every minute. `delete` fails when it is lost."""
        self._prepare()
        lock = S3Lock(claim(self._board), self._unclaim)
        self._claimed = lock
        return lock

    def _unclaim(self) -> None:
        self._claimed = None

    def locked_until(self, name: str) -> datetime | None:
        """Until when an object is locked; None if it is not, MissingObjectError if it is absent."""
        if (vault := self._vault) is None:
            return None
        return self._read(name, lambda: vault.locked_until(name))

    def extend_locks(self, names: Iterable[str], until: datetime) -> int:
        """Lock objects until then whose lock ends before (one request each, two for these); how many.

        MissingObjectError if one is absent: those after it may not have been extended.
        """
        if (vault := self._vault) is None:
            raise ConfigurationError(
                f"The repository {self.location} has no locks; set `lock_days` in [repository]."
            )
        return self._extend(vault, names, until, until)

    def renew(self, names: Iterable[str]) -> None:
        """Lock anew what is locked for less than half of the time; one request for each of the others."""
        if (vault := self._vault) is not None:
            self._extend(vault, names, vault.ends(), vault.ends(0.5))

    def _extend(self, vault: "Vault", names: Iterable[str], until: datetime, soon: datetime) -> int:
        try:
            return vault.extend(names, until, soon, self._patience.run)
        except S3Fault as fault:
            if fault.absent:
                raise MissingObjectError(
                    f"An object to lock is missing from the repository {self.location}; verify it to "
                    "learn what that touches."
                ) from None
            raise explained(fault, "extend locks of", self.location) from None

    def close(self) -> None:
        """Give back the right to tidy, if it is held."""
        if (held := self._claimed) is not None:
            held.release()

    def _asked(self, doing: str, request: Callable[[], T]) -> T:
        try:
            return self._patience.run(request)
        except S3Fault as fault:
            raise explained(fault, doing, self.location) from None


def _listed(vault: "Vault", folder: str) -> Sequence[Version]:
    return list(vault.versions(folder))


class _PastEnd(Exception):
    """A range begins behind the last byte."""


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no object name")
