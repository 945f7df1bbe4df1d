"""Disks and guest volumes of the served VMs, open while they are used and a while longer."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from atoll.filesystems.rows import Row
from atoll.filesystems.session import (
    FileSystemSession,
    Limits,
    ParserEndedError,
    open_filesystem,
)
from atoll.filesystems.tree import MAX_NAMES
from atoll.guestfiles.browser import FileBrowser
from atoll.guestfiles.mounts import GuestVolume, MountTable
from atoll.island.answers import Answers
from atoll.island.layout import FileLayout
from atoll.island.listing import Listing
from atoll.island.pool import Pool
from atoll.island.served import ServedVm
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.model.extents import Extent
from atoll.model.readers import BlockReader

A = TypeVar("A")

_LIMITS = Limits(patience_seconds=20, entries=MAX_NAMES)
_LISTING_SECONDS = 600
_OPEN_DISKS = 64
_OPEN_GUESTS = 16
_OPEN_SESSIONS = 8  # each is a process
_MAX_STRIKES = 5
_MAX_HOLES = 200_000
_LISTINGS_BYTES = 256 << 20
_LAYOUTS_BYTES = 64 << 20
_ENTRIES_BYTES = 16 << 20
_ENTRY_BYTES = 768  # beside the row itself
_RECENT_LISTINGS = 32

VolumeKey = tuple[int, str]
"""A VM by its place in the run, and a volume's address, `disk1:part2`."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM's volumes by address, what it mounts where, and what to know of the volumes' journals."""

    volumes: dict[str, GuestVolume]
    mounts: MountTable
    stale: tuple[str, ...]
    close: Callable[[], None]


class _Parser:
    """A volume's session, for one question at a time."""

    def __init__(self, session: FileSystemSession, close: Callable[[], None]) -> None:
        self.session = session
        self.close = close
        self.lock = threading.Lock()


