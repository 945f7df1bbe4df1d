"""What an index knows at one moment: tables of rows, the packs these are in, and who lists them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from atoll.repository.index_table import MemoryTable, Table
from atoll.repository.segments import IndexedPack, Segment

PACK = np.dtype([("name", "V16"), ("size", "<u8"), ("rows", "<u4")])
"""A pack, its size in bytes and how many rows it has."""
DEAD = -1
Records = NDArray[np.void]
Numbers = NDArray[np.int64]


class Placed(NamedTuple):
    """A table in an index: `base` is its first row's position, `first` the record its packs count from."""

    table: Table
    base: int
    first: int

    @property
    def rows(self) -> int:
        """How many rows the table has."""
        return len(self.table.buckets)


class State:
    """An index at one moment. Never changes.

    Each pack has a *record*, by whose number the tables' rows name it. Those that a present segment
    lists have a *number* as well, by which the index's users know them; the others are dead.
    """

    def __init__(
        self,
        tables: Sequence[tuple[Table, int]] = (),
        records: Records | None = None,
        held: Mapping[str, Numbers] | None = None,
    ) -> None:
        """Tables with the record their packs count from, and by segment the records it lists."""
        placed, base = [], 0
        for table, first in tables:
            placed.append(Placed(table, base, first))
            base += placed[-1].rows
        self.tables = tuple(placed)
        self.lookups = tuple(
            (each.table.buckets.places, each.table.row, each.first) for each in placed
        )
        """What looking up one name calls, and the record to count packs from, for each table."""
        self.rows = base
        self.records = np.zeros(0, PACK) if records is None else records
        self.held: Mapping[str, Numbers] = held or {}
        live = np.zeros(len(self.records), np.bool_)
        for listed in self.held.values():
            live[listed] = True
        self.live = np.flatnonzero(live)
        """The record of each pack, by number."""
        self.numbers = np.full(len(self.records), DEAD)
        """The number of each record's pack, DEAD if no present segment lists it."""
        self.numbers[self.live] = np.arange(len(self.live))
        self.all_live = len(self.live) == len(self.records)

    def without(self, segments: set[str]) -> "State":
        """The same after these segments were deleted."""
        held = {name: listed for name, listed in self.held.items() if name not in segments}
        return State([(each.table, each.first) for each in self.tables], self.records, held)

    def dead_rows(self, first: int, end: int) -> int:
        """How many rows belong to dead packs among the records from `first` to `end`."""
        gone = self.numbers[first:end] == DEAD
        return int(self.records["rows"][first:end][gone].sum())

    def pack(self, record: int) -> IndexedPack:
        """A pack as its segments name it."""
        found = self.records[record]
        return IndexedPack(found["name"].tobytes().hex(), int(found["size"]))


class Packs(Sequence[IndexedPack]):
    """The packs that present segments list, by number, each once; made as they are asked for."""

    def __init__(self, state: State) -> None:
        self._state = state

    def __len__(self) -> int:
        return len(self._state.live)

    def __iter__(self) -> Iterator[IndexedPack]:
        records = self._state.records[self._state.live]
        names = records["name"].tobytes().hex()
        for number, size in enumerate(records["size"].tolist()):
            yield IndexedPack(names[32 * number : 32 * number + 32], size)

    @overload
    def __getitem__(self, number: int) -> IndexedPack: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[IndexedPack]: ...
    def __getitem__(self, number: int | slice) -> IndexedPack | Sequence[IndexedPack]:
        if isinstance(number, slice):
            return [self._state.pack(int(record)) for record in self._state.live[number]]
        return self._state.pack(int(self._state.live[number]))


class Draft:
    """A state to which segments are being added. When it fails, the state is as it was."""

    def __init__(self, state: State, known: dict[bytes, int]) -> None:
        """`known` has the number of each record; if the draft is given up, it must be as well."""
        self._records = [state.records]
        self._held = dict(state.held)
        self._known = known
        self.tables = [(each.table, each.first) for each in state.tables]

    def take(self, name: str, segment: Segment) -> None:
        """Add a segment. Rows of packs that are known already are known too and left out."""
        rows = segment.rows
        records = np.zeros(len(segment.packs), PACK)
        for record, pack in zip(records, segment.packs, strict=True):
            record["name"], record["size"] = bytes.fromhex(pack.name), pack.size_bytes
        records["rows"] = np.bincount(rows["pack"], minlength=len(records))
        count = len(self._known)
        listed = np.array(
            [self._known.setdefault(record.tobytes(), len(self._known)) for record in records],
            np.int64,
        )
        _, fresh = np.unique(listed, return_index=True)
        fresh = fresh[listed[fresh] >= count]
        self._held[name] = listed
        self._records.append(records[fresh])
        new = np.zeros(len(records), np.bool_)
        new[fresh] = True
        rows = rows[new[rows["pack"]]]
        if len(rows):
            rows["pack"] = listed[rows["pack"]]
            self.tables.append((MemoryTable(rows), 0))
            self._join()

    def _join(self) -> None:
        """Few tables in memory, and each row moved a logarithmic number of times."""
        while len(self.tables) > 1:
            older, newer = self.tables[-2][0], self.tables[-1][0]
            if not isinstance(older, MemoryTable):
                return
            if len(older.buckets) >= 2 * len(newer.buckets):
                return
            both = [table.read(0, len(table.buckets)) for table in (older, newer)]
            self.tables[-2:] = [(MemoryTable(np.concatenate(both)), 0)]

    def memory_rows(self) -> int:
        """How many rows are held in memory."""
        return sum(len(table.buckets) for table, _ in self.tables if isinstance(table, MemoryTable))

    def state(self) -> State:
        """What has become of it."""
        return State(self.tables, np.concatenate(self._records), self._held)


def known_records(state: State) -> dict[bytes, int]:
    """The number of each record by its bytes."""
    data, size = state.records.tobytes(), PACK.itemsize
    return {data[at * size : (at + 1) * size]: at for at in range(len(state.records))}
