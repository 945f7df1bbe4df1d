"""Bounded walks over a parser's names: no loop, no endless depth, no stop at one bad directory."""

import os
from array import array
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from atoll.filesystems import rows
from atoll.filesystems.interface import Data, Entry, EntryKind, Fault, FindsNames, Placed, Volume
from atoll.filesystems.wire import MAX_TEXT_CHARACTERS, printable
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError

_MAX_DEPTH = 1000
_SMALL_XATTRS_BYTES = 8 << 10
_SMALL_PLACES = 4  # as many as an inode holds itself
_LEAST_NAME_BYTES = 12  # of a directory, for each name in it
_SORTED_BITS = 20
MAX_NAMES = 4_000_000
"""Of one directory that `children` lists."""


def find(volume: Volume, path: str) -> int:
    """The inode at an absolute path, following no symlink; NotFoundInPointError."""
    inode, so_far = volume.root, ""
    for part in os.fsencode(path).split(b"/"):
        if not part:
            continue
        if volume.entry(inode, so_far or "/").kind is not EntryKind.DIRECTORY:
            raise NotFoundInPointError(f"There is no {path}: {so_far or '/'} is not a directory.")
        number = _named(volume, inode, part)
        if number is None:
            raise NotFoundInPointError(f"There is no {path} in the restore point.")
        inode = number
        so_far += "/" + os.fsdecode(part)
    return inode


def _named(volume: Volume, directory: int, wanted: bytes) -> int | None:
    if isinstance(volume, FindsNames):
        return volume.find(directory, wanted)
    return next((number for name, number in volume.names(directory) if name == wanted), None)


def walk(volume: Volume, inode: int, path: str, deep: bool) -> Iterator[Entry | Fault]:
    """What is below a directory, parents first; damaged branches become Faults."""
    if volume.entry(inode, path).kind is not EntryKind.DIRECTORY:
        raise NotFoundInPointError(f"{path} is not a directory, so it has no listing.")
    seen = {inode}
    open_directories: list[Iterator[tuple[str, int]]] = []
    paths: list[str] = []

    def enter(number: int, where: str) -> Iterator[Fault]:
        try:
            # In the order of inodes: their table is then read once, front to back.
            names = sorted(volume.names(number), key=lambda pair: pair[1])
        except UnsupportedFormatError as error:
            yield Fault(where or "/", str(error))
        else:
            open_directories.append((os.fsdecode(name), child) for name, child in names)
            paths.append(where)

    yield from enter(inode, path.rstrip("/"))
    while open_directories:
        item = next(open_directories[-1], None)
        if item is None:
            open_directories.pop()
            paths.pop()
            continue
        name, number = item
        where = f"{paths[-1]}/{name}"
        if len(where) > MAX_TEXT_CHARACTERS:
            what = f"the path of {printable(name)} in it is longer than {MAX_TEXT_CHARACTERS}"
            yield Fault(paths[-1] or "/", f"{what} characters")
            continue
        try:
            entry = volume.entry(number, where)
        except UnsupportedFormatError as error:
            yield Fault(where, str(error))
            continue
        if entry.kind is EntryKind.DIRECTORY and deep:
            if number in seen:
                yield Fault(where, "this directory was already met: the file system has a loop")
                continue
            if len(open_directories) >= _MAX_DEPTH:
                yield Fault(where, f"directories are nested more than {_MAX_DEPTH} deep here")
                continue
            seen.add(number)
            yield entry
            yield from enter(number, where)
        else:
            yield entry


def detailed(volume: Volume, name: bytes, entry: Entry) -> bytes:
    """The row of an entry with its extended attributes and, of a file, its places, where these are small."""
    xattrs = places = None
    try:
        xattrs = volume.xattrs(entry.inode)
        if xattrs and sum(len(key) + len(value) for key, value in xattrs) > _SMALL_XATTRS_BYTES:
            xattrs = None
    except UnsupportedFormatError:
        pass  # who asks for what is missing is told why
    if entry.kind is EntryKind.FILE and entry.size:
        try:
            pieces = list(islice(volume.layout(entry.inode), _SMALL_PLACES + 1))
            known = [piece for piece in pieces if isinstance(piece, Placed)]
            if len(known) == len(pieces) <= _SMALL_PLACES:
                places = known
        except UnsupportedFormatError:
            pass
    return rows.pack(name, entry, xattrs, places)


def children(volume: Volume, inode: int) -> Iterator[bytes]:
    """The rows of what is in a directory, with details, in one pass.

    UnsupportedFormatError, perhaps after some rows, when the directory is damaged or absurdly large.
    """
    directory = volume.entry(inode, "/")
    if directory.kind is not EntryKind.DIRECTORY:
        raise NotFoundInPointError(f"Inode {inode} is not a directory, so it has no listing.")
    # Counted only where there can be so many; then before anything is done about each of them.
    if directory.size // _LEAST_NAME_BYTES > MAX_NAMES:
        count = sum(1 for _ in islice(volume.names(inode), MAX_NAMES + 1))
        if count > MAX_NAMES:
            raise UnsupportedFormatError(
                f"A directory (inode {inode}) has more than {MAX_NAMES} entries, which is more than"
                " are listed; restore the whole disk to get at them."
            )
    for name, number in _by_inode(volume.names(inode)):
        try:
            entry = volume.entry(number, "/")
        except UnsupportedFormatError:
            yield rows.pack_damaged(name)
        else:
            yield detailed(volume, name, entry)


def _by_inode(names: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """A million names at a time in the order of their inodes, whose table is then read front to back.

    Kept in arrays: as objects a million of them would take three times as much.
    """
    while True:
        text, ends, numbers = bytearray(), array("Q", [0]), array("Q")
        for name, number in islice(names, 1 << _SORTED_BITS):
            text += name
            ends.append(len(text))
            numbers.append(number)
        if not numbers:
            return
        for index in sorted(range(len(numbers)), key=numbers.__getitem__):
            yield bytes(text[ends[index] : ends[index + 1]]), numbers[index]


def export(volume: Volume, inode: int, path: str) -> Iterator[Entry | Data | Fault]:
    """A tree with attributes and content; content of a file with several names comes once."""
    top = volume.entry(inode, path)
    rest = walk(volume, inode, path, deep=True) if top.kind is EntryKind.DIRECTORY else iter(())
    sent: set[int] = set()
    yield from _one(volume, top, sent)
    for record in rest:
        if isinstance(record, Entry):
            yield from _one(volume, record, sent)
        else:
            yield record


def _one(volume: Volume, entry: Entry, sent: set[int]) -> Iterator[Entry | Data | Fault]:
    try:
        xattrs = volume.xattrs(entry.inode)
    except UnsupportedFormatError as error:
        yield replace(entry, xattrs=())
        yield Fault(entry.path, str(error), attributes_only=True)
    else:
        yield replace(entry, xattrs=xattrs)
    if entry.kind is not EntryKind.FILE or entry.inode in sent:
        return
    if entry.nlink > 1:
        sent.add(entry.inode)
    try:
        yield from volume.content(entry.inode)
    except UnsupportedFormatError as error:
        yield Fault(entry.path, str(error))
