"""Reading everything back, and saying which restore points and which bytes damage touches."""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from atoll.model.errors import RepositoryDamagedError
from atoll.model.extents import Extent, merge
from atoll.model.points import RestorePoint
from atoll.repository.chunks import ChunkCodec
from atoll.repository.config import CONFIG, Config, damaged_copies
from atoll.repository.doubled import as_written
from atoll.repository.drafts import DRAFTS
from atoll.repository.fetch import ChunkSource
from atoll.repository.holds import HOLDS, HoldLog
from atoll.repository.index import INDEX, Index, read_segment
from atoll.repository.keys import MasterKey
from atoll.repository.lost import LOST
from atoll.repository.packs import (
    PACKS,
    PackCheck,
    PackEntry,
    PackKeys,
    check_pack,
    object_name,
)
from atoll.repository.points import EVIDENCE, POINTS, PointLog
from atoll.repository.reach import DamageSearch, Reach, Touch
from atoll.repository.sealing import halves
from atoll.repository.slots import KEYS
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

_PACKS_AHEAD = 3  # each is held whole
_Entries = tuple[PackEntry, ...]


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
    """`checked_chunks` were read, opened and hashed; `checked_bytes` is the size of what was read.

    `checked_packs` of `packs` were read; the rest of the repository always is.
    """

    checked_chunks: int
    checked_bytes: int
    checked_packs: int
    packs: int
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
        choose: Callable[[Mapping[str, int]], Collection[str]] | None = None,
        checked: Callable[[str, bool], None] | None = None,
    ) -> None:
        """`choose` says which packs to read of all and their sizes, None all of them.

        `checked` is told of each pack whether it was whole.
        """
        self._choose = choose
        self._checked = checked
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
        self.lost: set[bytes] = set()
        """Chunks that points need, or that lie in a damaged pack, and that cannot be read there."""
        self._chunks = self._bytes = self._packs = self._checked_packs = 0

    def run(self) -> VerifyReport:
        """Check every object; raises only if the store does not answer."""
        self._check_settings({point.id for point in self._check_log()})
        index = self._source.refresh()
        self._count(sum(info.size_bytes for info in own_objects(self._store, INDEX)))
        unindexed = self._check_packs(index)
        # As they are now, with an index as new as that: some may have been forgotten meanwhile.
        points = self._log.points()
        self._check_index(self._source.refresh(), unindexed)
        if self._blamed or not self._all_there(points):
            self._trace(points)
            self._pass_over_forgotten({point.id for point in self._log.points()})
        return VerifyReport(
            self._chunks,
            self._bytes,
            self._checked_packs,
            self._packs,
            tuple(_damage(name, self._findings[name]) for name in sorted(self._findings)),
        )

    def _all_there(self, points: Iterable[RestorePoint]) -> bool:
        """Whether the index lists all that points need and their pages can be read."""
        roots = {disk.root for point in points for disk in point.disks}
        blobs = {blob for point in points for blob in point.blobs}
        try:
            Reach(self._source.apart(), self._source.get).add(roots, blobs)
        except RepositoryDamagedError:
            return False
        return True

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
        self._check_notes()
        for prefix in (POINTS, EVIDENCE, LOST, DRAFTS):
            self._count(sum(info.size_bytes for info in own_objects(self._store, prefix)))
        return list(points.values())

    def _check_notes(self) -> None:
        """What was noted as lost, and drafts; one that cannot be read is passed over by backups."""
        for info in [*own_objects(self._store, LOST), *own_objects(self._store, DRAFTS)]:
            try:
                copies = halves(self._store.get(info.name))
            except MissingObjectError:
                continue
            bad = [copy for copy in copies if not as_written(self._master, info.name, copy)]
            if bad:
                self._finding(info.name, f"{len(bad)} of its 2 copies are not what was written")

    def _check_settings(self, everyone: set[str]) -> None:
        for name, detail in damaged_copies(self._store, self._master):
            self._finding(name, detail).points.update(everyone)
        self._count(len(self._store.get(CONFIG)))
        self._count(sum(info.size_bytes for info in own_objects(self._store, KEYS)))
        for name, damaged, point in HoldLog(self._store, self._master).damaged_copies():
            finding = self._finding(name, f"{damaged} of its 2 copies are not what was written")
            finding.points.update(everyone & {point} if point else everyone)
        self._count(sum(info.size_bytes for info in own_objects(self._store, HOLDS)))

    def _check_packs(self, index: Index) -> dict[str, tuple[PackEntry, ...]]:
        """Read the packs that were chosen; returns what those hold that the index does not list."""
        present = {
            info.name.rpartition("/")[2]: info.size_bytes
            for info in own_objects(self._store, PACKS)
        }
        chosen = frozenset(present if self._choose is None else self._choose(present))
        self._packs = len(present)
        unindexed: dict[str, tuple[PackEntry, ...]] = {}
        waiting: deque[tuple[str, _Entries | None, Future[PackCheck | None]]] = deque()

        def take() -> None:
            pack, listed, future = waiting.popleft()
            check = future.result()
            self._count(present[pack])
            self._checked_packs += 1
            if check is None:
                if self._still_listed({pack}):
                    self._blame(object_name(pack), "it is missing", listed or (), lost=True)
                return
            self._chunks += len(check.entries)
            if listed is None:
                unindexed[pack] = check.entries
            if self._checked is not None:
                self._checked(pack, not check.problems)
            if not check.problems:
                return
            only_chunks = len(check.problems) == 1 and check.lost
            touched = check.lost if only_chunks else check.entries
            self._blame(object_name(pack), "; ".join(check.problems), touched, lost=False)
            self.lost.update(entry.name for entry in check.lost)

        missing: dict[str, _Entries] = {}
        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            for pack, listed in self._listed(index, present.keys()):
                if pack not in present:
                    missing[pack] = listed or ()
                elif pack in chosen:
                    future = pool.submit(self._check_pack, pack, listed)
                    waiting.append((pack, listed, future))
                    if len(waiting) > _PACKS_AHEAD:
                        take()
            while waiting:
                take()
        for pack in sorted(self._still_listed(missing.keys())):
            self._blame(object_name(pack), "it is missing", missing[pack], lost=True)
        return unindexed

    def _listed(self, index: Index, present: Set[str]) -> Iterator[tuple[str, _Entries | None]]:
        """Each pack with what a segment says of it, segment by segment; those none lists last."""
        seen: set[str] = set()
        for segment in sorted(index.segments):
            try:
                packs = read_segment(self._store, self._master, segment)
            except MissingObjectError:
                continue  # a prune wrote it anew; its packs count as not listed here
            for pack in packs:
                if pack.name not in seen:
                    seen.add(pack.name)
                    yield pack.name, pack.entries
        for name in sorted(present - seen):
            yield name, None

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
                self.lost.add(entry.name)

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
                    self._touched(point.id, disk.label, touch)
            if point.catalogue:
                for touch in search.blob(point.catalogue):
                    self._touched(point.id, "", touch)

    def _touched(self, point: str, disk: str, touch: Touch) -> None:
        """Note that a point meets a bad name; with an extent, in a disk of that label."""
        objects = self._blamed.get(touch.name)
        if objects is None:
            objects = {PACKS}
            self._finding(PACKS, "packs are missing that no index segment lists")
            self.lost.add(touch.name)
        for name in objects:
            if name == INDEX:
                self._finding(INDEX, "no segment lists packs that points need")
            finding = self._findings[name]
            finding.points.add(point)
            if touch.extent is not None and touch.name in self.lost:
                finding.lost.setdefault((point, disk), []).append(touch.extent)

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
