"""From tables of inodes and names, which come in any order, to entries sorted by directory and name.

Entries are sorted by the directory's path, the slashes in it counting as lower than any other byte, so
that all that is below a directory lies together, and then by name. What no path leads to is left out.
Some hundred bytes of memory are needed for each name.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atoll.catalogue.entries import STAT
from atoll.filesystems.interface import Fault
from atoll.filesystems.tables import DIRECTORY, INODE, InodeTable, NameTable

Numbers = NDArray[np.int64]
_MAX_DEPTH = 1000
_MAX_PATH_BYTES = 8192
_MAX_PATHS_BYTES = 512 << 20
_PREFIX = 8
_SPREAD = 16


@dataclass(frozen=True)
class Sorted:
    """Entries in order. `directory` numbers that of each in `directories`, which are sorted.

    The names are `text[starts[i]:][:lengths[i]]`, the symlinks' texts `targets[target_starts[i]:]` with
    the lengths that `stats` gives. The first entry is the root itself, with an empty name.
    """

    stats: NDArray[np.void]
    directories: list[bytes]
    directory: Numbers
    text: NDArray[np.uint8]
    starts: Numbers
    lengths: Numbers
    targets: bytes
    target_starts: Numbers
    faults: list[tuple[bytes, str]]


def sort_tables(tables: Iterable[InodeTable | NameTable | Fault], root: int) -> Sorted:
    """Take in all tables of a file system whose root has that inode; see `Sorted`."""
    rows, targets, parents, inodes, lengths, texts, found = _gathered(tables, root)
    ids = rows["inode"].astype(np.int64)
    target_starts = np.cumsum(rows["target"], dtype=np.int64) - rows["target"]
    if len(ids) and np.any(np.diff(ids) <= 0):
        ids, first = np.unique(ids, return_index=True)  # what is there twice counts once
        rows, target_starts = rows[first], target_starts[first]
    # A last row stands for all inodes that are in no table.
    rows = np.concatenate([rows, np.zeros(1, INODE)])
    target_starts = np.append(target_starts, 0)
    at = _positions(ids, inodes)
    starts = np.cumsum(lengths) - lengths
    text = np.frombuffer(b"".join(texts), np.uint8)
    is_directory = rows["kind"][at] == DIRECTORY
    is_directory[0] = False  # the root's own row
    paths, faults = _paths(
        parents, inodes, starts, lengths, text, np.flatnonzero(is_directory), root
    )
    for number, reason in found:
        if number in paths:
            faults.append((shown(paths[number]), reason))
        elif number == 0:
            faults.append((b"/", reason))
    numbers = sorted(paths, key=paths.__getitem__)
    by_id = np.array(sorted(paths), np.int64)
    rank_by_id = np.empty(len(numbers), np.int64)
    rank_by_id[np.searchsorted(by_id, np.array(numbers, np.int64))] = np.arange(len(numbers))
    rank = np.append(rank_by_id, -1)[_positions(by_id, parents)]
    reached = np.flatnonzero(rank >= 0)
    order = reached[_order(rank[reached], starts[reached], lengths[reached], text)]
    stats = np.zeros(len(order), STAT)
    source = at[order]
    picked = rows[source]
    for name in STAT.names or ():
        stats[name] = picked[name]
    return Sorted(
        stats=stats,
        directories=[shown(paths[number]) for number in numbers],
        directory=rank[order],
        text=text,
        starts=starts[order],
        lengths=lengths[order],
        targets=targets,
        target_starts=target_starts[source],
        faults=faults,
    )


def _positions(ids: Numbers, wanted: Numbers) -> Numbers:
    """Where in `ids`, which ascend, each number is; their count for what is not among them."""
    count = len(ids)
    if count and ids[0] >= 0 and ids[-1] < _SPREAD * (count + 1024):
        table = np.full(
            int(ids[-1]) + 2, count, np.int32
        )  # the last is of whatever is out of range
        table[ids] = np.arange(count)
        inside = (wanted >= 0) & (wanted <= ids[-1])
        return table[np.where(inside, wanted, ids[-1] + 1)].astype(np.int64)
    at = np.searchsorted(ids, wanted)
    known = np.append(ids, 0)[at] == wanted
    return np.where(known & (at < count), at, count)


def shown(key: bytes) -> bytes:
    """The path of a sorting key; a volume's root is empty."""
    return key.replace(b"\0", b"/")


def key_of(path: bytes) -> bytes:
    """What a directory's path sorts by: a slash is lower than any byte of a name."""
    return path.replace(b"/", b"\0")


