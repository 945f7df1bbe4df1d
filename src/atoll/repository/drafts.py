"""Drafts: how far the copy of a run has come, so that another process can go on with it.

A copy that goes on for long puts a draft every minute: for each disk that was begun, an image of what has
been copied of it, and up to where that reaches. What a draft names is durable and indexed before it is put,
and a prune takes it for needed, until the draft is removed or its time is over. A draft never is a promise:
whoever cannot go on with one reads the disk again.
"""

import json
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, replace

from atoll.model.errors import ConfigurationError, RepositoryDamagedError
from atoll.model.points import DiskImage
from atoll.repository.copying import CopiedDisk
from atoll.repository.keys import MasterKey
from atoll.repository.records import from_json, to_json
from atoll.repository.sealing import halves, new_name, seal, twice, unseal
from atoll.repository.session import Session
from atoll.repository.store import MissingObjectError, ObjectInfo, ObjectStore, own_objects

DRAFTS, DRAFTS_KIND = "drafts/", "DRF"
EVERY_SECONDS = 60.0
_MOST_OF_THE_TIME = 50
"""A draft that takes a second to put is put every 50 at most."""
_LISTINGS = 5


@dataclass(frozen=True, slots=True)
class DraftDisk:
    """A disk, by its VM's instance UUID and its device key, of which a part has been copied.

    `root` (hex) is an image of the whole disk that is right up to byte `copied_to`; beyond it is that of
    `parent`, the root of the image that the copy is an increment of (empty if of none, then zeros).
    """

    vm: str
    key: int
    size_bytes: int
    parent: str
    root: str
    copied_to: int
    read_bytes: int
    stored_bytes: int

    @property
    def image(self) -> DiskImage:
        """The part as a parent for what is left."""
        return DiskImage(self.key, "", "", self.size_bytes, self.root, "", (), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Draft:
    """What has been copied of a run by `written_at`; of no use from `until` on (both since the epoch)."""

    run: str
    written_at: float
    until: float
    disks: tuple[DraftDisk, ...]

    @property
    def roots(self) -> frozenset[str]:
        """The images it stands on."""
        return frozenset(disk.root for disk in self.disks)


class DraftLog:
    """The drafts of a repository."""

    def __init__(
        self, store: ObjectStore, master: MasterKey, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._master = master
        self._clock = clock

    def put(self, draft: Draft) -> str:
        """Write a draft; the name of its object."""
        name = new_name()
        sealed = seal(self._master, DRAFTS_KIND, name, json.dumps(to_json(draft)).encode())
        self._store.put(DRAFTS + name, [twice(sealed)])
        return DRAFTS + name

    def going_on(self, committed: Set[str]) -> dict[str, Draft]:
        """The newest draft of each run whose points are not `committed`, by object, if it is in time."""
        return {
            info.name: draft
            for info, draft in self._sifted(committed)
            if draft is not None and draft.until > self._clock()
        }

    def of(self, run: str) -> tuple[str, Draft] | None:
        """A run's newest draft and the name of its object."""
        return next(
            ((name, draft) for name, draft in self.going_on(set()).items() if draft.run == run),
            None,
        )

    def drop_stale(self, committed: Set[str]) -> int:
        """Remove drafts that nobody goes on with, and return their bytes."""
        stale = [
            info
            for info, draft in self._sifted(committed)
            if draft is None or draft.until <= self._clock()
        ]
        for info in stale:
            self._store.delete(info.name)
        return sum(info.size_bytes for info in stale)

    def drop(self, run: str) -> None:
        """Remove all drafts of a run. Twice is harmless."""
        for info, draft in self._all()[0]:
            if draft is not None and draft.run == run:
                self.remove(info.name)

    def remove(self, name: str) -> None:
        """Remove a draft that has served; where nothing may be removed it stays until a prune elsewhere."""
        with suppress(ConfigurationError):
            self._store.delete(name)

    def _sifted(self, committed: Set[str]) -> Iterator[tuple[ObjectInfo, Draft | None]]:
        """All drafts; None for those that are damaged, superseded, or of runs that are `committed`."""
        found: list[tuple[ObjectInfo, Draft | None]] = []
        for _ in range(_LISTINGS):
            found, vanished = self._all()
            if not vanished:
                break  # else a newer one may have been put since they were listed
        newest: dict[str, Draft] = {}
        for _, draft in found:
            if draft is not None:
                newest[draft.run] = max(
                    (newest.get(draft.run, draft), draft), key=lambda each: each.written_at
                )
        for info, draft in found:
            going_on = draft and draft.run not in committed and newest[draft.run] is draft
            yield info, draft if going_on else None

    def _all(self) -> tuple[list[tuple[ObjectInfo, Draft | None]], bool]:
        """All drafts, None for damaged ones, and whether one went since they were listed."""
        found: list[tuple[ObjectInfo, Draft | None]] = []
        vanished = False
        for info in own_objects(self._store, DRAFTS):
            try:
                found.append((info, self._read(info.name)))
            except MissingObjectError:
                vanished = True
        return found, vanished

    def _read(self, name: str) -> Draft | None:
        for copy in halves(self._store.get(name)):
            with suppress(RepositoryDamagedError, ValueError):
                plain = unseal(self._master, DRAFTS_KIND, name.removeprefix(DRAFTS), copy)
                return from_json(Draft, json.loads(plain))
        return None


class RunDraft:
    """The draft of a run that is being copied. Not thread-safe."""

    def __init__(
        self,
        log: DraftLog,
        run: str,
        keep_seconds: float,
        taken_up: tuple[str, Draft] | None = None,
        every_seconds: float | None = None,
        put: Callable[[], None] | None = None,
    ) -> None:
        """`taken_up` is what an earlier process left and this one goes on with, by `DraftLog.of`.

        Once put, a draft stays for `keep_seconds`, unless another takes its place. `put` is called then.
        """
        self._log = log
        self._run = run
        self._keep_seconds = keep_seconds
        self._was_put = put
        self._object, draft = taken_up if taken_up else ("", None)
        self._disks = {(disk.vm, disk.key): disk for disk in (draft.disks if draft else ())}
        self._every = EVERY_SECONDS if every_seconds is None else every_seconds
        self._next = time.monotonic() + self._every

    @property
    def copied_bytes(self) -> int:
        """What has been read until it was last put."""
        return sum(disk.read_bytes for disk in self._disks.values())

    @property
    def due(self) -> bool:
        """Whether it should be put again."""
        return time.monotonic() >= self._next

    def disk(self, vm: str, key: int) -> "DiskDraft":
        """For the copy of a disk, by its VM's instance UUID and its device key."""
        return DiskDraft(self, DraftDisk(vm, key, 0, "", "", 0, 0, 0))

    def known(self, vm: str, key: int) -> DraftDisk | None:
        """What was noted of a disk."""
        return self._disks.get((vm, key))

    def note(self, disk: DraftDisk) -> None:
        """Remember what has been copied of a disk, and is durable by the time this is `put`."""
        self._disks[disk.vm, disk.key] = disk

    def put(self, began: float) -> None:
        """Write it, in the place of the one before; `began` is when work for it did (monotonic)."""
        now = time.time()
        draft = Draft(self._run, now, now + self._keep_seconds, tuple(self._disks.values()))
        older, self._object = self._object, self._log.put(draft)
        if older:
            self._log.remove(older)
        if self._was_put is not None:
            self._was_put()
        ended = time.monotonic()
        self._next = ended + max(self._every, _MOST_OF_THE_TIME * (ended - began))

    def drop(self) -> None:
        """Remove it: the run is committed, or nobody is to go on with it."""
        self._log.drop(self._run)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A part that counts once what is `owed` to it has been stored."""

    disk: DraftDisk
    owed: frozenset[bytes]
    began: float


class DiskDraft:
    """How far the copy of one disk has come. Used once, by the thread that copies it."""

    def __init__(self, run: RunDraft, disk: DraftDisk) -> None:
        self._run = run
        self._disk = disk
        self._session: Session | None = None
        self._stored_before = 0
        self._waiting: _Waiting | None = None

    def begin(self, session: Session, size_bytes: int, parent: str) -> DraftDisk | None:
        """What has been copied of the disk already, as an increment of the same parent (a root)."""
        self._session, self._stored_before = session, session.stored_bytes
        known = self._run.known(self._disk.vm, self._disk.key)
        going_on = known and (known.size_bytes, known.parent) == (size_bytes, parent)
        self._disk = replace(self._disk, size_bytes=size_bytes, parent=parent)
        if known is None or not going_on:
            return None
        self._disk = known
        return known

    def counting(self, progress: Callable[[int], None] | None) -> Callable[[int], None]:
        """A progress that is told to another and counted here."""

        def count(read_bytes: int) -> None:
            self._disk = replace(self._disk, read_bytes=self._disk.read_bytes + read_bytes)
            if progress is not None:
                progress(read_bytes)

        return count

    def reached(self, copied_to: int, root_so_far: Callable[[], str]) -> None:
        """All below this offset has been copied; a `copying.Reached`."""
        session = self._at_work()
        if self._waiting is None:
            if not self._run.due:
                return
            began = time.monotonic()
            root = root_so_far()
            # Another job, further on, may have promised a chunk that this part has too.
            self._waiting = _Waiting(self._part(root, copied_to), session.owed(), began)
        if session.owes(self._waiting.owed):
            return
        waiting, self._waiting = self._waiting, None
        session.flush()
        # What was stored beyond it meanwhile is not stored again.
        self._run.note(replace(waiting.disk, stored_bytes=self._stored()))
        self._run.put(waiting.began)

    def finish(self, copied: CopiedDisk) -> CopiedDisk:
        """All of it is copied; what was read and stored, with what was before."""
        disk = self._part(copied.root, copied.size_bytes)
        self._run.note(disk)
        if self._run.due:
            began = time.monotonic()
            self._at_work().flush()
            self._run.put(began)
        return replace(copied, read_bytes=disk.read_bytes, stored_bytes=disk.stored_bytes)

    def _part(self, root: str, copied_to: int) -> DraftDisk:
        return replace(self._disk, root=root, copied_to=copied_to, stored_bytes=self._stored())

    def _stored(self) -> int:
        return self._disk.stored_bytes + self._at_work().stored_bytes - self._stored_before

    def _at_work(self) -> Session:
        assert self._session is not None, "it has begun"
        return self._session
