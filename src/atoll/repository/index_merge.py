"""Several tables made one, in pieces, so that memory stays bounded however large they are."""

from collections.abc import Sequence

import numpy as np

from atoll.repository.index_file import TableFile
from atoll.repository.index_state import DEAD, Numbers, Placed
from atoll.repository.index_table import MIN_BITS

_PIECE_ROWS_BITS = 19
_GROWTH = 4
_DEAD_SHARE = 4


def first_to_merge(rows: Sequence[int], dead: Sequence[int]) -> int:
    """The first of some tables, the oldest first, that should become one with all after it.

    Afterwards each is at least four times as large as all after it, so there are few of them and each
    row is written a logarithmic number of times; and at most a quarter of any table is dead. The number
    of tables if none needs to.
    """
    later = sum(rows)
    for at, (count, gone) in enumerate(zip(rows, dead, strict=True)):
        later -= count
        if gone * _DEAD_SHARE > count or (later and count < _GROWTH * later):
            return at
    return len(rows)


def merge(tables: Sequence[Placed], renumbered: Numbers, out: TableFile) -> None:
    """Write the rows of all tables to one, with packs as `renumbered` has them, without the DEAD.

    Goes through the names by their first bits, about half a million rows at a time.
    """
    total = sum(each.rows for each in tables)
    bits = min(MIN_BITS, (total >> _PIECE_ROWS_BITS).bit_length())
    for part in range(2**bits):
        pieces = []
        for table, _, first in tables:
            start, end = (table.buckets.row_at(at, bits) for at in (part, part + 1))
            rows = table.read(start, end)
            packs = renumbered[rows["pack"].astype(np.int64) + first]
            living = packs != DEAD
            rows = rows[living]
            rows["pack"] = packs[living]
            pieces.append(rows)
        out.append(np.concatenate(pieces))
