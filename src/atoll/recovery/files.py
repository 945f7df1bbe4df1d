"""Bringing files back from a VM's disks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from atoll.filesystems.interface import Data, Entry, EntryKind, Fault
from atoll.filesystems.session import FileSystemSession
from atoll.guestfiles.browser import FileBrowser, Place, below_any
from atoll.model.errors import UnsupportedFormatError
from atoll.recovery.archives import ArchiveWriter
from atoll.recovery.tree_writer import TreeWriter


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore brought back.

    `files` counts regular files, `bytes` what was written into them (holes not
    counted), `not_kept` has one line for each thing that is not as it was.
    `missing` counts what was asked for and is not there, or not with its
    content: damaged places, what the target refused, and each mounted volume
    that cannot be read. Lost attributes and device nodes are not among them.
    """

    files: int
    bytes: int
    missing: int
    not_kept: list[str]


def restore_files(
    browser: FileBrowser,
    path: str,
    target: Path,
    overwrite: bool = False,
    keep_privileges: bool = False,
    keep_both: bool = False,
) -> RestoreReport:
    """Bring a file or a tree back into the directory `target`, under its own name.

    `/` puts everything into `target` itself. Owners, modes, times, links,
    holes, ACLs and attributes are kept as far as this machine lets us.
    Nothing shows under its name before it is whole; what exists is refused
    with RestoreTargetError unless `overwrite`, which replaces files one by
    one, or `keep_both`, which gives the restored one another name. What cannot
    be restored in a tree is left out and named in the report; a single file that
    cannot be restored raises UnsupportedFormatError.
    Files keep set-user-ID, set-group-ID and capabilities with
    `keep_privileges` alone: the guest chose them, and they count on this machine.
    """
    source = _Source.of(browser, path)
    with TreeWriter(target, keep_privileges) as writer:
        if not overwrite and not keep_both:
            writer.refuse_existing(source.name)
        _bring(source, writer)
        writer.settle(overwrite, keep_both)
        return RestoreReport(writer.files, writer.bytes, writer.missing, writer.not_kept)


def archive_files(browser: FileBrowser, path: str, writer: ArchiveWriter) -> RestoreReport:
    """Bring a file or a tree back into an archive, which is written as it goes.

    Names are as `restore_files` makes them. What cannot be read is counted and named in the report,
    too; a file whose content is damaged is in the archive with zeros in the place of what is lost.
    """
    _bring(_Source.of(browser, path), writer)
    writer.end()
    return RestoreReport(writer.files, writer.bytes, writer.missing, writer.not_kept)


class _Writer(Protocol):
    """Where files go: a directory of this machine, or an archive."""

    links: bool
    """Whether it can hold hard links; else each name of a file brings its content."""

    @property
    def restored(self) -> int: ...
    @property
    def not_kept(self) -> list[str]: ...
    def begin_volume(self) -> None: ...
    def add(self, path: str, entry: Entry) -> bool: ...
    def write(self, offset: int, content: bytes) -> None: ...
    def finish_file(self) -> None: ...
    def abandon_file(self) -> None: ...
    def note(self, text: str, once: bool = False) -> None: ...
    def lose(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Source:
    """What is to be brought back: `name` it gets, `top` what it is."""

    browser: FileBrowser
    path: str
    place: Place
    name: str
    top: Entry

    @classmethod
    def of(cls, browser: FileBrowser, path: str) -> Self:
        place = browser.locate(path, follow=False)
        top = browser.session(place.volume).stat(place.inner)
        return cls(browser, path, place, place.path.rpartition("/")[2], top)


def _bring(source: _Source, writer: _Writer) -> None:
    """Give everything to the writer, and tell it what is missing."""
    browser, place, name = source.browser, source.place, source.name
    mounted = browser.mounted_below(place)
    _export(browser, place, name, mounted, writer)
    for mount in mounted:
        below = name + mount.path[len(place.path.rstrip("/")) :]
        shadows = [m for m in mounted if m.path.startswith(mount.path + "/")]
        if mount.volume.content.supported:
            _export(browser, mount, below.strip("/"), shadows, writer)
        else:
            writer.lose(f"{mount.path}: not restored. {mount.volume.refusal()}")
    for point, device in browser.mounts.absent.items():
        if not place.addressed and f"{point}/".startswith(place.path.rstrip("/") + "/"):
            writer.note(
                f"{point}: the guest mounts {device} there, which no disk of this restore"
                " point holds"
            )
    writer.finish_file()
    if source.top.kind is not EntryKind.DIRECTORY and writer.restored == 0:
        raise UnsupportedFormatError(
            f"{source.path} cannot be restored: {'; '.join(writer.not_kept)}."
        )


def _export(
    browser: FileBrowser, place: Place, at: str, mounted: Sequence[Place], writer: _Writer
) -> None:
    """Write one volume's part of a tree: what is at `place` goes to `at` in the target."""
    writer.begin_volume()
    if stale := browser.staleness(place.volume):
        writer.note(f"{stale}.", True)
    shadows = {mount.path for mount in mounted if mount.volume.content.supported}
    base = len(place.inner.rstrip("/"))
    current: Entry | None = None
    writing = False
    unread: set[int] = set()
    brought: set[int] = set()
    late: list[tuple[str, Entry]] = []
    with browser.borrowed(place.volume) as session:
        for record in session.export(place.inner):
            if isinstance(record, Data):
                if writing:
                    writer.write(record.offset, record.content)
                continue
            where = place.outer(record.path)
            hidden = where in shadows or below_any(where, mounted)
            if isinstance(record, Fault):
                if not hidden:
                    _lose(record, where, current, writer)
                continue
            writer.finish_file()
            current, writing = record, False
            relative = (at + record.path[base:]).strip("/")
            if hidden:
                if record.kind is EntryKind.FILE and record.nlink > 1:
                    unread.add(record.inode)
            elif record.kind is EntryKind.FILE and (
                record.inode in unread or record.inode in brought
            ):
                late.append((relative, record))
            elif relative:
                if not writer.links and record.kind is EntryKind.FILE and record.nlink > 1:
                    brought.add(record.inode)
                # The target directory itself stands for the guest's root and stays as it is.
                writing = writer.add(relative, record)
        _export_late(place, session, late, writer)
    writer.finish_file()


def _export_late(
    place: Place,
    session: FileSystemSession,
    late: Sequence[tuple[str, Entry]],
    writer: _Writer,
) -> None:
    """Files whose content came with another name of theirs: hidden by a mount, or not to be linked."""
    read: set[int] = set()
    for relative, entry in late:
        if not writer.add(relative, entry) or (writer.links and entry.inode in read):
            continue
        read.add(entry.inode)
        try:
            for offset, content in session.read(entry.path):
                writer.write(offset, content)
        except UnsupportedFormatError as error:
            _lose(Fault(entry.path, str(error)), place.outer(entry.path), entry, writer)


def _lose(fault: Fault, where: str, current: Entry | None, writer: _Writer) -> None:
    """Name what a Fault costs; `current` is the entry that came last."""
    if fault.attributes_only:
        writer.note(f"{where} (attributes): not restored. {fault.reason}")
    elif current is not None and current.kind is EntryKind.FILE and current.path == fault.path:
        writer.abandon_file()  # counts it, unless it is missing already
        writer.note(f"{where}: not restored. {fault.reason}")
    else:
        writer.lose(f"{where}: not restored. {fault.reason}")
