"""A catalogue, open: its volumes, its pages, directories and single entries."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from atoll.catalogue.contents import (
    CatalogueVolume,
    PageInfo,
    unpack_firsts,
    unpack_head,
)
from atoll.catalogue.entries import CatalogueEntry, entry_of
from atoll.catalogue.pages import NamesPage, targets_of, unpack_stats
from atoll.catalogue.sorting import key_of
from atoll.filesystems.interface import EntryKind
from atoll.model.errors import (
    NotFoundInPointError,
    RepositoryDamagedError,
    UnsupportedFormatError,
)

_KEPT_PAGES = 64
_MAX_SYMLINKS = 40  # as the kernel's own limit


class Pieces(Protocol):
    """Where pieces of catalogues lie; each has a name that no other content has. Thread-safe."""

    def piece(self, name: bytes) -> bytes:
        """A piece's content; RepositoryDamagedError if it is not whole."""
        ...


class MemoryPieces:
    """Pieces of a catalogue that was made just now and is kept nowhere."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces: dict[bytes, bytes] = {}
        self.names: list[bytes] = []
        for piece in pieces:
            name = blake3(piece).digest()
            self._pieces[name] = piece
            self.names.append(name)

    def piece(self, name: bytes) -> bytes:
        """A piece's content."""
        return self._pieces[name]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a catalogue by the names of its two pieces."""

    info: PageInfo
    names: bytes
    stats: bytes


class Rows:
    """The entries of a page; what is not asked for is not read."""

    def __init__(self, catalogue: "Catalogue", page: Page) -> None:
        self._catalogue = catalogue
        self._page = page
        self._volume = page.info.volume

    @cached_property
    def names(self) -> NamesPage:
        """Directories and names."""
        return NamesPage.from_bytes(self._catalogue.pieces.piece(self._page.names))

    @cached_property
    def _stats(self) -> tuple[NDArray[np.void], list[bytes]]:
        stats, text = unpack_stats(self._catalogue.pieces.piece(self._page.stats))
        if len(stats) != len(self.names):
            raise RepositoryDamagedError(
                "Two pages of a file catalogue do not fit together; verify the repository."
            )
        return stats, targets_of(stats, text)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def stats(self) -> NDArray[np.void]:
        """The numbers; rows of STAT."""
        return self._stats[0]

    def raw(self, row: int) -> tuple[bytes, bytes]:
        """All numbers and the target of a row, to compare."""
        stats, targets = self._stats
        return stats[row].tobytes(), targets[row]

    def entry(self, row: int) -> CatalogueEntry:
        """A row as an entry."""
        stats, targets = self._stats
        inner = self.names.directory(row) + b"/" + self.names.name(row)
        path = inner.decode("utf-8", "surrogateescape")
        volume = self._catalogue.volumes[self._volume]
        shown = self._catalogue.shown(self._volume, path)
        return entry_of(shown, volume.address, path, stats[row], targets[row])


class Catalogue:
    """The catalogue of one VM at one instant."""

    def __init__(self, pieces: Pieces, names: Sequence[bytes]) -> None:
        """`names` are those of the catalogue's pieces, in order; RepositoryDamagedError."""
        self.pieces = pieces
        self._head = unpack_head(pieces.piece(names[-1]) if names else b"")
        if len(names) != 2 * self._head.pages + self._head.keys + 1:
            raise RepositoryDamagedError(
                "A file catalogue has not the pieces that it names; verify the repository."
            )
        self._names = names
        self.volumes: tuple[CatalogueVolume, ...] = self._head.volumes
        self.page_names: Sequence[bytes] = names[: 2 * self._head.pages : 2]
        """Of each page the name of the piece that has its names; quicker to have than the pages."""
        self._mounts = {
            point: (number, top)
            for number, volume in enumerate(self.volumes)
            for point, top in zip(volume.mounts, volume.tops, strict=True)
        }
        self._kept: OrderedDict[int, Rows] = OrderedDict()

    @cached_property
    def pages(self) -> list[Page]:
        """All pages in order."""
        count = self._head.pages
        keys = b"".join(map(self.pieces.piece, self._names[2 * count : -1]))
        firsts = unpack_firsts(self._head, keys)
        return [
            Page(info, self._names[2 * at], self._names[2 * at + 1])
            for at, info in enumerate(firsts)
        ]

    @cached_property
    def _firsts(self) -> list[tuple[int, bytes, bytes]]:
        """What pages are sorted by: volume, directory and name of the first entry."""
        return [
            (page.info.volume, key_of(page.info.directory), page.info.name) for page in self.pages
        ]

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return sum(volume.entries for volume in self.volumes)

    @property
    def mounts(self) -> dict[str, tuple[int, str]]:
        """Mount points, with the number of the volume there and the directory of it that is mounted."""
        return dict(self._mounts)

    def rows(self, page: int) -> Rows:
        """The rows of a page by its number; a few recent ones are kept."""
        if page not in self._kept:
            self._kept[page] = Rows(self, self.pages[page])
            if len(self._kept) > _KEPT_PAGES:
                self._kept.popitem(last=False)
        return self._kept[page]

    def shown(self, volume: int, inner: str) -> str:
        """How a user names a path of a volume: as the guest does, or by its address."""
        found = self.volumes[volume]
        for point, top in zip(found.mounts, found.tops, strict=True):
            if inner != (top or "/") and not inner.startswith(top + "/"):
                continue
            path = point.rstrip("/") + inner[len(top) :].rstrip("/") or "/"
            if self._owner(path) == point:
                return path
        return f"{found.address}:{inner}"

    def locate(self, path: str) -> tuple[int, str]:
        """The volume and the path in it that a user's path names, symlinks not followed."""
        for number, volume in enumerate(self.volumes):
            if path.startswith(f"{volume.address}:/"):
                return number, _clean(path[len(volume.address) + 1 :])
        if not path.startswith("/"):
            raise NotFoundInPointError(
                f"{path} is not a path of the guest: it must begin with / or, for a volume that is"
                " not mounted, with its address like disk1:part2:/."
            )
        path = _clean(path)
        point = self._owner(path)
        if point is None:
            known = ", ".join(f"{v.address}:/ ({v.kind})" for v in self.volumes) or "none"
            raise NotFoundInPointError(f"Nothing is mounted at {path}; the volumes are {known}.")
        volume_number, top = self._mounts[point]
        return volume_number, top + path[len(point.rstrip("/")) :].rstrip("/") or "/"

    def stat(self, path: str, *, follow: bool = False) -> CatalogueEntry:
        """The entry at a path; symlinks before its end are followed, at its end only if asked."""
        links = 0
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        base = ""
        if not path.startswith("/") and todo:
            base = todo.pop()  # an address
        done: list[str] = []
        entry = self._plain(base + "/")
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                continue
            done.append(part)
            entry = self._plain(base + "/" + "/".join(done))
            if entry.kind is EntryKind.SYMLINK and (todo or follow):
                links += 1
                if links > _MAX_SYMLINKS:
                    raise NotFoundInPointError(f"{path} leads through a loop of symlinks.")
                target = entry.target or ""
                done = [] if target.startswith("/") else done[:-1]
                todo += [p for p in reversed(target.split("/")) if p not in ("", ".")]
        return self._plain(base + "/" + "/".join(done)) if done else self._plain(base + "/")

    def list(self, path: str) -> list[CatalogueEntry]:
        """What is in a directory, by name; the roots of what is mounted there stand for mount points."""
        at = self.stat(path, follow=True)
        if at.kind is not EntryKind.DIRECTORY:
            raise NotFoundInPointError(f"{path} is not a directory, so it has no listing.")
        volume, inner = self.locate(at.path)
        directory = b"" if inner == "/" else inner.encode("utf-8", "surrogateescape")
        mounted = {point for point in self._mounts if point != "/"}
        found = []
        for rows, row in self._directory(volume, directory):
            entry = rows.entry(row)
            # By the place that was asked for: below a mount it would be named by its address.
            where = at.path.rstrip("/") + "/" + entry.name
            if where in mounted:
                entry = self._plain(where)
            found.append(entry)
        return found

    def _plain(self, path: str) -> CatalogueEntry:
        """The entry at a path as it stands."""
        volume, inner = self.locate(path)
        directory, _, name = inner.rpartition("/")
        found = self.look_up(volume, _encoded(directory), _encoded(name))
        if found is None:
            why = self.volumes[volume].fault
            if why and not self.volumes[volume].entries:
                raise UnsupportedFormatError(why)
            raise NotFoundInPointError(
                f"There is no {path} in the restore point; list its directory to see what there is."
            )
        return found

    def look_up(self, volume: int, directory: bytes, name: bytes) -> CatalogueEntry | None:
        """The entry of that name in that directory of a volume, None if there is none."""
        page = bisect_right(self._firsts, (volume, key_of(directory), name)) - 1
        if page < 0 or self.pages[page].info.volume != volume:
            return None
        rows = self.rows(page)
        for at, each in enumerate(rows.names.directories):
            if each == directory:
                first, end = rows.names.firsts[at : at + 2].tolist()
                start = int(rows.names.ends[first - 1]) + 1 if first else 0
                inside = rows.names.text[start : int(rows.names.ends[end - 1]) + 1].split(b"\0")
                if name in inside[:-1]:
                    return rows.entry(first + inside.index(name))
        return None

    def _directory(self, volume: int, directory: bytes) -> Iterator[tuple[Rows, int]]:
        key = key_of(directory)
        # The page in front may have it too, behind its first entry.
        page = max(bisect_right(self._firsts, (volume, key, b"")) - 1, 0)
        while page < len(self.pages) and self._firsts[page][:2] <= (volume, key):
            if self.pages[page].info.volume == volume:
                rows = self.rows(page)
                for at, each in enumerate(rows.names.directories):
                    if each == directory:
                        first, end = rows.names.firsts[at : at + 2].tolist()
                        yield from (
                            (rows, row) for row in range(first, end) if rows.names.name(row)
                        )
            page += 1

    def span(self, volume: int, directory: bytes) -> Sequence[int]:
        """The numbers of the pages that may hold what is below a directory."""
        key = key_of(directory)
        first = max(bisect_right(self._firsts, (volume, key, b"")) - 1, 0)
        end = bisect_right(self._firsts, (volume, key + b"\1", b""))
        if not key:
            first = bisect_right(self._firsts, (volume,)) if volume else 0
            end = bisect_right(self._firsts, (volume + 1,))
        return [page for page in range(first, end) if self.pages[page].info.volume == volume]

    def _owner(self, path: str) -> str | None:
        point = path
        while point not in self._mounts:
            if point == "/":
                return None
            point = point.rpartition("/")[0] or "/"
        return point


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _clean(path: str) -> str:
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
