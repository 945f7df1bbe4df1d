"""Rows of a directory: in the order of inodes, however many, damaged names among them."""

from collections.abc import Iterator
from itertools import count

import pytest

from atoll.filesystems import tree
from atoll.filesystems.interface import Data, Entry, EntryKind, Journal, Placed
from atoll.filesystems.rows import Row, checked
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError

DIRECTORY = 2
GONE = 17


class Volume:
    """A directory with these names, whose entry says that it has `size` bytes."""

    kind, label, uuid = "ext4", "", ""
    journal: Journal = "clean"
    root = DIRECTORY

    def __init__(self, names: Iterator[tuple[bytes, int]], size: int = 4096) -> None:
        self._names = names
        self._size = size

    def entry(self, inode: int, path: str) -> Entry:
        if inode == GONE:
            raise UnsupportedFormatError("not in use")
        kind = EntryKind.DIRECTORY if inode == DIRECTORY else EntryKind.FILE
        return Entry(path, kind, self._size, 0o644, 0, 0, -1, 0, 0, 1, inode)

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        return self._names

    def content(self, inode: int) -> Iterator[Data]:
        raise UnsupportedFormatError("not asked for")

    def layout(self, inode: int) -> Iterator[Placed | Data]:
        return iter([Placed(0, 1, inode)] if inode % 2 else [Data(0, b"x")])

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        return (("user.large", bytes(9000)),) if inode % 3 else (("user.a", b"v"),)


def rows(volume: Volume) -> list[Row]:
    payload = b"".join(tree.children(volume, DIRECTORY))
    return list(checked(payload, 1 << 30, named=True))


def test_rows_come_by_inode_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_SORTED_BITS", 3)
    names = [(b"n%d" % n, 100 - n) for n in range(20)]
    found = rows(Volume(iter(names)))
    windows = [sorted(names[at : at + 8], key=lambda pair: pair[1]) for at in (0, 8, 16)]
    assert [(row.name, row.inode) for row in found] == [pair for each in windows for pair in each]
    for row in found:
        assert row.places == (((0, 1, row.inode),) if row.inode % 2 else None)
        assert row.xattrs == (None if row.inode % 3 else (("user.a", b"v"),))
        assert (row.head.mtime, row.head.mtime_nanos) == (-1, 999_999_999)


def test_a_damaged_name_keeps_its_place() -> None:
    found = rows(Volume(iter([(b"a", 16), (b"gone", GONE), (b"b", 18)])))
    assert [(row.name, row.kind) for row in found] == [
        (b"a", "file"),
        (b"gone", None),
        (b"b", "file"),
    ]


def test_an_absurd_directory_is_refused_before_it_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree, "MAX_NAMES", 1000)
    endless = ((b"n%d" % n, 100 + n) for n in count())
    listing = tree.children(Volume(endless, 12 * 1001), DIRECTORY)
    with pytest.raises(UnsupportedFormatError, match="more than 1000 entries"):
        next(listing)


def test_a_file_has_no_rows() -> None:
    with pytest.raises(NotFoundInPointError, match="not a directory"):
        list(tree.children(Volume(iter([])), 12))
