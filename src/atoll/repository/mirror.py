"""A repository's objects copied to a second place, which then is the same repository.

Nothing needs the key, and only what the copy lacks is moved, so a mirror that was cut off goes on
where it was. What the copy holds is a repository at any time: packs go before the segments that list
them, those before restore points, and a first mirror puts `config`, without which nothing opens, last.

Why a copy never names what it lacks, although others write, forget and prune at the source meanwhile:

- Points are listed first, then segments, then packs. A prune takes nothing away that a point needs, lists
  anew what it keeps before it takes a segment away, and segments before the packs that go with them.
- Segments, like all but packs, are listed until nothing has gone between two listings, and the second
  counts. Else one listing could miss both an old segment and the new one in its place.
- If something is gone when it is to be read, all begins again. So a segment that is copied was there
  after the packs were listed, and with it all its packs. What was put before is packs and segments that
  nobody needs, at worst.
- At the copy the maintenance lock is held, so what was there when it was listed stays. Whether it still
  is held is asked before each object that relies on others.

The session at the source adds no safety but an end: beside it no prune removes packs, unless it had
begun to before.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from atoll.model.errors import (
    RepositoryDamagedError,
    RepositoryUnreachableError,
    RunConflictError,
    StorageConflictError,
)
from atoll.repository.config import CONFIG, Config, read_config
from atoll.repository.holds import HOLDS
from atoll.repository.index import INDEX
from atoll.repository.inspection import Inspect
from atoll.repository.lost import LOST
from atoll.repository.packs import PACKS
from atoll.repository.points import EVIDENCE, POINTS
from atoll.repository.presence import keep_packs
from atoll.repository.sealing import twice
from atoll.repository.slots import KEYS, repository_of, slot_lines
from atoll.repository.store import (
    MissingObjectError,
    ObjectInfo,
    ObjectStore,
    StoreLock,
    own_objects,
)

_BESIDE_PACKS = (POINTS, EVIDENCE, HOLDS, LOST, KEYS, INDEX)
"""In the order in which they are listed: points before what they need."""
_ORDER = (KEYS, PACKS, INDEX, POINTS, EVIDENCE, HOLDS, LOST)
"""In which they are put. Slots come first: they tell whose a copy is that has no `config` yet."""
_BASE = (KEYS, PACKS, INDEX)
"""What the rest relies on, also what a mirror that was killed had put and perhaps not made durable."""
_RELYING = (POINTS, CONFIG)
"""What must not be put where another may have tidied since it was listed what is there."""
_ROUNDS = 8
IN_FLIGHT = 4
"""Objects that are moved at once, each of which is held whole."""


class Kind(Enum):
    """What lies at a place, as seen from a repository that is to be copied there."""

    NOTHING = "nothing"
    BEGUN = "begun"
    SAME = "same"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class DamagedObject:
    """An object of the source that is not what was written, or not what the copy has."""

    object: str
    detail: str


@dataclass(frozen=True, slots=True)
class MirrorReport:
    """What a mirror did.

    `damaged` are at the source; of those only what is whole was copied. `slots_there` are key slots
    of the copy that the source has no longer: what they were made for opens the copy still.
    """

    first: bool
    objects: int
    moved_bytes: int
    damaged: tuple[DamagedObject, ...]
    slots_there: tuple[str, ...]


def kind_of(source: ObjectStore, target: ObjectStore) -> Kind:
    """What lies at the target; neither store is changed.

    RepositoryDamagedError if its settings cannot be read, MissingObjectError if the source has none.
    """
    block, config = read_config(source)
    try:
        there, _ = read_config(target)
    except MissingObjectError:
        return _without_config(source, target, config)
    return Kind.SAME if there == block else Kind.OTHER


def _without_config(source: ObjectStore, target: ObjectStore, config: Config) -> Kind:
    slots = dict(slot_lines(target))
    if any(_owner(line) == config.id for line in slots.values()):
        return Kind.BEGUN
    if slots:
        # A creation that was killed left the source slots of others, and they are copied too.
        return Kind.BEGUN if slots.keys() <= dict(slot_lines(source)).keys() else Kind.OTHER
    folders = (PACKS, *_BESIDE_PACKS)
    empty = not any(True for folder in folders for _ in own_objects(target, folder))
    return Kind.NOTHING if empty else Kind.OTHER


def _owner(line: bytes | None) -> str:
    try:
        return repository_of(line) if line is not None else ""
    except RepositoryDamagedError:
        return ""


def mirror(
    source: ObjectStore,
    target: ObjectStore,
    inspect: Inspect,
    *,
    begin: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
    in_flight: int = IN_FLIGHT,
) -> MirrorReport:
    """Have the target hold all the source holds; nothing is deleted there.

    `begin` is told how many bytes are to be moved, again if it begins anew, `progress` the bytes done
    since it was last called. StorageConflictError if the target has another repository,
    RunConflictError if it is being tidied or mirrored to, if another took this mirror for dead, or if
    the source changes faster than it can be listed. Then, and wherever it is killed, what was copied
    stays and the next mirror goes on.
    """
    if source.location == target.location:
        raise StorageConflictError(
            f"{source.location} is the repository itself, and nothing was copied; name another place."
        )
    lock = target.maintain()
    try:
        kind = kind_of(source, target)
        if kind is Kind.OTHER:
            raise StorageConflictError(
                f"{target.location} holds another repository than {source.location} and nothing was "
                "copied; choose an empty place, or name its key to copy restore points into it."
            )
        with _in_session(source):
            return _Mirror(source, target, lock, inspect, begin, progress, in_flight).run(kind)
    finally:
        lock.release()


@contextmanager
def _in_session(source: ObjectStore) -> Iterator[None]:
    try:
        session = keep_packs(source)
    except RepositoryUnreachableError:
        # It may be read-only. If it is not there at all, the listing says so.
        yield
        return
    try:
        yield
    finally:
        session.end()


class _Mirror:
    def __init__(
        self,
        source: ObjectStore,
        target: ObjectStore,
        held: StoreLock,
        inspect: Inspect,
        begin: Callable[[int], None] | None,
        progress: Callable[[int], None] | None,
        in_flight: int,
    ) -> None:
        self._source = source
        self._target = target
        self._held = held
        self._inspect = inspect
        self._begin = begin
        self._progress = progress
        self._in_flight = in_flight
        self._objects = self._bytes = 0
        self._damaged: dict[str, str] = {}
        self._lock = threading.Lock()

    def run(self, kind: Kind) -> MirrorReport:
        for _ in range(_ROUNDS):
            if self._round():
                break
        else:
            raise self._restless()
        if kind is not Kind.SAME:
            block, _ = read_config(self._source)
            self._put(CONFIG, twice(block))
            self._objects += 1
            self._bytes += 2 * len(block)
        return MirrorReport(
            kind is not Kind.SAME,
            self._objects,
            self._bytes,
            tuple(DamagedObject(name, self._damaged[name]) for name in sorted(self._damaged)),
            self._slots_there(),
        )

    def _restless(self) -> RunConflictError:
        return RunConflictError(
            f"{self._source.location} changed again and again while it was copied to "
            f"{self._target.location}; run again, and what was copied by now stays."
        )

    def _round(self) -> bool:
        """Copy what is missing; False if the source changed so that all has to be looked at again."""
        missing = self._missing()
        if self._begin is not None:
            self._begin(sum(info.size_bytes for infos in missing.values() for info in infos))
        if any(missing.values()):
            for folder in _BASE:
                self._target.settle(folder)
        try:
            for folder in _ORDER:
                self._move(missing[folder])
        except MissingObjectError:
            return False
        return True

    def _missing(self) -> dict[str, Sequence[ObjectInfo]]:
        """What is to be copied, by folder."""
        found = {folder: self._settled(folder) for folder in _BESIDE_PACKS}
        found[PACKS] = _sizes(self._source, PACKS)
        return {folder: self._lacking(folder, sizes) for folder, sizes in found.items()}

    def _settled(self, folder: str) -> dict[str, int]:
        """A listing before which nothing went since another."""
        before = _sizes(self._source, folder)
        for _ in range(_ROUNDS):
            found = _sizes(self._source, folder)
            if before.keys() <= found.keys():
                return found
            before = found
        raise self._restless()

    def _lacking(self, folder: str, sizes: dict[str, int]) -> list[ObjectInfo]:
        """What the target has not; a different size is damage on one of the sides."""
        there = _sizes(self._target, folder)
        lacking = []
        for name, size in sorted(sizes.items()):
            if name not in there:
                lacking.append(ObjectInfo(name, size))
            elif there[name] != size:
                self._damaged[name] = (
                    f"it has {size} bytes and its copy {there[name]}; verify both repositories"
                )
        return lacking

    def _move(self, infos: Iterable[ObjectInfo]) -> None:
        """Copy these; on any error those under way are finished and no others begun."""
        moving: set[Future[ObjectInfo]] = set()
        pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="atoll-mirror")
        try:
            for info in infos:
                if len(moving) >= self._in_flight:
                    moving = self._take(moving)
                moving.add(pool.submit(self._copy, info))
            while moving:
                moving = self._take(moving)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _copy(self, info: ObjectInfo) -> ObjectInfo:
        data, problem = self._inspect(info.name, self._source.get(info.name))
        if data is not None:
            self._put(info.name, data)
        with self._lock:
            if problem:
                self._damaged[info.name] = problem
            if data is not None:
                self._objects += 1
                self._bytes += len(data)
        return info

    def _put(self, name: str, data: bytes) -> None:
        if name.startswith(_RELYING):
            self._held.confirm()
        self._target.put(name, [data])

    def _take(self, moving: set[Future[ObjectInfo]]) -> set[Future[ObjectInfo]]:
        """Wait for one; gives those that are still under way."""
        done, left = wait(moving, return_when=FIRST_COMPLETED)
        for future in done:
            size = future.result().size_bytes
            if self._progress is not None:
                self._progress(size)
        return left

    def _slots_there(self) -> tuple[str, ...]:
        there = _sizes(self._target, KEYS).keys() - _sizes(self._source, KEYS).keys()
        return tuple(sorted(name.removeprefix(KEYS) for name in there))


def _sizes(store: ObjectStore, folder: str) -> dict[str, int]:
    return {info.name: info.size_bytes for info in own_objects(store, folder)}
