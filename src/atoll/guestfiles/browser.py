"""Looking into a VM's disks as the guest saw them."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from atoll.filesystems.btrfs_layout import DEFAULT_HERE, TOP_LEVEL_NAME
from atoll.filesystems.interface import STALENESS, Data, Entry, EntryKind, FileSystem
from atoll.filesystems.session import FileSystemSession, ParserEndedError, open_filesystem
from atoll.guestfiles.mounts import (
    MAX_FSTAB_BYTES,
    GuestVolume,
    MountTable,
    find_volumes,
    mount_table,
)
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.model.readers import BlockReader

_ADDRESS = re.compile(r"disk(\d+):part(\d+):(/.*)", re.DOTALL)
# Where distributions keep the root when the file system's own is no more than the place of subvolumes.
_ROOT_SUBVOLUMES = ("@", "root", "@rootfs")
_WITHIN_SUBVOLUME = (1 << 48) - 1
_MAX_SYMLINKS = 40  # as the kernel's own limit
_MAX_SESSIONS = 32  # each is a process, and a hostile table can list a thousand volumes


@dataclass(frozen=True, slots=True)
class Place:
    """A path inside a volume. `prefix` is the mount point, "" for the root, or `disk1:part2:`.

    `inner` begins with the volume's `top`, which is what is mounted there.
    """

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
        below = inner[len(self.volume.top) :] or "/"
        if below == "/" and self.prefix and not self.addressed:
            return self.prefix
        return self.prefix + below


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
        self._unreplayed: set[str] = set()
        self._stack = ExitStack()
        try:
            self.volumes: tuple[GuestVolume, ...] = tuple(find_volumes(disks))
            self.mounts: MountTable = mount_table(self.volumes, self._fstab, self._subvolume)
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

    def staleness(self, volume: GuestVolume) -> str:
        """What a user must know of a volume whose journal is not part of what is read; or empty."""
        stale = volume.address in self._unreplayed
        return f"{volume.address} ({volume.content.kind}): {STALENESS}" if stale else ""

    def stat(self, path: str) -> Entry:
        """The entry at a path; a symlink at its end is not followed."""
        place = self.locate(path, follow=False)
        return replace(self.session(place.volume).stat(place.inner), path=place.path)

    def list(self, path: str = "/", recursive: bool = False) -> Iterator[Entry]:
        """What is in a directory, across mounts when recursive; see FileSystem.list."""
        place = self.locate(path, follow=True)
        mounted = self.mounted_below(place)
        # Asked before: one volume may be mounted twice, and a session lists or answers, not both.
        roots = {
            mount.path: self._root(mount)
            for mount in mounted
            if mount.volume.content.supported
            and (recursive or (mount.path.rpartition("/")[0] or "/") == place.path)
        }
        for entry in self.session(place.volume).list(place.inner, recursive):
            where = place.outer(entry.path)
            if where in roots:
                yield roots[where]
            elif not below_any(where, mounted):
                yield replace(entry, path=where)
        for mount in mounted if recursive else ():
            shadows = [m for m in mounted if m.path.startswith(mount.path + "/")]
            with self.borrowed(mount.volume) as session:
                for entry in session.list(mount.inner, recursive):
                    where = mount.outer(entry.path)
                    if not below_any(where, shadows):
                        yield replace(entry, path=where)

    def read(self, path: str) -> Iterator[Data]:
        """A file's content in ascending order, holes left out."""
        place = self.locate(path, follow=True)
        return self.session(place.volume).read(place.inner)

    def locate(self, path: str, follow: bool) -> Place:
        """Where a path leads, symlinks before its end followed, and at its end if `follow`."""
        address = _ADDRESS.fullmatch(path)
        if address is not None:
            disk, number = int(address[1]), int(address[2])
            for volume in self.volumes:
                if (volume.disk, volume.partition.number) == (disk, number):
                    root = Place(volume, f"{volume.address}:", "/")
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

    def _walk(self, root: Place | None, path: str, inner: str, follow: bool) -> Place:
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
            if (not todo and not follow) or place.inner == (place.volume.top or "/"):
                continue
            try:
                entry = self.session(place.volume).stat(place.inner)
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

    def _place(self, root: Place | None, parts: Sequence[str]) -> Place:
        path = "/" + "/".join(parts)
        if root is not None:
            return replace(root, inner=path)
        owner = self.mounts.owner(path)
        if owner is None:
            raise NotFoundInPointError(f"Nothing is mounted at {path}; {self._choices()}")
        point, volume = owner
        prefix = point.rstrip("/")
        return Place(volume, prefix, volume.top + path[len(prefix) :].rstrip("/") or "/")

    def _mount(self, point: str) -> Place:
        volume = self.mounts.volumes[point]
        return Place(volume, point, volume.top or "/")

    def mounted_below(self, place: Place) -> Sequence[Place]:
        """The roots of the volumes mounted strictly below a place, parents first."""
        if place.addressed:
            return ()
        return [self._mount(point) for point in self.mounts.below(place.path)]

    def _root(self, mount: Place) -> Entry:
        with self.borrowed(mount.volume) as session:
            return replace(session.stat(mount.inner), path=mount.path)

    def session(self, volume: GuestVolume) -> FileSystemSession:
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
    def borrowed(self, volume: GuestVolume) -> Iterator[FileSystemSession]:
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
            return self._read_fstab(volume)
        except ParserEndedError:
            # Killed, perhaps: without asking again another volume might be taken for the root.
            with suppress(ParserEndedError):
                return self._read_fstab(volume)
            return None

    def _read_fstab(self, volume: GuestVolume) -> bytes | None:
        places = ["/etc/fstab"]
        if volume.content.kind == "btrfs":
            places += [f"/{name}/etc/fstab" for name in _ROOT_SUBVOLUMES]
        try:
            # Every volume is asked, and most are never looked into again.
            with _open(volume) as session:
                if session.journal == "unreplayed":
                    self._unreplayed.add(volume.address)
                for path in places:
                    with suppress(NotFoundInPointError):
                        entry = session.stat(path)
                        if entry.kind is not EntryKind.FILE or entry.size > MAX_FSTAB_BYTES:
                            continue
                        text = bytearray(entry.size)
                        for offset, content in session.read(path):
                            text[offset : offset + len(content)] = content
                        return bytes(text)
        except ParserEndedError:
            raise
        except UnsupportedFormatError:
            pass  # damaged; who asks for its files is told why
        return None

    def _subvolume(self, volume: GuestVolume, path: str) -> str | None:
        """Where a subvolume, named by its path from the top level, is in the volume's tree."""
        try:
            with _open(volume) as session:
                return find_subvolume(session, path)
        except (NotFoundInPointError, UnsupportedFormatError):
            return None

    def _choices(self) -> str:
        known = ", ".join(f"{v.address}:/ ({v.content.kind})" for v in self.volumes)
        return f"the volumes are {known or 'none'}."


def find_subvolume(session: FileSystem, path: str) -> str:
    """The same of an open file system; NotFoundInPointError when it is not there.

    Its root is the default subvolume, and what is outside that has a directory of its own, in which
    another stands for the default.
    """
    parts = [part for part in path.split("/") if part]
    where = os.fsdecode(b"/" + TOP_LEVEL_NAME)
    try:
        session.stat(where)
    except NotFoundInPointError:
        where = ""  # the root is the top level itself
    for part in parts:
        where = f"{where}/{part}"
        if session.stat(where).inode & _WITHIN_SUBVOLUME == DEFAULT_HERE:
            where = ""
    return where


def _open(volume: GuestVolume) -> FileSystemSession:
    if not volume.content.supported:
        raise volume.refusal()
    return open_filesystem(volume.reader)


def below_any(path: str, mounts: Sequence[Place]) -> bool:
    """Whether a mount hides the path."""
    return any(path.startswith(mount.path + "/") for mount in mounts)
