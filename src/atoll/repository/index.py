"""The index: which pack holds a chunk. What all segments of the store say, merged.

Rows come from segments, and most of them by way of a local cache (`index_cache`) of what was read
before. The cache says of what a segment lists, never whether it still counts. That is decided at each
`refresh` by a listing of the store:

    A pack's rows are found if and only if a segment that is present now lists the pack.

So nothing in the cache needs to be rewritten when a prune replaces segments, and nothing that it took
away can be found again, for then a writer would rely on a pack that is deleted. A prune writes new
segments that list the packs that stay, deletes the old segments, and then the packs. What a refresh
sees in between:

- Old and new segments: all packs of both count, and all are there, for packs go last.
- New segments only: the packs that only the old ones listed count no more, whether or not they are
  there. Their rows stay in the tables, dead, until a merge leaves them out.
- Neither, because the listing passed the place of the new one before it was put and the place of the
  old one after it was deleted. Then packs that stay would be taken for gone. So when anything that was
  known is missing from a listing, or nothing was known, the store is listed again until nothing has
  gone between two listings: what the second listing does not show had gone before it began, and what
  replaced that was there before.
- A segment that goes between the listing and its reading: all begins anew.

A pack that comes back (rebuild index lists one again) has its rows counted again, or read again when a
merge has left them out: a pack never changes and its name is used once, so both are the same. For the
same reason a new segment's rows of packs that are known are not kept twice. "The same pack" means
name, size and number of rows; one that differs in any is another, with rows of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.model.errors import RepositoryDamagedError
from atoll.repository.index_cache import IndexCache, IndexCacheDamagedError, Saved
from atoll.repository.index_file import BLOCK_ROWS, TableDamagedError
from atoll.repository.index_merge import merge
from atoll.repository.index_saving import save_state, worth_saving
from atoll.repository.index_state import (
    DEAD,
    Draft,
    Numbers,
    Packs,
    State,
    known_records,
)
from atoll.repository.index_table import (
    MemoryTable,
    prefixes_of,
    rows_named,
    unpack_prefix,
)
from atoll.repository.keys import MasterKey
from atoll.repository.packs import PackEntry, PackListing
from atoll.repository.segments import (
    INDEX,
    ROW,
    IndexedPack,
    Rows,
    Segment,
    entries,
    entry_of,
    listed_packs,
    load_segment,
    read_segment,
    segment_of,
    write_segment,
)
from atoll.repository.store import MissingObjectError, ObjectStore, own_objects

__all__ = [
    "INDEX",
    "Index",
    "IndexCache",
    "IndexCacheDamagedError",
    "IndexedPack",
    "Location",
    "Positions",
    "Rows",
    "entries",
    "listed_packs",
    "read_segment",
    "write_segment",
]

Positions = NDArray[np.int64]
"""Places of rows in an index; they hold until it takes in another segment."""
_PACK = slice(32, 36)
_NAMES_AT_ONCE = 1 << 16
_ROWS_AT_ONCE = BLOCK_ROWS << 14


class Location(NamedTuple):
    """Where a chunk lies: the pack's name (hex) and the chunk's entry there."""

    pack: str
    entry: PackEntry


class Index:
    """Every segment of the store, merged. Lookups need no lock; changes are the caller's to order.

    Without a cache it reads every segment and holds all rows in memory, about 58 bytes each. With one,
    rows beyond the cache's limits go to files, and memory holds less than two bytes for each.

    Lookups raise IndexCacheDamagedError if a file of the cache turns out not to be what was written.
    The cache is discarded by then; `without_cache` gives an index that can be filled from the store.
    """

    def __init__(self, cache: IndexCache | None = None) -> None:
        self._cache = cache
        self._saved = Saved()
        self._state = State()
        self._known: dict[bytes, int] | None = None
        self._may_spill = cache is not None
        self._spilled = False
        self.damaged: dict[str, str] = {}
        """Segments that could not be read and why; their packs count as not indexed."""

    def without_cache(self) -> "Index":
        """An index of nothing yet that will not use the cache."""
        return Index()

    @property
    def packs(self) -> Sequence[IndexedPack]:
        """Packs that some segment lists, each once."""
        return Packs(self._state)

    @property
    def segments(self) -> frozenset[str]:
        """Names of the segments taken in."""
        return frozenset(self._state.held)

    def __len__(self) -> int:
        """How many positions there are; rows of packs that no segment lists any more have some too."""
        return self._state.rows

    @property
    def chunks(self) -> int:
        """How many rows there are of packs that a segment lists."""
        state = self._state
        return int(state.records["rows"][state.live].sum())

    def refresh(self, store: ObjectStore, master: MasterKey) -> "Index":
        """An index of the store as it is now: this one with more in it, or a new one.

        A prune replaces segments, and what it took away must not be found again. What is new and does
        not fit into memory is saved to the cache.
        """
        self._open()
        self._spilled = False
        index = self
        while True:
            present = index._listed(store)
            gone = index._state.held.keys() - present
            if gone:
                index = index._less(gone)
            index.damaged = {name: why for name, why in index.damaged.items() if name in present}
            new = present - index._state.held.keys() - index.damaged.keys()
            if index._take_all(store, master, sorted(new)):
                break
        if index._spilled:
            # So much is new that the next who opens must not have to read it again.
            with suppress(IndexCacheDamagedError):
                return index.consolidate(store, master)
        return index

    def _open(self) -> None:
        """Begin with what the cache has, if nothing is known yet."""
        if self._cache is None or self._saved.edition is not None or self._state.held:
            return
        saved = self._cache.load()
        if saved is not None:
            self._saved, self._state = saved, saved.state

    def _listed(self, store: ObjectStore) -> set[str]:
        """Segments that are present; listed again if one seems to have gone, see above."""
        present = _segment_names(store)
        known = self._state.held.keys()
        if known and known <= present:
            return present
        while True:
            before, present = present, _segment_names(store)
            if before <= present:
                return present

    def _less(self, gone: set[str]) -> "Index":
        index = Index(self._cache)
        index._saved = self._saved
        index._may_spill, index._spilled = self._may_spill, self._spilled
        index._state = self._state.without(gone)
        index.damaged = self.damaged
        return index

    def _based_on(self, saved: Saved) -> "Index":
        index = Index(self._cache)
        index._saved, index._state = saved, saved.state
        index.damaged = self.damaged
        return index

    def add(self, segment: str, packs: Sequence[PackListing]) -> None:
        """Take in a segment this process has just written; twice is harmless."""
        if segment in self._state.held:
            return
        with self._changing() as draft:
            self._take(draft, segment, segment_of(packs))

    def _take_all(self, store: ObjectStore, master: MasterKey, names: Sequence[str]) -> bool:
        """Take in segments; False if a prune has replaced one of them since they were listed."""
        if not names:
            return True
        damaged = dict(self.damaged)
        with self._changing() as draft:
            for name in names:
                try:
                    segment = load_segment(store, master, name)
                except MissingObjectError:
                    return False
                except RepositoryDamagedError as error:
                    damaged[name] = str(error)
                    continue
                self._take(draft, name, segment)
        self.damaged = damaged
        return True

    @contextmanager
    def _changing(self) -> Iterator[Draft]:
        """A draft that becomes the state, unless something fails meanwhile."""
        known = known_records(self._state) if self._known is None else self._known
        draft = Draft(self._state, known)
        self._known = None
        yield draft
        self._state = draft.state()
        self._known = known

    def _take(self, draft: Draft, name: str, segment: Segment) -> None:
        draft.take(name, segment)
        cache = self._cache
        if cache is not None and self._may_spill and draft.memory_rows() > cache.limits.memory_rows:
            self._spill(draft, cache)

    def _spill(self, draft: Draft, cache: IndexCache) -> None:
        """Move what is in memory to a file; where there is no room for one, all stays in memory."""
        state = draft.state()
        moving = [each for each in state.tables if isinstance(each.table, MemoryTable)]
        same = np.arange(len(state.records))
        try:
            table = cache.private_table(
                sum(each.rows for each in moving), lambda file: merge(moving, same, file)
            )
        except OSError:
            self._may_spill = False
            return
        self._spilled = True
        draft.tables[-len(moving) :] = [(table, 0)]

    def consolidate(self, store: ObjectStore, master: MasterKey) -> "Index":
        """Save to the cache what is worth it, and give the index on what was saved, or this one.

        For whoever is about to write, now and then. Memory and the number of files stay bounded by
        this; when another does it at the moment, or it cannot be done, all stays as it is.
        """
        cache = self._cache
        if cache is None or not worth_saving(self._state, self._saved, cache.limits):
            return self
        try:
            with cache.turn() as mine:
                if not mine:
                    return self
                index = self
                if cache.edition() != self._saved.edition:
                    # Another has saved since, and removed what this index is based on.
                    index = Index(cache).refresh(store, master)
                if not worth_saving(index._state, index._saved, cache.limits):
                    return index
                return index._based_on(save_state(index._state, index._saved, cache))
        except OSError:
            return self
        except TableDamagedError as error:
            raise self._discarded(error) from error

    def check(self) -> None:
        """Read all that lies in files; IndexCacheDamagedError if a bit differs.

        Also brings it into the page cache, in the order in which it lies.
        """
        for _ in self.blocks():
            pass

    def __contains__(self, name: bytes) -> bool:
        # The same as `_rows`, but called for every chunk that is copied: a third faster so.
        state = self._state
        (prefix,) = unpack_prefix(name)
        try:
            for places, row_at, first in state.lookups:
                for at in places(prefix):
                    row = row_at(at)
                    if row.startswith(name) and (
                        state.all_live or state.numbers[first + _record(row)] != DEAD
                    ):
                        return True
        except TableDamagedError as error:
            raise self._discarded(error) from error
        return False

    def locations(self, name: bytes) -> Iterator[Location]:
        """Every place the chunk lies; concurrent writers may have stored it twice."""
        state = self._state
        try:
            for record, row in _rows(state, name):
                yield Location(state.pack(record).name, entry_of(row))
        except TableDamagedError as error:
            raise self._discarded(error) from error

    def find(self, names: NDArray[np.uint8], avoid: NDArray[np.bool_] | None = None) -> Positions:
        """Where many chunks stand in this index, -1 for those it lacks.

        `names` has a row of 32 bytes for each. Of a chunk in several packs it is always the same
        place, one in a pack that `avoid` (by pack number) does not have if there is such a place.
        """
        names = np.ascontiguousarray(names)
        try:
            if len(names) <= _NAMES_AT_ONCE:
                return _find(self._state, names, avoid)
            parts = range(0, len(names), _NAMES_AT_ONCE)
            return np.concatenate(
                [_find(self._state, names[at : at + _NAMES_AT_ONCE], avoid) for at in parts]
            )
        except TableDamagedError as error:
            raise self._discarded(error) from error

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """All rows in the order of their positions, with the position of each block's first.

        A block has some 300,000 rows at most. A row of a pack that no segment lists any more, which `find`
        never gives, is all zeros.
        """
        for base, rows, living in self._blocks():
            if not living.all():
                rows[~living] = np.zeros((), ROW)
            yield base, rows

    def _blocks(self) -> Iterator[tuple[int, Rows, NDArray[np.bool_]]]:
        """The same as copies, with which rows are of packs that count."""
        state = self._state
        try:
            for table, base, first in state.tables:
                for at in range(0, len(table.buckets), _ROWS_AT_ONCE):
                    end = min(at + _ROWS_AT_ONCE, len(table.buckets))
                    rows = table.read(at, end).copy()
                    numbers = state.numbers[rows["pack"].astype(np.int64) + first]
                    living = numbers != DEAD
                    rows["pack"] = np.where(living, numbers, 0)
                    yield base + at, rows, living
        except TableDamagedError as error:
            raise self._discarded(error) from error

    def by_pack(self) -> dict[str, Rows]:
        """Each pack's rows, for whoever looks at whole packs; `entries` makes them readable.

        All rows in memory at once.
        """
        packs = self.packs
        held: dict[str, list[Rows]] = {}
        for _, block, living in self._blocks():
            rows = block[living]
            rows = rows[np.argsort(rows["pack"], kind="stable")]
            for part in np.split(rows, np.flatnonzero(np.diff(rows["pack"])) + 1):
                if len(part):
                    held.setdefault(packs[int(part[0]["pack"])].name, []).append(part)
        return {pack: np.concatenate(parts) for pack, parts in held.items()}

    def _discarded(self, error: TableDamagedError) -> IndexCacheDamagedError:
        """Have the cache made anew by the next who opens it."""
        assert self._cache is not None
        self._cache.discard(self._saved.edition)
        return IndexCacheDamagedError(
            f"The local copy of the index in {self._cache.location} is damaged ({error}) and was "
            "discarded; run again, and it is made anew from the repository."
        )


def _rows(state: State, name: bytes) -> Iterator[tuple[int, bytes]]:
    """Every row of this name whose pack counts, with the number of that pack's record."""
    (prefix,) = unpack_prefix(name)
    for places, row_at, first in state.lookups:
        for at in places(prefix):
            row = row_at(at)
            if row.startswith(name):
                record = first + _record(row)
                if state.all_live or state.numbers[record] != DEAD:
                    yield record, row


