"""Giving space back: packs that no restore point needs go, beside writers and readers at work.

A pack goes in two steps. First a *mark* names it; then it is removed, once every writer at work has
seen the mark and what restore points need was looked up again. Why that is enough:

- A writer joins, then reads the marks, then the index, and stores anew what lies only in marked packs.
  An image it carries over is named in its session before it looks that its point is committed, as a
  reader does. So a writer that saw a mark relies on none of its packs.
- A writer that did not see the mark is waited for. When it has ended, what it committed is among the
  points, and packs they need stay.
- A reader names an image in his session before he looks whether its point is still there, and points
  are listed here before sessions: a point that was forgotten before they were listed was there when he
  looked, so his session names it.
- A draft is needed like a point, while its run is neither committed nor given up. Whoever goes on with one
  does as a reader does: he names what it stands on before he looks whether it is still there, and drafts
  are listed here before sessions.
- Packs that a live writer has put and not yet committed may be marked, for nobody needs them yet. The
  writer did not see that mark, so he is waited for.
- The new segments are written before the old ones are deleted, those before the packs, and the mark
  goes last. Killed in between, the mark is there, and the next prune goes on.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from operator import add

import numpy as np
from numpy.typing import NDArray

from atoll.model.errors import RepositoryDamagedError
from atoll.model.points import RestorePoint
from atoll.repository.config import CONFIG
from atoll.repository.drafts import DraftLog
from atoll.repository.fetch import ChunkSource
from atoll.repository.index import (
    INDEX,
    Index,
    Rows,
    entries,
)
from atoll.repository.keys import MasterKey
from atoll.repository.lost import drop_found
from atoll.repository.marks import MARKS, drop_mark, put_mark, read_marks
from atoll.repository.packs import (
    PACK_BYTES,
    PACKS,
    OpenPack,
    PackEntry,
    PackKeys,
    PackListing,
    object_name,
    put_pack,
)
from atoll.repository.points import POINTS, PointLog
from atoll.repository.presence import Present, present
from atoll.repository.reach import Reach
from atoll.repository.relisting import list_packs, relist
from atoll.repository.slots import KEYS
from atoll.repository.store import ObjectLockedError, ObjectStore, own_objects

WASTE = 0.4
"""A pack of which more than this share is needed by nobody has the rest moved."""
_SMALL = 8  # a pack of less than 1/8 of the usual size is moved too, if there is enough of them
_SMALL_SEGMENT = 1 << 20
"""Bytes; segments below it are joined when there are enough of them."""
_SEGMENTS_TO_JOIN = 64


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune would do; sizes in bytes.

    `unused` is what packs hold that nobody needs at all, `wasted` what lies between needed chunks
    of packs worth repacking, `kept` what stays wasted because moving the rest would cost more.
    """

    packs: int
    unused_packs: int
    unused_bytes: int
    repacked_packs: int
    repacked_bytes: int
    wasted_bytes: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a prune did.

    `freed_bytes` came back; `marked_bytes` wait for the processes and locks named in `waiting_for` and
    go with the next prune after these have ended. `kept_bytes` are needed by nobody either and stay
    in packs that were not repacked.
    """

    removed_packs: int
    freed_bytes: int
    moved_bytes: int
    marked_packs: int
    marked_bytes: int
    kept_bytes: int
    waiting_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """What was needed when it was looked up, by pack name."""

    index: Index
    reach: Reach
    points: Set[str]
    roots: Set[str]
    """Of sessions and drafts."""
    runs: Set[str]
    """That are committed."""
    present: dict[str, int]
    """Size of each pack in the store."""
    held: dict[str, int]
    """Bytes of the chunks in each pack that a segment lists."""
    needed: dict[str, int]
    """Bytes of those that are needed, for packs of which something is."""

    def unused(self) -> dict[str, int]:
        return {pack: size for pack, size in self.present.items() if pack not in self.needed}

    def waste(self, pack: str) -> int:
        return self.held[pack] - self.needed[pack]


class Pruner:
    """One prune. The caller holds the maintenance lock."""

    def __init__(
        self,
        store: ObjectStore,
        master: MasterKey,
        source: ChunkSource,
        keys: PackKeys,
        progress: Callable[[int], None] | None = None,
        pack_bytes: int = PACK_BYTES,
    ) -> None:
        self._store = store
        self._master = master
        self._source = source
        self._keys = keys
        self._progress = progress
        self._pack_bytes = pack_bytes
        self._drafts = DraftLog(store, master)
        self._last: _View | None = None
        self._locked: dict[str, datetime] = {}
        self._removed = self._freed = self._moved = self._kept = 0

    def plan(self, without: Set[str] = frozenset()) -> PrunePlan:
        """What `run` would do, were the points of these ids forgotten before."""
        view = self._look(frozenset(), without)
        unused = view.unused()
        repack = self._worth_moving(view)
        wasted = sum(map(view.waste, repack))
        return PrunePlan(
            packs=len(view.present),
            unused_packs=len(unused),
            unused_bytes=sum(unused.values()),
            repacked_packs=len(repack),
            repacked_bytes=sum(view.needed[pack] for pack in repack),
            wasted_bytes=wasted,
            kept_bytes=sum(map(view.waste, view.needed)) - wasted,
        )

    def run(self, repack_bytes: int | None = None) -> PruneReport:
        """Remove what earlier prunes marked, mark what nobody needs now, and remove that if it can be.

        At most `repack_bytes` of needed chunks are moved out of wasteful packs; None is no bound.
        RepositoryDamagedError if a point, a page or an index segment cannot be read: what is needed
        cannot be known then, and nothing is removed.
        """
        for info in self._store.temporaries():
            self._store.delete_temporary(info.name)
            self._freed += info.size_bytes
        self._drop_unreadable_marks()
        ready, _ = self._ready()
        view = self._look(self._marked())
        self._freed += PointLog(self._store, self._master).drop_orphans()
        self._freed += self._drafts.drop_stale(view.runs)
        self._remove(view, ready)
        self._mark(view, repack_bytes)
        ready, waiting = self._ready()
        if ready:
            self._remove(self._look(self._marked()), ready)
        left = self._marked()
        self._renew(view, left)
        drop_found(self._store, self._master, self._source.refresh())
        return PruneReport(
            removed_packs=self._removed,
            freed_bytes=self._freed,
            moved_bytes=self._moved,
            marked_packs=len(left),
            marked_bytes=sum(self._packs().get(pack, 0) for pack in left) if left else 0,
            kept_bytes=self._kept,
            waiting_for=self._waiting_for(waiting) if left else (),
        )

    def _renew(self, view: _View, going: Set[str]) -> None:
        """What restore points rest on must not come to be unlocked before they do."""
        packs = (view.needed.keys() & view.present.keys()) - going
        self._store.renew(
            [
                CONFIG,
                *(
                    info.name
                    for folder in (KEYS, POINTS)
                    for info in own_objects(self._store, folder)
                ),
                *map(object_name, sorted(packs)),
            ]
        )

    def _waiting_for(self, others: Iterable[Present]) -> tuple[str, ...]:
        found = {each.what for each in others}
        if self._locked:
            until = max(self._locked.values()).astimezone()
            found.add(
                f"locks of the store on {len(self._locked)} packs, the last until "
                f"{until:%Y-%m-%d %H:%M}"
            )
        return tuple(sorted(found))

    def _marked(self) -> frozenset[str]:
        return frozenset[str]().union(*read_marks(self._store, self._master).values())

    def _drop_unreadable_marks(self) -> None:
        readable = read_marks(self._store, self._master)
        for info in own_objects(self._store, MARKS):
            name = info.name.removeprefix(MARKS)
            if name not in readable:
                drop_mark(self._store, name)

    def _ready(self) -> tuple[dict[str, frozenset[str]], list[Present]]:
        """Marks that no writer at work may have missed, and the writers that others wait for."""
        others = present(self._store)
        marks = read_marks(self._store, self._master)
        waiting = [each for each in others if any(map(each.may_rely_on, marks))]
        ready = {
            name: packs
            for name, packs in marks.items()
            if not any(each.may_rely_on(name) for each in others)
        }
        return ready, waiting

    def _look(self, marked: Set[str], without: Set[str] = frozenset()) -> _View:
        """What is needed now, counting marked packs as absent where another holds the chunk too."""
        log = PointLog(self._store, self._master)
        points = {point.id: point for point in log.every_point()}
        runs = frozenset(point.run for point in points.values())
        drafted = [draft.roots for draft in self._drafts.going_on(runs).values()]
        roots = frozenset[str]().union(*(each.roots for each in present(self._store)))
        kept = [point for name, point in points.items() if name not in without]
        index = self._source.apart()
        last = self._last
        if (
            last is not None
            and (last.points, last.roots) == (points.keys(), roots.union(*drafted))
            and last.index.segments == index.segments
        ):
            return last
        if index.damaged:
            raise RepositoryDamagedError(
                f"Index segment {next(iter(index.damaged))} is damaged, so it is not known which "
                "packs are needed; rebuild the index first."
            )
        names = [pack.name for pack in index.packs]
        avoid = np.fromiter((name in marked for name in names), np.bool_, len(names))
        reach = Reach(index, self._source.get, avoid, self._progress)
        reach.add(*_named(kept))
        reach.add((root for root in roots if bytes.fromhex(root) in index), [])
        for each in drafted:
            with suppress(RepositoryDamagedError):  # of no use then, and no reason to keep all
                reach.add(each, [])
        held, needed = _by_pack(index, reach, names)
        self._last = _View(
            index, reach, points.keys(), roots.union(*drafted), runs, self._packs(), held, needed
        )
        return self._last

    def _packs(self) -> dict[str, int]:
        return {
            info.name.rpartition("/")[2]: info.size_bytes
            for info in own_objects(self._store, PACKS)
        }

    def _worth_moving(self, view: _View) -> list[str]:
        """Packs to repack, the most wasteful first; small ones only if they make a whole pack."""
        wasteful, small = [], []
        for pack in view.needed:
            if pack not in view.present:
                continue  # lost; verify names it
            if view.waste(pack) > WASTE * view.held[pack]:
                wasteful.append(pack)
            elif view.present[pack] < self._pack_bytes // _SMALL:
                small.append(pack)
        if sum(view.present[pack] for pack in small) >= self._pack_bytes:
            wasteful += small
        return sorted(wasteful, key=lambda pack: view.needed[pack] / view.held[pack])

    def _mark(self, view: _View, repack_bytes: int | None) -> None:
        already = self._marked()
        going = set(view.unused()) - already
        moved: list[str] = []
        left = repack_bytes
        for pack in self._worth_moving(view):
            if pack in already:
                continue
            if left is not None and view.needed[pack] > left:
                break
            moved.append(pack)
            left = None if left is None else left - view.needed[pack]
        going |= self._repack(view, moved)
        staying = view.needed.keys() - going - already
        self._kept = sum(map(view.waste, staying & view.present.keys()))
        if going:
            put_mark(self._store, self._master, going)

    def _repack(self, view: _View, packs: Sequence[str]) -> set[str]:
        """Store what is needed of these packs in others; gives the packs of which that succeeded."""
        if not packs:
            return set()
        wanted = _needed_rows(view.index, view.reach, frozenset(packs))
        moved: set[str] = set()
        written: list[PackListing] = []
        filling = OpenPack(self._keys)
        for pack in packs:
            data = memoryview(self._store.get(object_name(pack)))
            try:
                held = [
                    self._keys.open_chunk(
                        pack, entry, data[entry.offset : entry.offset + entry.sealed_bytes]
                    )
                    for entry in wanted[pack]
                ]
            except RepositoryDamagedError:
                continue  # verify names it; it stays as it is, for what is whole of it
            for entry, chunk in zip(wanted[pack], held, strict=True):
                self._moved += filling.add(entry.name, chunk).sealed_bytes
                if filling.size_bytes >= self._pack_bytes:
                    written.append(put_pack(self._store, filling))
                    filling = OpenPack(self._keys)
            moved.add(pack)
        if not filling.empty:
            written.append(put_pack(self._store, filling))
        list_packs(self._store, self._master, written)
        return moved

    def _remove(self, view: _View, ready: dict[str, frozenset[str]]) -> None:
        """Remove the packs of these marks that are not needed, and the marks."""
        # The view rests on segments that others wrote and points that others forgot.
        self._store.settle(INDEX)
        self._store.settle(POINTS)
        doomed = frozenset[str]().union(*ready.values()) - view.needed.keys()
        small = self._small_segments(view.index)
        relist(self._store, self._master, view.index.segments, doomed, small)
        locked: set[str] = set()
        for pack in sorted(doomed & view.present.keys()):
            try:
                self._store.delete(object_name(pack))
            except ObjectLockedError as error:
                self._locked[pack] = error.until
                locked.add(pack)
                continue
            self._removed += 1
            self._freed += view.present.pop(pack)
        for mark in sorted(ready):
            if locked.isdisjoint(ready[mark]):  # else a later prune goes on with it
                drop_mark(self._store, mark)

    def _small_segments(self, index: Index) -> frozenset[str]:
        """Segments worth joining, if there are enough of them."""
        small = frozenset(
            info.name.removeprefix(INDEX)
            for info in own_objects(self._store, INDEX)
            if info.size_bytes < _SMALL_SEGMENT
        )
        return small & index.segments if len(small) >= _SEGMENTS_TO_JOIN else frozenset()


def _named(points: Iterable[RestorePoint]) -> tuple[set[str], set[str]]:
    """The disk images and the blobs that points name."""
    found = list(points)
    roots = {disk.root for point in found for disk in point.disks}
    return roots, {blob for point in found for blob in point.blobs}


def _by_pack(
    index: Index, reach: Reach, names: Sequence[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the chunks in each pack, and of those that are needed where any is."""
    held = np.zeros(len(names), np.int64)
    needed = np.zeros(len(names), np.int64)
    for base, rows in index.blocks():
        met = rows[reach.rows[base : base + len(rows)] != 0]
        held += _sums(rows["pack"], rows["sealed"], len(names))
        needed += _sums(met["pack"], met["sealed"], len(names))
    # A pack that two segments list has two numbers, and every chunk of it two rows.
    return _by_name(held, names, max), _by_name(needed, names, add)


def _by_name(
    sizes: NDArray[np.int64], names: Sequence[str], join: Callable[[int, int], int]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for number in map(int, np.flatnonzero(sizes)):
        found[names[number]] = join(found.get(names[number], 0), int(sizes[number]))
    return found


def _sums(packs: NDArray[np.uint32], sizes: NDArray[np.uint32], count: int) -> NDArray[np.int64]:
    return np.bincount(packs, sizes, count).astype(np.int64)


def _needed_rows(index: Index, reach: Reach, packs: Set[str]) -> dict[str, Sequence[PackEntry]]:
    """The entries that are needed of each of these packs."""
    numbers = {number: pack.name for number, pack in enumerate(index.packs) if pack.name in packs}
    wanted = np.zeros(len(index.packs), np.bool_)
    wanted[list(numbers)] = True
    found: dict[str, list[Rows]] = {pack: [] for pack in packs}
    for base, rows in index.blocks():
        chosen = rows[(reach.rows[base : base + len(rows)] != 0) & wanted[rows["pack"]]]
        for number in np.unique(chosen["pack"]):
            found[numbers[int(number)]].append(chosen[chosen["pack"] == number])
    return {pack: entries(np.concatenate(parts)) for pack, parts in found.items()}
