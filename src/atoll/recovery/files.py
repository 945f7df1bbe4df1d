"""Looking into a VM's disks as the guest saw them, and bringing files back from them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from atoll.filesystems.interface import Data, Entry, EntryKind, Fault
from atoll.filesystems.session import FileSystemSession, open_filesystem
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.model.readers import BlockReader
from atoll.recovery.guest_mounts import (
    MAX_FSTAB_BYTES,
    GuestVolume,
    MountTable,
    find_volumes,
    mount_table,
)
from atoll.recovery.tree_writer import TreeWriter

_ADDRESS = re.compile(r"disk(\d+):part(\d+):(/.*)", re.DOTALL)
_MAX_SYMLINKS = 40  # as the kernel's own limit
_MAX_SESSIONS = 32  # each is a process, and a hostile table can list a thousand volumes


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


@dataclass(frozen=True, slots=True)
class _Place:
    """A path inside a volume. `prefix` is the mount point, "" for the root, or `disk1:part2:`."""

    volume: GuestVolume
    prefix: str
    inner: str

    @property
    def path(self) -> str:
        """How the user names this place."""
        return self.outer(self.inner)

    @property
    def addressed(self) -> bool:
        """Whether it was named by disk and partition, where no mounts apply."""
        return self.prefix.endswith(":")

    def outer(self, inner: str) -> str:
        """How the user names a path of the same volume."""
        if inner == "/" and self.prefix and not self.addressed:
            return self.prefix
        return self.prefix + inner


class FileBrowser:
    """The files of one VM at one instant; paths are the guest's own.

    `disks` are (label, reader) in the VM's order; the readers stay the
    caller's to close. File systems the guest mounts at boot appear where its
    /etc/fstab puts them; any volume can be addressed as `disk1:part2:/path`.
    Symlinks are followed inside a path, as in the guest. For one thread.
    Raises NotFoundInPointError, UnsupportedFormatError for volumes whose files
    cannot be read, and what the readers raise.
    """

    def __init__(self, disks: Sequence[tuple[str, BlockReader]]) -> None:
        self._sessions: dict[str, FileSystemSession] = {}
        self._stack = ExitStack()
        try:
            self.volumes: tuple[GuestVolume, ...] = tuple(find_volumes(disks))
            self.mounts: MountTable = mount_table(self.volumes, self._fstab)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        """Use as a context manager to be sure the parsers end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the parsers."""
        self.close()

    def close(self) -> None:
        """End the parsers. Closing twice is harmless."""
        self._stack.close()
        self._sessions.clear()

    def stat(self, path: str) -> Entry:
        """The entry at a path; a symlink at its end is not followed."""
        place = self._locate(path, follow=False)
        return replace(self._session(place.volume).stat(place.inner), path=place.path)

    def list(self, path: str = "/", recursive: bool = False) -> Iterator[Entry]:
        """What is in a directory, across mounts when recursive; see FileSystem.list."""
        place = self._locate(path, follow=True)
        mounted = [self._mount(point) for point in self._points_below(place)]
        # Asked before: one volume may be mounted twice, and a session lists or answers, not both.
        roots = {
            mount.path: self._root(mount)
            for mount in mounted
            if mount.volume.content.supported
            and (recursive or (mount.path.rpartition("/")[0] or "/") == place.path)
        }
        for entry in self._session(place.volume).list(place.inner, recursive):
            where = place.outer(entry.path)
            if where in roots:
                yield roots[where]
            elif not _below_any(where, mounted):
                yield replace(entry, path=where)
        for mount in mounted if recursive else ():
            shadows = [m for m in mounted if m.path.startswith(mount.path + "/")]
            with self._borrowed(mount.volume) as session:
                for entry in session.list("/", recursive):
                    where = mount.outer(entry.path)
                    if not _below_any(where, shadows):
                        yield replace(entry, path=where)

    def read(self, path: str) -> Iterator[Data]:
        """A file's content in ascending order, holes left out."""
        place = self._locate(path, follow=True)
        return self._session(place.volume).read(place.inner)

    def restore(
        self, path: str, target: Path, overwrite: bool = False, keep_privileges: bool = False
    ) -> RestoreReport:
        """Bring a file or a tree back into the directory `target`, under its own name.

        `/` puts everything into `target` itself. Owners, modes, times, links,
        holes, ACLs and attributes are kept as far as this machine lets us.
        Nothing shows under its name before it is whole; what exists is refused
        with RestoreTargetError unless `overwrite`, which replaces files one by
        one. What cannot be restored in a tree is left out and named in the
        report; a single file that cannot be restored raises UnsupportedFormatError.
        Files keep set-user-ID, set-group-ID and capabilities with
        `keep_privileges` alone: the guest chose them, and they count on this machine.
        """
        place = self._locate(path, follow=False)
        top = self._session(place.volume).stat(place.inner)
        name = place.path.rpartition("/")[2]
        mounted = [self._mount(point) for point in self._points_below(place)]
        with TreeWriter(target, keep_privileges) as writer:
            if not overwrite:
                writer.refuse_existing(name)
            self._export(place, name, mounted, writer)
            for mount in mounted:
                below = name + mount.path[len(place.path.rstrip("/")) :]
                shadows = [m for m in mounted if m.path.startswith(mount.path + "/")]
                if mount.volume.content.supported:
                    self._export(mount, below.strip("/"), shadows, writer)
                else:
                    writer.lose(f"{mount.path}: not restored. {mount.volume.refusal()}")
            for point, device in self.mounts.absent.items():
                if not place.addressed and f"{point}/".startswith(place.path.rstrip("/") + "/"):
                    writer.note(
                        f"{point}: the guest mounts {device} there, which no disk of this restore"
                        " point holds"
                    )
            writer.finish_file()
            if top.kind is not EntryKind.DIRECTORY and writer.restored == 0:
                raise UnsupportedFormatError(
                    f"{path} cannot be restored: {'; '.join(writer.not_kept)}."
                )
            writer.settle(overwrite)
            return RestoreReport(writer.files, writer.bytes, writer.missing, writer.not_kept)

    def _export(
        self, place: _Place, at: str, mounted: Sequence[_Place], writer: TreeWriter
    ) -> None:
        """Write one volume's part of a tree: what is at `place` goes to `at` in the target."""
        writer.begin_volume()
        shadows = {mount.path for mount in mounted if mount.volume.content.supported}
        base = len(place.inner.rstrip("/"))
        current: Entry | None = None
        writing = False
        unread: set[int] = set()
        late: list[tuple[str, Entry]] = []
        with self._borrowed(place.volume) as session:
            for record in session.export(place.inner):
                if isinstance(record, Data):
                    if writing:
                        writer.write(record.offset, record.content)
                    continue
                where = place.outer(record.path)
                hidden = where in shadows or _below_any(where, mounted)
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
                elif record.kind is EntryKind.FILE and record.inode in unread:
                    late.append((relative, record))
                elif relative:
                    # The target directory itself stands for the guest's root and stays as it is.
                    writing = writer.add(relative, record)
            self._export_late(place, session, late, writer)
        writer.finish_file()

    def _export_late(
        self,
        place: _Place,
        session: FileSystemSession,
        late: Sequence[tuple[str, Entry]],
        writer: TreeWriter,
    ) -> None:
        """Files whose content came with another name of theirs, one that a mount hides."""
        read: set[int] = set()
        for relative, entry in late:
            if not writer.add(relative, entry) or entry.inode in read:
                continue
            read.add(entry.inode)
            try:
                for offset, content in session.read(entry.path):
                    writer.write(offset, content)
            except UnsupportedFormatError as error:
                _lose(Fault(entry.path, str(error)), place.outer(entry.path), entry, writer)

    def _locate(self, path: str, follow: bool) -> _Place:
        """Where a path leads, symlinks before its end followed, and at its end if `follow`."""
        address = _ADDRESS.fullmatch(path)
        if address is not None:
            disk, number = int(address[1]), int(address[2])
            for volume in self.volumes:
                if (volume.disk, volume.partition.number) == (disk, number):
                    root = _Place(volume, f"{volume.address}:", "/")
                    return self._walk(root, path, address[3], follow)
            raise NotFoundInPointError(f"There is no disk{disk}:part{number}; {self._choices()}")
        if not path.startswith("/"):
            raise NotFoundInPointError(
                f"{path} is not a path of the guest: it must begin with / or, for a volume that is"
                " not mounted, with its address like disk1:part2:/."
            )
        if "/" not in self.mounts.volumes:
            raise NotFoundInPointError(
                f"No root file system was found on the disks, so {path} leads nowhere;"
                f" {self._choices()}"
            )
        return self._walk(None, path, path, follow)

    def _walk(self, root: _Place | None, path: str, inner: str, follow: bool) -> _Place:
        todo = [part for part in reversed(inner.split("/")) if part not in ("", ".")]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                del done[-1:]
                continue
            done.append(part)
            place = self._place(root, done)
            if (not todo and not follow) or place.inner == "/":
                continue
            try:
                entry = self._session(place.volume).stat(place.inner)
            except NotFoundInPointError:
                raise NotFoundInPointError(
                    f"There is no {place.path} in the restore point; list its directory to see"
                    " what there is."
                ) from None
            if entry.kind is EntryKind.SYMLINK:
                links += 1
                if links > _MAX_SYMLINKS:
                    raise NotFoundInPointError(f"{path} leads through a loop of symlinks.")
                target = entry.target or ""
                done = [] if target.startswith("/") else done[:-1]
                todo += [p for p in reversed(target.split("/")) if p not in ("", ".")]
        return self._place(root, done)

    def _place(self, root: _Place | None, parts: Sequence[str]) -> _Place:
        path = "/" + "/".join(parts)
        if root is not None:
            return replace(root, inner=path)
        owner = self.mounts.owner(path)
        if owner is None:
            raise NotFoundInPointError(f"Nothing is mounted at {path}; {self._choices()}")
        point, volume = owner
        prefix = point.rstrip("/")
        return _Place(volume, prefix, path[len(prefix) :] or "/")

    def _mount(self, point: str) -> _Place:
        return _Place(self.mounts.volumes[point], point, "/")

    def _points_below(self, place: _Place) -> Sequence[str]:
        return () if place.addressed else self.mounts.below(place.path)

    def _root(self, mount: _Place) -> Entry:
        with self._borrowed(mount.volume) as session:
            return replace(session.stat("/"), path=mount.path)

    def _session(self, volume: GuestVolume) -> FileSystemSession:
        """The volume's session, kept until the end."""
        if volume.address not in self._sessions:
            if len(self._sessions) >= _MAX_SESSIONS:
                raise UnsupportedFormatError(
                    f"{volume.address} was not opened: {_MAX_SESSIONS} volumes of this VM are open,"
                    " which is the most at once; look into this one with a command of its own."
                )
            session = _open(volume)
            self._stack.callback(session.close)
            self._sessions[volume.address] = session
        return self._sessions[volume.address]

    @contextmanager
    def _borrowed(self, volume: GuestVolume) -> Iterator[FileSystemSession]:
        """A session for one use: the kept one, or else one that ends with it.

        So a guest may have any number of mounts below a place.
        """
        if volume.address in self._sessions:
            yield self._sessions[volume.address]
        else:
            with _open(volume) as session:
                yield session

    def _fstab(self, volume: GuestVolume) -> bytes | None:
        try:
            # Every volume is asked, and most are never looked into again.
            with _open(volume) as session:
                entry = session.stat("/etc/fstab")
                if entry.kind is not EntryKind.FILE or entry.size > MAX_FSTAB_BYTES:
                    return None
                text = bytearray(entry.size)
                for offset, content in session.read("/etc/fstab"):
                    text[offset : offset + len(content)] = content
                return bytes(text)
        except (NotFoundInPointError, UnsupportedFormatError):
            # Not a root file system, or a damaged one; who asks for its files is told why.
            return None

    def _choices(self) -> str:
        known = ", ".join(f"{v.address}:/ ({v.content.kind})" for v in self.volumes)
        return f"the volumes are {known or 'none'}."


def _open(volume: GuestVolume) -> FileSystemSession:
    if not volume.content.supported:
        raise volume.refusal()
    return open_filesystem(volume.reader)


def _lose(fault: Fault, where: str, current: Entry | None, writer: TreeWriter) -> None:
    """Name what a Fault costs; `current` is the entry that came last."""
    if fault.attributes_only:
        writer.note(f"{where} (attributes): not restored. {fault.reason}")
    elif current is not None and current.kind is EntryKind.FILE and current.path == fault.path:
        writer.abandon_file()  # counts it, unless it is missing already
        writer.note(f"{where}: not restored. {fault.reason}")
    else:
        writer.lose(f"{where}: not restored. {fault.reason}")


def _below_any(path: str, mounts: Sequence[_Place]) -> bool:
    """Whether a mount hides the path."""
    return any(path.startswith(mount.path + "/") for mount in mounts)
