"""Looking into a VM's disks as the guest saw them, and bringing files back from them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore brought back.

    `files` counts regular files, `bytes` what was written into them (holes not
    counted), `not_kept` has one line for each thing that is not as it was.
    """

    files: int
    bytes: int
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
        roots = {m.path: m for m in mounted if m.volume.content.supported}
        for entry in self._session(place.volume).list(place.inner, recursive):
            where = place.outer(entry.path)
            if where in roots:
                root = self._session(roots[where].volume).stat("/")
                yield replace(root, path=where)
            elif not _below_any(where, mounted):
                yield replace(entry, path=where)
        for mount in mounted if recursive else ():
            shadows = [m for m in mounted if m.path.startswith(mount.path + "/")]
            for entry in self._session(mount.volume).list("/", recursive):
                where = mount.outer(entry.path)
                if not _below_any(where, shadows):
                    yield replace(entry, path=where)

    def read(self, path: str) -> Iterator[Data]:
        """A file's content in ascending order, holes left out."""
        place = self._locate(path, follow=True)
        return self._session(place.volume).read(place.inner)

    def restore(self, path: str, target: Path, overwrite: bool = False) -> RestoreReport:
        """Bring a file or a tree back into the directory `target`, under its own name.

        `/` puts everything into `target` itself. Owners, modes, times, links,
        holes, ACLs and attributes are kept as far as this machine lets us.
        Nothing shows under its name before it is whole; what exists is refused
        with RestoreTargetError unless `overwrite`, which replaces files one by
        one. What cannot be restored in a tree is left out and named in the
        report; a single file that cannot be restored raises UnsupportedFormatError.
        """
        place = self._locate(path, follow=False)
        top = self._session(place.volume).stat(place.inner)
        name = place.path.rpartition("/")[2]
        mounted = [self._mount(point) for point in self._points_below(place)]
        with TreeWriter(target) as writer:
            if not overwrite:
                writer.refuse_existing(name)
            self._export(place, name, mounted, writer)
            for mount in mounted:
                below = name + mount.path[len(place.path.rstrip("/")) :]
                shadows = [m for m in mounted if m.path.startswith(mount.path + "/")]
                if mount.volume.content.supported:
                    self._export(mount, below.strip("/"), shadows, writer)
                else:
                    writer.note(f"{mount.path}: not restored. {mount.volume.refusal()}")
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
            return RestoreReport(writer.files, writer.bytes, writer.not_kept)

    def _export(
        self, place: _Place, at: str, mounted: Sequence[_Place], writer: TreeWriter
    ) -> None:
        """Write one volume's part of a tree: what is at `place` goes to `at` in the target."""
        writer.begin_volume()
        shadows = {mount.path for mount in mounted if mount.volume.content.supported}
        base = len(place.inner.rstrip("/"))
        current = ""
        writing = False
        for record in self._session(place.volume).export(place.inner):
            match record:
                case Entry():
                    writer.finish_file()
                    current = record.path
                    where = place.outer(current)
                    relative = (at + current[base:]).strip("/")
                    hidden = where in shadows or _below_any(where, mounted)
                    # The target directory itself stands for the guest's root and stays as it is.
                    writing = bool(relative) and not hidden and writer.add(relative, record)
                case Data() if writing:
                    writer.write(record.offset, record.content)
                case Fault():
                    if record.path == current:
                        writer.abandon_file()
                    writer.note(f"{place.outer(record.path)}: not restored. {record.reason}")
        writer.finish_file()

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

    def _session(self, volume: GuestVolume) -> FileSystemSession:
        if volume.address not in self._sessions:
            if not volume.content.supported:
                raise volume.refusal()
            session = open_filesystem(volume.reader)
            self._stack.callback(session.close)
            self._sessions[volume.address] = session
        return self._sessions[volume.address]

    def _fstab(self, volume: GuestVolume) -> bytes | None:
        try:
            session = self._session(volume)
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


def _below_any(path: str, mounts: Sequence[_Place]) -> bool:
    """Whether a mount hides the path."""
    return any(path.startswith(mount.path + "/") for mount in mounts)
