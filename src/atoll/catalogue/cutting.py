"""Where one page of a catalogue ends and the next begins: where names say so.

So an entry that comes or goes changes the page it is in, and no other. Not part of the format: any cut
can be read. But points share pages only where they were cut alike, so this does not change lightly.
"""

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from atoll.catalogue.sorting import Sorted

LEAST_ROWS, MOST_ROWS = 256, 4096
_MASK = np.uint64(1023)
_MOST_BYTES = 512 << 10
_SLICE = 1 << 16
_LONGEST_NAME = 1024
_MULTIPLIER = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xD6E8FEB86659FD93)
with np.errstate(over="ignore"):
    _POWERS = np.cumprod(np.full(_LONGEST_NAME, _MULTIPLIER, np.uint64))


def page_bounds(entries: Sorted) -> Iterator[tuple[int, int]]:
    """First row and end of each page."""
    count = len(entries.stats)
    candidates = np.concatenate([*_candidates(entries), [count]])
    sizes = _sizes(entries)
    first = 0
    while first < count:
        at = int(np.searchsorted(candidates, min(first + LEAST_ROWS, count)))
        end = min(int(candidates[at]), first + MOST_ROWS)
        limit = (sizes[first - 1] if first else 0) + _MOST_BYTES
        end = max(min(end, int(np.searchsorted(sizes, limit, side="right"))), first + 1)
        yield first, end
        first = end


def _sizes(entries: Sorted) -> NDArray[np.int64]:
    """Bytes of names and directories' paths as far as each entry."""
    paths = np.array([len(path) for path in entries.directories], np.int64)
    begins = np.diff(entries.directory, prepend=-1) != 0
    return np.cumsum(entries.lengths + 1 + np.where(begins, paths[entries.directory] + 5, 0))


def _candidates(entries: Sorted) -> Iterator[NDArray[np.int64]]:
    """Rows that may begin a page: by a hash of name and directory, so always the same ones."""
    of_directory = np.array([zlib.crc32(path) for path in entries.directories], np.uint64)
    for first in range(0, len(entries.stats), _SLICE):
        part = slice(first, first + _SLICE)
        lengths = entries.lengths[part]
        before = np.cumsum(lengths) - lengths
        inside = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
        letters = entries.text[np.repeat(entries.starts[part], lengths) + inside]
        terms = (letters.astype(np.uint64) + np.uint64(1)) * _POWERS[inside]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        found = sums[before + lengths] - sums[before]
        found ^= of_directory[entries.directory[part]] * np.uint64(_MULTIPLIER)
        found ^= found >> np.uint64(32)
        found *= _MIX
        found ^= found >> np.uint64(32)
        yield first + np.flatnonzero((found & _MASK) == 0)
