"""Reading everything back, and saying which restore points and which bytes damage touches."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent, merge
from atoll.model.points import RestorePoint
from atoll.repository.chunks import ChunkCodec
from atoll.repository.config import CONFIG, KEYS, Config, damaged_copies
from atoll.repository.fetch import ChunkSource
from atoll.repository.index import INDEX, Index, Rows, entries
from atoll.repository.keys import MasterKey
from atoll.repository.packs import (
    PACKS,
    PackCheck,
    PackEntry,
    PackKeys,
    check_pack,
    object_name,
)
from atoll.repository.points import EVIDENCE, POINTS, PointLog
from atoll.repository.reach import DamageSearch, spoiled
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

_PACKS_AHEAD = 3  # each is held whole


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """Bytes of a disk of a restore point that cannot be restored."""

    point: str
    disk: str
    extent: Extent


@dataclass(frozen=True, slots=True)
class Damage:
    """An object that is not what was written, the ids of points it touches, and what is lost.

    `ranges` is empty when no disk has lost anything yet: a second copy or the
    packs' own footers serve.
    """

    object: str
    detail: str
    points: tuple[str, ...]
    ranges: tuple[DamagedRange, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """`checked_chunks` were read, opened and hashed; `checked_bytes` is the size of all objects."""

    checked_chunks: int
    checked_bytes: int
    damaged: tuple[Damage, ...]


@dataclass(slots=True)
class _Finding:
    """What is known of one damaged object."""

    details: list[str] = field(default_factory=list)
    points: set[str] = field(default_factory=set)
    lost: dict[tuple[str, str], list[Extent]] = field(default_factory=dict)


class Verifier:
    """One pass over a repository.

    A prune may be at work beside it: what that takes away meanwhile is no damage.
    """

    def __init__(
        self,
        store: ObjectStore,
        config: Config,
        master: MasterKey,
        codec: ChunkCodec,
        keys: PackKeys,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._store = store
        self._config = config
        self._master = master
        self._codec = codec
        self._keys = keys
        self._progress = progress
        self._log = PointLog(store, master)
        self._source = ChunkSource(store, master, codec, keys)
        self._findings: dict[str, _Finding] = {}
        self._blamed: dict[bytes, set[str]] = {}
        """Names that lie in a damaged object, and the objects."""
        self._lost: set[bytes] = set()
        self._chunks = 0
        self._bytes = 0

    def run(self) -> VerifyReport:
        """Check every object; raises only if the store does not answer."""
        self._check_settings({point.id for point in self._check_log()})
        index = self._source.refresh()
        self._count(sum(info.size_bytes for info in own_objects(self._store, INDEX)))
        unindexed = self._check_packs(index.by_pack())
        self._check_index(index, unindexed)
        # As they are now, with an index as new as that: some may have been forgotten meanwhile.
        points = self._log.points()
        self._source.refresh()
        self._trace(points)
        self._pass_over_forgotten({point.id for point in self._log.points()})
        return VerifyReport(
            self._chunks,
            self._bytes,
            tuple(_damage(name, self._findings[name]) for name in sorted(self._findings)),
        )

    def _finding(self, name: str, detail: str) -> _Finding:
        finding = self._findings.setdefault(name, _Finding())
        if detail not in finding.details:
            finding.details.append(detail)
        return finding

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._progress is not None:
            self._progress(size_bytes)

    def _check_log(self) -> list[RestorePoint]:
        points: dict[str, RestorePoint] = {}
        unreadable: list[tuple[str, str]] = []
        for name in self._log.names():
            try:
                reading = self._log.read_again(name)
            except MissingObjectError:
                continue  # forgotten, or written anew without what was, since it was listed
            except RepositoryDamagedError as error:
                unreadable.append((name, str(error)))
                continue
            points.update((point.id, point) for point in reading.points)
            if reading.damaged_copies:
                finding = self._finding(name, "one of its two copies is not what was written")
                finding.points.update(point.id for point in reading.points)
                finding.points.update(item.point for item in reading.evidence)
        for name, why in unreadable:
            self._finding(name, why).points.update(
                point for point in points if name.startswith(self._log.folder_of(point))
            )
        for prefix in (POINTS, EVIDENCE):
            self._count(sum(info.size_bytes for info in own_objects(self._store, prefix)))
        return list(points.values())

    def _check_settings(self, everyone: set[str]) -> None:
        for name, detail in damaged_copies(self._store, self._master):
            self._finding(name, detail).points.update(everyone)
        self._count(len(self._store.get(CONFIG)))
        self._count(sum(info.size_bytes for info in own_objects(self._store, KEYS)))

    def _check_packs(self, indexed: dict[str, Rows]) -> dict[str, tuple[PackEntry, ...]]:
        """Read all packs; returns what those hold that the index does not list."""
        present = {
            info.name.rpartition("/")[2]: info.size_bytes
            for info in own_objects(self._store, PACKS)
        }
        for pack in sorted(self._still_listed(indexed.keys() - present.keys())):
            self._blame(object_name(pack), "it is missing", entries(indexed[pack]), lost=True)
        unindexed: dict[str, tuple[PackEntry, ...]] = {}
        waiting: deque[tuple[str, Future[PackCheck | None]]] = deque()

        def take() -> None:
            pack, future = waiting.popleft()
            check = future.result()
            self._count(present[pack])
            if check is None:
                if self._still_listed({pack}):
                    listed = entries(indexed[pack])
                    self._blame(object_name(pack), "it is missing", listed, lost=True)
                return
            self._chunks += len(check.entries)
            if pack not in indexed:
                unindexed[pack] = check.entries
            if not check.problems:
                return
            only_chunks = len(check.problems) == 1 and check.lost
            touched = check.lost if only_chunks else check.entries
            name = object_name(pack)
            self._blame(name, "; ".join(check.problems), touched, lost=False)
            self._lost.update(entry.name for entry in check.lost)

        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            for pack in sorted(present):
                listed = entries(indexed[pack]) if pack in indexed else None
                waiting.append((pack, pool.submit(self._check_pack, pack, listed)))
                if len(waiting) > _PACKS_AHEAD:
                    take()
            while waiting:
                take()
        return unindexed

    def _check_pack(self, pack: str, indexed: tuple[PackEntry, ...] | None) -> PackCheck | None:
        try:
            data = self._store.get(object_name(pack))
        except MissingObjectError:
            return None
        return check_pack(self._keys, pack, data, self._codec.unpack, indexed)

    def _still_listed(self, packs: Set[str]) -> Set[str]:
        """Those of the packs that a segment lists now; a prune takes them off the index first."""
        return packs & {pack.name for pack in self._source.apart().packs} if packs else packs

    def _blame(self, name: str, detail: str, touched: Iterable[PackEntry], *, lost: bool) -> None:
        self._finding(name, detail)
        for entry in touched:
            self._blamed.setdefault(entry.name, set()).add(name)
            if lost:
                self._lost.add(entry.name)

    def _check_index(self, index: Index, unindexed: dict[str, tuple[PackEntry, ...]]) -> None:
        """Name segments that are damaged or gone by the packs that no segment lists."""
        blamed = [INDEX + segment for segment in index.damaged]
        for segment, why in index.damaged.items():
            self._finding(INDEX + segment, f"{why} The packs' own footers serve until then")
        for held in unindexed.values():
            for entry in held:
                if entry.name not in index:
                    # Harmless unless a point needs it: a writer may be at work, or was killed.
                    self._blamed.setdefault(entry.name, set()).update(blamed or [INDEX])

    def _trace(self, points: Iterable[RestorePoint]) -> None:
        """Follow every point down to its chunks and note who meets a bad name."""

        def bad(name: bytes) -> bool:
            return name in self._blamed or name not in self._source.index

        search = DamageSearch(self._source.get, bad)
        for point in points:
            for disk in point.disks:
                for touch in search.disk(disk):
                    objects = self._blamed.get(touch.name)
                    if objects is None:
                        objects = {PACKS}
                        self._finding(PACKS, "packs are missing that no index segment lists")
                        self._lost.add(touch.name)
                    for name in objects:
                        if name == INDEX:
                            self._finding(INDEX, "no segment lists packs that points need")
                        finding = self._findings[name]
                        finding.points.add(point.id)
                        extent = spoiled(touch, self._config.chunk_bytes, disk.size_bytes)
                        if extent is not None and touch.name in self._lost:
                            finding.lost.setdefault((point.id, disk.label), []).append(extent)

    def _pass_over_forgotten(self, there: Set[str]) -> None:
        """What lay below a point that went while it was traced may rightly be missing."""
        for name, finding in list(self._findings.items()):
            finding.points &= there
            finding.lost = {
                place: extents for place, extents in finding.lost.items() if place[0] in there
            }
            if name in (PACKS, INDEX) and not finding.points:
                del self._findings[name]


def _damage(name: str, finding: _Finding) -> Damage:
    return Damage(
        name,
        "; ".join(finding.details),
        tuple(sorted(finding.points)),
        tuple(
            DamagedRange(point, disk, extent)
            for (point, disk), extents in sorted(finding.lost.items())
            for extent in merge(extents)
        ),
    )
