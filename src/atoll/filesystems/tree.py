"""Bounded walks over a parser's names: no loop, no endless depth, no stop at one bad directory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from atoll.filesystems.interface import Data, Entry, EntryKind, Fault, Placed, Volume
from atoll.filesystems.wire import MAX_TEXT_CHARACTERS, printable
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError

_MAX_DEPTH = 1000
_SMALL_XATTRS_BYTES = 8 << 10
_SMALL_PLACES = 4  # as many as an inode holds itself


def find(volume: Volume, path: str) -> int:
    """The inode at an absolute path, following no symlink; NotFoundInPointError."""
    inode, so_far = volume.root, ""
    for part in os.fsencode(path).split(b"/"):
        if not part:
            continue
        if volume.entry(inode, so_far or "/").kind is not EntryKind.DIRECTORY:
            raise NotFoundInPointError(f"There is no {path}: {so_far or '/'} is not a directory.")
        for name, number in volume.names(inode):
            if name == part:
                inode = number
                break
        else:
            raise NotFoundInPointError(f"There is no {path} in the restore point.")
        so_far += "/" + os.fsdecode(part)
    return inode


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


def detailed(volume: Volume, entry: Entry) -> Entry:
    """The entry with its extended attributes and, of a file, its places, where these are small."""
    xattrs = places = None
    # Who asks for what is missing is told why.
    with suppress(UnsupportedFormatError):
        found = volume.xattrs(entry.inode)
        if sum(len(name) + len(value) for name, value in found) <= _SMALL_XATTRS_BYTES:
            xattrs = found
    if entry.kind is EntryKind.FILE:
        with suppress(UnsupportedFormatError):
            pieces = list(islice(volume.layout(entry.inode), _SMALL_PLACES + 1))
            known = tuple(piece for piece in pieces if isinstance(piece, Placed))
            if len(known) == len(pieces) <= _SMALL_PLACES:
                places = known
    return replace(entry, xattrs=xattrs, places=places)


def children(volume: Volume, inode: int) -> Iterator[Entry | Fault]:
    """What is in a directory, with details, in one pass."""
    for record in walk(volume, inode, "/", deep=False):
        yield detailed(volume, record) if isinstance(record, Entry) else record


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