class Guests:
    """All that is open of the VMs of one mount. Thread-safe; close it when no read is left.

    Answers are by inode number and kept: a job that walks a tree asks a
    volume's parser once for each directory. Content never passes through it.
    Of an entry nothing is kept but what its directory's listing holds: who
    comes back to it by number is answered from there, or by the parser again.
    """

    def __init__(self, vms: Sequence[ServedVm]) -> None:
        self._vms = vms
        self._disks: Pool[tuple[int, int], BlockReader] = Pool(
            _OPEN_DISKS, self._open_disk, lambda reader: reader.close()
        )
        self._guests: Pool[int, Guest] = Pool(_OPEN_GUESTS, self._open_guest, lambda g: g.close())
        self._parsers: Pool[VolumeKey, _Parser] = Pool(
            _OPEN_SESSIONS, self._open_parser, lambda parser: parser.close()
        )
        self._listings: Answers[Listing] = Answers(_LISTINGS_BYTES, lambda a: a.weight_bytes)
        self._layouts: Answers[FileLayout] = Answers(_LAYOUTS_BYTES, lambda a: a.weight_bytes)
        self._entries: Answers[Row] = Answers(
            _ENTRIES_BYTES, lambda row: _ENTRY_BYTES + row.head.length
        )
        self._recent: dict[VolumeKey, OrderedDict[int, None]] = {}
        self._remembering = threading.Lock()
        self._holes: Answers[tuple[Extent, ...]] = Answers(
            _LAYOUTS_BYTES, lambda holes: 512 + 80 * len(holes)
        )
        self._given_up: dict[VolumeKey, tuple[int, UnsupportedFormatError]] = {}

    def close(self) -> None:
        """Close everything."""
        for pool in (self._parsers, self._guests, self._disks):
            pool.close()

    @property
    def open_parsers(self) -> int:
        """How many parser processes there may be now."""
        return len(self._parsers)

    @contextmanager
    def disk(self, vm: int, disk: int) -> Iterator[BlockReader]:
        """The reader of a disk, by its place in the VM, while the block lasts."""
        with self._disks.use((vm, disk)) as reader:
            yield reader

    def holes(self, vm: int, disk: int) -> tuple[Extent, ...]:
        """The holes of a disk that its reader knows, ascending; none where there are very many."""

        def find() -> tuple[Extent, ...]:
            with self.disk(vm, disk) as reader:
                found = tuple(islice(reader.holes(), _MAX_HOLES + 1))
            return found if len(found) <= _MAX_HOLES else ()

        return self._holes.get((vm, disk), find)

    @contextmanager
    def guest(self, vm: int) -> Iterator[Guest]:
        """A VM's volumes, open while the block lasts."""
        with self._guests.use(vm) as guest:
            yield guest

    def root(self, volume: VolumeKey, top: str = "/") -> Row:
        """The entry of a volume's root directory, or of another that is mounted instead."""

        def ask(session: FileSystemSession) -> Row:
            return session.node(session.stat(top).inode)

        return self._entries.get((volume, top), lambda: self._ask(volume, ask))

    def entry(self, volume: VolumeKey, inode: int) -> Row:
        """The entry of an inode that was met before."""

        def find() -> Row:
            for directory in self._recently(volume):
                listing = self._listings.peek((volume, directory))
                row = None if listing is None else listing.by_inode(inode)
                if row is not None:
                    return row.alone()
            return self._ask(volume, lambda session: session.node(inode))

        return self._entries.get((volume, inode), find)

    def listing(self, volume: VolumeKey, inode: int) -> Listing:
        """What is in a directory."""

        def ask(session: FileSystemSession) -> Listing:
            with closing(session.children(inode)) as rows:
                return Listing(_in_time(rows))

        listing = self._listings.get((volume, inode), lambda: self._ask(volume, ask))
        with self._remembering:
            recent = self._recent.setdefault(volume, OrderedDict())
            recent[inode] = None
            recent.move_to_end(inode)
            if len(recent) > _RECENT_LISTINGS:
                recent.popitem(last=False)
        return listing

    def _recently(self, volume: VolumeKey) -> list[int]:
        """Directories of a volume by inode number, the one last looked into first."""
        with self._remembering:
            return list(reversed(self._recent.get(volume, ())))

    def layout(self, volume: VolumeKey, entry: Row) -> FileLayout:
        """Where a file's content lies."""

        def ask(session: FileSystemSession) -> FileLayout:
            with closing(session.layout(entry.inode)) as pieces:
                return FileLayout(entry.size, pieces)

        places = entry.places
        if places is not None:
            return FileLayout(entry.size, places)
        return self._layouts.get((volume, entry.inode), lambda: self._ask(volume, ask))

    def xattrs(self, volume: VolumeKey, entry: Row) -> dict[str, bytes]:
        """Extended attributes of an entry."""
        known = entry.xattrs
        if known is not None:
            return dict(known)
        return self._ask(volume, lambda session: session.attributes(entry.inode))

    def read(self, volume: VolumeKey, entry: Row, offset: int, length: int) -> bytes:
        """Bytes of a file, straight from its volume."""
        layout = self.layout(volume, entry)
        with self.guest(volume[0]) as guest:
            return layout.read(guest.volumes[volume[1]].reader, offset, length)

    def _ask(self, volume: VolumeKey, question: Callable[[FileSystemSession], A]) -> A:
        """Ask a volume's parser; after five that had to be stopped the volume is given up."""
        self._check_given_up(volume)
        with self._parsers.use(volume) as parser, parser.lock:
            # Again: those that waited before this one may have had the parser stopped.
            self._check_given_up(volume)
            try:
                return self._put(volume, parser.session, question)
            except ParserEndedError:
                # Killed, perhaps, and for no fault of its own: another is asked once more.
                return self._put(volume, parser.session, question)

    def _put(
        self,
        volume: VolumeKey,
        session: FileSystemSession,
        question: Callable[[FileSystemSession], A],
    ) -> A:
        try:
            return question(session)
        except UnsupportedFormatError as error:
            if not session.running:
                strikes, _ = self._given_up.get(volume, (0, error))
                self._given_up[volume] = (strikes + 1, error)
            raise

    def _check_given_up(self, volume: VolumeKey) -> None:
        """UnsupportedFormatError when its parser had to be stopped too often."""
        strikes, last = self._given_up.get(volume, (0, None))
        if last is not None and strikes >= _MAX_STRIKES:
            raise last.with_traceback(None)

    def _open_disk(self, key: tuple[int, int]) -> BlockReader:
        vm, disk = key
        return self._vms[vm].disks[disk].open()

    def _open_guest(self, vm: int) -> Guest:
        with ExitStack() as stack:
            disks = [
                (disk.label, stack.enter_context(self.disk(vm, number)))
                for number, disk in enumerate(self._vms[vm].disks)
            ]
            with FileBrowser(disks) as browser:
                volumes = {volume.address: volume for volume in browser.volumes}
                stale = tuple(filter(None, map(browser.staleness, browser.volumes)))
                return Guest(volumes, browser.mounts, stale, stack.pop_all().close)

    def _open_parser(self, key: VolumeKey) -> _Parser:
        with ExitStack() as stack:
            guest = stack.enter_context(self.guest(key[0]))
            volume = guest.volumes.get(key[1])
            if volume is None:
                raise NotFoundInPointError(f"There is no {key[1]}.")
            if not volume.content.supported:
                raise volume.refusal()
            session = stack.enter_context(open_filesystem(volume.reader, _LIMITS))
            return _Parser(session, stack.pop_all().close)


def _in_time(rows: Iterator[Row]) -> Iterator[Row]:
    until = time.monotonic() + _LISTING_SECONDS
    for row in rows:
        yield row
        if time.monotonic() > until:
            raise UnsupportedFormatError(
                f"A directory took more than {_LISTING_SECONDS} s to list; restore the whole disk to"
                " get at what is in it."
            )
