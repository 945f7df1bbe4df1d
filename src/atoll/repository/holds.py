"""Holds in the store: one sealed object each, so that setting one waits for nobody.

That none is lost while points are forgotten: whoever forgets shows himself first, as a session, then
reads the holds, then deletes. Whoever holds puts the hold first, then looks for such sessions and waits
until they end, then looks whether the point is still there. So either the one who forgets sees the
hold, or the one who holds sees that the point is gone.
"""

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager

from atoll.model.errors import PointHeldError, RepositoryDamagedError, RunConflictError
from atoll.model.points import RestorePoint
from atoll.model.retention import Holds, PointHold
from atoll.repository.keys import MasterKey
from atoll.repository.records import from_json, to_json
from atoll.repository.sealing import halves, new_name, seal, twice, unseal
from atoll.repository.store import (
    MissingObjectError,
    ObjectStore,
    SessionSeen,
    StoreSession,
    own_objects,
)

HOLDS, HOLDS_KIND = "holds/", "HLD"
_WAIT_SECONDS = 120.0
_LOOK_AGAIN_SECONDS = 0.1


class HoldLog:
    """The holds of a repository."""

    def __init__(self, store: ObjectStore, master: MasterKey) -> None:
        self._store = store
        self._master = master

    def put(self, point: str, reason: str, until: float | None) -> PointHold:
        """A new hold, set by this process's user."""
        hold = PointHold(new_name(), point, reason, _who(), time.time(), until)
        self._write(hold)
        return hold

    def take(self, hold: PointHold) -> bool:
        """A hold of another repository on the same point, as it is; False if it is here already."""
        if any(hold.name == known.name for known in self.read().found):
            return False
        self._write(hold)
        return True

    def _write(self, hold: PointHold) -> None:
        plain = json.dumps(to_json(hold)).encode()
        sealed = seal(self._master, HOLDS_KIND, hold.name, plain)
        self._store.put(f"{HOLDS}{hold.name}", [twice(sealed)])

    def read(self) -> Holds:
        """All holds, oldest first, and the objects that cannot be read."""
        found, damaged = [], []
        for info in own_objects(self._store, HOLDS):
            try:
                found.append(self._hold(info.name))
            except MissingObjectError:
                continue  # released since it was listed
            except RepositoryDamagedError:
                damaged.append(info.name)
        found.sort(key=lambda hold: (hold.placed_at, hold.name))
        return Holds(tuple(found), tuple(sorted(damaged)))

    def damaged_copies(self) -> Iterator[tuple[str, int, str]]:
        """Name, damaged copies (of 2) and the point, if known, of each object that is not as written."""
        for info in own_objects(self._store, HOLDS):
            try:
                copies = self._copies(info.name)
            except MissingObjectError:
                continue
            whole = [copy for copy in copies if copy is not None]
            if len(whole) < len(copies):
                point = str(json.loads(whole[0]).get("point", "")) if whole else ""
                yield info.name, len(copies) - len(whole), point

    def remove(self, name: str) -> None:
        """Release a hold, readable or not; one that is gone is released already."""
        self._store.delete(f"{HOLDS}{name}")

    def remove_of(self, points: Set[str]) -> None:
        """Remove the holds on these points, which were forgotten."""
        for hold in self.read().found:
            if hold.point in points:
                self.remove(hold.name)

    def _hold(self, name: str) -> PointHold:
        for copy in self._copies(name):
            if copy is not None:
                try:
                    return from_json(PointHold, json.loads(copy))
                except ValueError as error:
                    raise RepositoryDamagedError(
                        f"{name} is sealed rightly but says something else than expected ({error}); "
                        "it may be from a newer Atoll."
                    ) from error
        raise RepositoryDamagedError(f"Both copies of {name} are damaged; see `atoll verify`.")

    def _copies(self, name: str) -> list[bytes | None]:
        opened: list[bytes | None] = []
        for copy in halves(self._store.get(name)):
            try:
                unique = name.removeprefix(HOLDS)
                opened.append(unseal(self._master, HOLDS_KIND, unique, copy))
            except RepositoryDamagedError:
                opened.append(None)
        return opened


def refuse_held(holds: Holds, points: Sequence[RestorePoint], now: float) -> None:
    """PointHeldError if one of the points is on hold, or may be."""
    for point in points:
        if holds.damaged:
            raise PointHeldError(
                f"{holds.damaged[0]} cannot be read and may be a hold on any restore point, so none "
                "is forgotten; restore that object from a copy, or `atoll release --damaged`."
            )
        for hold in holds.on(point.id, now):
            raise PointHeldError(
                f"{point.vm}@{point.run} is on hold, set by {hold.who} ({hold.reason}), so nothing "
                "was forgotten; `atoll release` lets go of it."
            )


@contextmanager
def forgetting(store: ObjectStore) -> Iterator[StoreSession]:
    """A session that tells those who set a hold to wait; read the holds inside, then `confirm`."""
    told = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": int(time.time()),
        "writes": False,
        "seen": [],
        "roots": [],
        "forgets": True,
    }
    session = store.join(json.dumps(told, sort_keys=True).encode())
    try:
        yield session
    finally:
        session.end()


def wait_for_forgetting(store: ObjectStore, seconds: float = _WAIT_SECONDS) -> None:
    """Return when whoever forgets points now has ended; RunConflictError if that takes too long."""
    waiting = {session.name for session in store.sessions() if _forgets(session)}
    end = time.monotonic() + seconds
    while waiting:
        if time.monotonic() > end:
            raise RunConflictError(
                "The hold is set, but a process that began to forget points before has not ended; "
                "see with `atoll points` whether the point is still there."
            )
        time.sleep(_LOOK_AGAIN_SECONDS)
        waiting &= {session.name for session in store.sessions()}


def _forgets(session: SessionSeen) -> bool:
    """Whether it may be about to delete points; one whose words cannot be read may."""
    try:
        return bool(json.loads(session.said).get("forgets", False))
    except (ValueError, AttributeError):
        return True


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user} on {socket.gethostname()}"