def _find(state: State, names: NDArray[np.uint8], avoid: NDArray[np.bool_] | None) -> Positions:
    prefixes = prefixes_of(names)
    found = np.full(len(names), -1, np.int64)
    second = found if avoid is None else found.copy()
    open_ = np.arange(len(names))
    for table, base, first in state.tables:
        owners, places, rows = rows_named(table, names[open_], prefixes[open_])
        numbers = state.numbers[rows["pack"].astype(np.int64) + first]
        owners, places = open_[owners], places + base
        living = np.flatnonzero(numbers != DEAD)
        owners, places = owners[living], places[living]
        if avoid is not None:
            avoided = avoid[numbers[living]]
            later = avoided & (second[owners] < 0)
            _note_first(second, owners[later], places[later])
            owners, places = owners[~avoided], places[~avoided]
        _note_first(found, owners, places)
        open_ = np.flatnonzero(found < 0)
        if not len(open_):
            break
    return found if avoid is None else np.where(found < 0, second, found)


def _note_first(into: Positions, owners: Numbers, places: Positions) -> None:
    """Note the first place of each owner; of several assignments the last one counts."""
    into[owners[::-1]] = places[::-1]


def _record(row: bytes) -> int:
    return int.from_bytes(row[_PACK], "little")


def _segment_names(store: ObjectStore) -> set[str]:
    return {info.name.removeprefix(INDEX) for info in own_objects(store, INDEX)}