def _gathered(
    tables: Iterable[InodeTable | NameTable | Fault], root: int
) -> tuple[NDArray[np.void], bytes, Numbers, Numbers, Numbers, list[bytes], list[tuple[int, str]]]:
    inodes: list[InodeTable] = []
    names: list[NameTable] = []
    faults: list[tuple[int, str]] = []
    for table in tables:
        match table:
            case InodeTable():
                inodes.append(table)
            case NameTable():
                names.append(table)
            case Fault():
                number = table.path
                faults.append(
                    (int(number) if number.isascii() and number.isdigit() else 0, table.reason)
                )
    rows = np.concatenate([table.rows for table in inodes]) if inodes else np.zeros(0, INODE)
    # The root is in no directory; it gets a row of its own in itself, without a name.
    first = np.array([root], np.int64)
    parents = np.concatenate([first, *(table.parents.astype(np.int64) for table in names)])
    numbers = np.concatenate([first, *(table.inodes.astype(np.int64) for table in names)])
    lengths = np.concatenate(
        [np.zeros(1, np.int64), *(table.lengths.astype(np.int64) for table in names)]
    )
    targets = b"".join(table.targets for table in inodes)
    return rows, targets, parents, numbers, lengths, [table.text for table in names], faults


def _paths(
    parents: Numbers,
    inodes: Numbers,
    starts: Numbers,
    lengths: Numbers,
    text: NDArray[np.uint8],
    edges: Numbers,
    root: int,
) -> tuple[dict[int, bytes], list[tuple[bytes, str]]]:
    """The sorting keys of all directories that can be reached, by inode, and what was not followed."""
    edges = edges[np.argsort(parents[edges], kind="stable")]
    owners = parents[edges]
    children = inodes[edges].tolist()
    # Numbers of 64 bits that are negative here are no inode's that any file system has.
    bounds = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
    ends = [*bounds[1:], len(edges)][: len(bounds)]
    where = dict(zip(owners[bounds].tolist(), zip(bounds, ends, strict=True), strict=True))
    names = [
        text[start : start + length].tobytes()
        for start, length in zip(starts[edges].tolist(), lengths[edges].tolist(), strict=True)
    ]
    paths = {root: b""}
    faults: list[tuple[bytes, str]] = []
    level, depth, total = [root], 0, 0
    while level:
        below: list[int] = []
        depth += 1
        for number in level:
            path = paths[number]
            for at in range(*where.get(number, (0, 0))):
                child = children[at]
                key = path + b"\0" + names[at]
                total += len(key)
                why = ""
                if child in paths:
                    why = "this directory was already met: the file system has a loop"
                elif depth > _MAX_DEPTH or len(key) > _MAX_PATH_BYTES:
                    why = "directories are nested too deep here"
                elif total > _MAX_PATHS_BYTES:
                    why = "the directories have too long paths together"
                if why:
                    faults.append((shown(key), why))
                else:
                    paths[child] = key
                    below.append(child)
        level = below
    return paths, faults


def _order(rank: Numbers, starts: Numbers, lengths: Numbers, text: NDArray[np.uint8]) -> Numbers:
    """Sort by rank, then name: eight bytes of the names at a time, only where they are alike so far."""
    order = np.arange(len(rank))
    group = rank
    todo = np.arange(len(rank))
    offset = 0
    while len(todo):
        chosen = order[todo]
        prefix = _prefixes(starts[chosen], lengths[chosen], text, offset)
        sub = np.lexsort((prefix, group[todo]))
        order[todo] = chosen[sub]
        prefix, groups = prefix[sub], group[todo][sub]
        offset += _PREFIX
        alike = np.zeros(len(todo) + 1, np.bool_)
        alike[1:-1] = (prefix[1:] == prefix[:-1]) & (groups[1:] == groups[:-1])
        alike[1:-1] &= (prefix[1:] & np.uint64(0xFF)) != 0  # else both have ended
        tied = alike[:-1] | alike[1:]
        group = group.copy()
        group[todo] = np.cumsum(~alike[:-1])
        todo = todo[tied]
    return order


def _prefixes(
    starts: Numbers, lengths: Numbers, text: NDArray[np.uint8], offset: int
) -> NDArray[np.uint64]:
    """Eight bytes of each name from `offset`, as numbers that sort as they do; zeros behind the end."""
    found = np.zeros(len(starts), np.uint64)
    last = max(len(text) - 1, 0)
    for byte in range(_PREFIX):
        at = offset + byte
        there = lengths > at
        found <<= np.uint64(8)
        if there.any():
            found |= np.where(there, text[np.minimum(starts + at, last)], 0).astype(np.uint64)
    return found
