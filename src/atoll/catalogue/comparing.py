"""What changed between two catalogues: only pages that they do not share are read."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from atoll.catalogue.catalogue import Catalogue, Page, Rows
from atoll.catalogue.entries import CatalogueEntry
from atoll.catalogue.sorting import key_of
from atoll.filesystems.interface import EntryKind

_CONTENT = ("kind", "size", "mtime_ns", "target")
_OF_DIRECTORIES = ("kind", "mode", "uid", "gid")
_FIELDS = ("kind", "size", "mtime_ns", "target", "mode", "uid", "gid", "nlink", "inode", "ctime_ns")


class ChangeKind(StrEnum):
    """What happened to a name."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """A name that differs. `fields` are those of CatalogueEntry that do, empty but for CHANGED.

    Directories whose times alone differ are left out: what is in them says why.
    """

    kind: ChangeKind
    before: CatalogueEntry | None
    after: CatalogueEntry | None
    fields: tuple[str, ...] = ()

    @property
    def entry(self) -> CatalogueEntry:
        """The newer side, or the older of what is gone."""
        entry = self.after or self.before
        assert entry is not None
        return entry

    @property
    def content(self) -> bool:
        """Whether what is in it may have changed, and not only who may use it."""
        return self.kind is not ChangeKind.CHANGED or bool(set(self.fields) & set(_CONTENT))


_Key = tuple[bytes, bytes]
_Item = tuple[_Key, Rows, int]


def compare(older: Catalogue, newer: Catalogue, path: str = "/") -> Iterator[Change]:
    """What differs at and below a path: volume by volume, in the order of directories and names.

    A volume is the same if it has the same address. Below a mount point lies the volume there.
    """
    volume, inner = newer.locate(path)
    chosen = [(newer.volumes[volume].address, inner)]
    if inner != "/":
        yield from _single(older, newer, chosen[0][0], inner)
    if path == "/":
        chosen = [(one.address, "/") for one in newer.volumes]
        known = {address for address, _ in chosen}
        chosen += [(one.address, "/") for one in older.volumes if one.address not in known]
    else:
        prefix = path.rstrip("/") + "/"
        chosen += [
            (newer.volumes[number].address, top or "/")
            for point, (number, top) in sorted(newer.mounts.items())
            if point.startswith(prefix)
        ]
    for address, below in chosen:
        yield from _volume(older, newer, address, below)


def _single(older: Catalogue, newer: Catalogue, address: str, inner: str) -> Iterator[Change]:
    """The change of one entry, which is looked up by its path in its volume."""
    before, after = _entry(older, address, inner), _entry(newer, address, inner)
    if before is not None and after is not None:
        if before != after:
            yield from _changed(before, after)
    elif after is not None:
        yield Change(ChangeKind.ADDED, None, after)
    elif before is not None:
        yield Change(ChangeKind.REMOVED, before, None)


def _entry(catalogue: Catalogue, address: str, inner: str) -> CatalogueEntry | None:
    directory, _, name = inner.encode("utf-8", "surrogateescape").rpartition(b"/")
    for number, volume in enumerate(catalogue.volumes):
        if volume.address == address:
            return catalogue.look_up(number, directory, name)
    return None


def _volume(older: Catalogue, newer: Catalogue, address: str, below: str) -> Iterator[Change]:
    directory = b"" if below == "/" else below.encode("utf-8", "surrogateescape")
    before, after = _pages(older, address, directory), _pages(newer, address, directory)
    shared = {(page.names, page.stats) for page in before}
    shared &= {(page.names, page.stats) for page in after}
    left, right = _rows(older, before, shared, directory), _rows(newer, after, shared, directory)
    old, new = next(left, None), next(right, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old[0] < new[0]):
            assert old is not None
            yield Change(ChangeKind.REMOVED, old[1].entry(old[2]), None)
            old = next(left, None)
        elif old is None or new[0] < old[0]:
            yield Change(ChangeKind.ADDED, None, new[1].entry(new[2]))
            new = next(right, None)
        else:
            if old[1].raw(old[2]) != new[1].raw(new[2]):
                yield from _changed(old[1].entry(old[2]), new[1].entry(new[2]))
            old, new = next(left, None), next(right, None)


def _changed(before: CatalogueEntry, after: CatalogueEntry) -> Iterator[Change]:
    directories = before.kind is after.kind is EntryKind.DIRECTORY
    fields = tuple(
        name
        for name in (_OF_DIRECTORIES if directories else _FIELDS)
        if getattr(before, name) != getattr(after, name)
    )
    if fields:
        yield Change(ChangeKind.CHANGED, before, after, fields)


def _pages(catalogue: Catalogue, address: str, directory: bytes) -> list[Page]:
    for number, volume in enumerate(catalogue.volumes):
        if volume.address == address:
            return [catalogue.pages[page] for page in catalogue.span(number, directory)]
    return []


def _rows(
    catalogue: Catalogue, pages: list[Page], shared: set[tuple[bytes, bytes]], directory: bytes
) -> Iterator[_Item]:
    """Rows of pages that are not shared, below a directory, by their keys."""
    for page in pages:
        if (page.names, page.stats) in shared:
            continue
        rows = Rows(catalogue, page)
        for row, (place, own) in enumerate(rows.names.rows()):
            if own and (place == directory or place.startswith(directory + b"/")):
                yield (key_of(place), own), rows, row
