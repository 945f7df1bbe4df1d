"""Writes a guest's tree below a directory of this machine, and can write nowhere else.

The tree grows in a directory beside its final place that only we may enter, and
is renamed when it is whole. Every step goes through a descriptor of the parent
opened without following symlinks, so no name or link of the guest leads out.
"""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from atoll.filesystems.interface import Entry, EntryKind
from atoll.model.errors import RestoreTargetError
from atoll.recovery.clearing import empty_directory, is_directory
from atoll.recovery.losses import Losses
from atoll.recovery.placing import place_new, sync_filesystem

_STAGING = re.compile(r"\.atoll-restore-[0-9a-f]{12}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ID = 0xFFFFFFFF
_MAX_STEM_BYTES = 230  # of 255, with room for what is put behind it
# The machine, not the entry, is at fault: going on would only produce the same for all others.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE}
_PRIVILEGED = stat.S_ISUID | stat.S_ISGID
_WINDOWS_ATTRIBUTE = "attribute system.ntfs_"
_NOT_WINDOWS = (
    "what only Windows has (access rules, attributes, times of creation, short names): this target"
    " keeps none of it, one mounted by ntfs-3g does"
)
_CAPABILITIES = "security.capability"


class TreeWriter(Losses):
    """Takes entries parents first and content in between; nothing is visible before `settle`.

    Use as a context manager: on leaving it, what was not settled is removed.
    `files` and `bytes` count what was written, `not_kept` says what was not,
    `missing` counts the entries that are not there or not with their content.
    Without `keep_privileges` files lose set-user-ID, set-group-ID and file
    capabilities: a guest's word must not give rights on this machine.
    Raises RestoreTargetError when the target itself fails.
    """

    links = True

    def __init__(self, target: Path, keep_privileges: bool = False) -> None:
        super().__init__()
        self._target = target
        self._keep_privileges = keep_privileges
        self.files = 0
        self.bytes = 0
        self._created = 0
        self._directories: list[tuple[str, Entry]] = []
        self._links: dict[int, str | None] = {}
        self._file: tuple[int, str, Entry] | None = None
        self._parent: tuple[str, int] | None = None
        with self._failing():
            target.mkdir(parents=True, exist_ok=True)
            self._top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._clear_leftovers()
            self._name = f".atoll-restore-{secrets.token_hex(6)}"
            os.mkdir(self._name, 0o700, dir_fd=self._top)
            self._staging = os.open(self._name, _DIRECTORY, dir_fd=self._top)
            fcntl.flock(self._staging, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        """Leave it to remove what was not settled."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the staging directory."""
        if self._file is not None:
            os.close(self._file[0])
            self._file = None
        self._leave_parent()
        try:
            empty_directory(self._staging)
            with suppress(FileNotFoundError):
                os.rmdir(self._name, dir_fd=self._top)
        except OSError as failure:
            if error is None:  # else that one says more, and the next restore clears this
                raise RestoreTargetError(
                    f"{self._target / self._name} could not be removed ({failure.strerror});"
                    " nothing in it is needed: remove it."
                ) from failure
        finally:
            os.close(self._staging)
            os.close(self._top)

    @property
    def restored(self) -> int:
        """Entries created and not abandoned."""
        return self._created

    def refuse_existing(self, name: str) -> None:
        """RestoreTargetError when `name`, or for "" anything, is in the target already."""
        present = set(os.listdir(self._top)) - {self._name}  # noqa: PTH208 - a descriptor
        if name in present or (not name and present):
            raise self._taken(name or min(present))

    def begin_volume(self) -> None:
        """Inode numbers from here on are another file system's."""
        self.finish_file()
        self._links.clear()

    def add(self, path: str, entry: Entry) -> bool:
        """Create an entry at a path relative to the target; False when it could not be."""
        self.finish_file()
        try:
            with self._in_parent(path) as (parent, name):
                created = self._create(parent, name, path, entry)
        except OSError as error:
            self._failed(path, error)
            self.missing += 1
            if entry.kind is EntryKind.FILE and entry.nlink > 1:
                self._links.setdefault(entry.inode, None)
            return False
        self._created += created
        return created

    def write(self, offset: int, content: bytes) -> None:
        """Bytes of the file added last."""
        if self._file is None:
            return  # it could not be created, which was noted then
        descriptor, path, _ = self._file
        try:
            view = memoryview(content)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            self._failed(path, error)
            self.abandon_file()
        else:
            self.bytes += len(content)

    def finish_file(self) -> None:
        """Give the file added last its size and attributes."""
        if self._file is None:
            return
        descriptor, path, entry = self._file
        try:
            os.ftruncate(descriptor, entry.size)
        except OSError as error:
            self._failed(path, error)
            self.abandon_file()
            return
        self._attributes(descriptor, path, entry)
        self._file = None
        os.close(descriptor)
        self.files += 1

    def abandon_file(self) -> None:
        """Remove the file added last: its content is not whole."""
        if self._file is None:
            return
        descriptor, path, entry = self._file
        self._file = None
        self._created -= 1
        self.missing += 1
        os.close(descriptor)
        self._links[entry.inode] = None
        with self._in_parent(path) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def settle(self, overwrite: bool, keep_both: bool = False) -> None:
        """Put what was added in its place, by renames alone.

        Without `overwrite` each name must be free. With it directories are
        merged and files replaced one by one, each whole, old or new; a file
        never replaces a directory, nor the reverse. With `keep_both` directories
        are merged, and what finds its name taken gets another. A directory is only ours
        to enter until it is in its place and then gets its owner and mode.
        """
        self.finish_file()
        self._leave_parent()
        entries = dict(self._directories)
        with self._failing():
            merged = {""}
            if overwrite or keep_both:
                self._check(self._staging, self._top, "", merged, keep_both)
            # Deepest first: work inside a directory changes its times.
            for path, entry in reversed(self._directories):
                # To be moved to another parent a directory must be ours to write.
                if path.rpartition("/")[0] not in merged:
                    with self._opened(self._staging, path) as directory:
                        self._attributes(directory, path, entry)
            sync_filesystem(self._staging)
            self._move(self._staging, self._top, "", (overwrite, keep_both), entries)

    def _move(
        self,
        source: int,
        target: int,
        path: str,
        may: tuple[bool, bool],
        entries: dict[str, Entry],
    ) -> None:
        overwrite, keep_both = may
        for name in os.listdir(source):
            where = f"{path}/{name}" if path else name
            with ExitStack() as stack:
                directory = None
                if is_directory(name, source):
                    directory = stack.enter_context(self._opened(source, name))
                try:
                    place_new(name, source, name, target)
                except FileExistsError:
                    if not overwrite and not keep_both:
                        raise self._taken(where) from None
                    if keep_both and (directory is None or not is_directory(name, target)):
                        self._place_beside(name, source, target, where)
                    elif directory is None:
                        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
                    else:
                        theirs = stack.enter_context(self._opened(target, name))
                        self._move(directory, theirs, where, may, entries)
                        directory = theirs
                if directory is not None:
                    self._attributes(directory, where, entries[where])
                    os.fsync(directory)
        os.fsync(target)

    def _place_beside(self, name: str, source: int, target: int, where: str) -> None:
        """Move to the first free name after the one that is taken."""
        stem = os.fsdecode(os.fsencode(name)[:_MAX_STEM_BYTES])
        for number in count(1):
            other = f"{stem}.restored{f'-{number}' if number > 1 else ''}"
            with suppress(FileExistsError):
                place_new(name, source, other, target)
                self.note(f"{where}: there is one already, so it was restored as {other}")
                return

    def _check(
        self, source: int, target: int, path: str, merged: set[str], keep_both: bool
    ) -> None:
        """Refuse, before anything is moved, to put a file where a directory is or the reverse.

        Unless both are kept. `merged` receives the directories that are there already.
        """
        there = set(os.listdir(target))
        for name in os.listdir(source):
            if name not in there:
                continue
            where = f"{path}/{name}" if path else name
            ours, theirs = is_directory(name, source), is_directory(name, target)
            if ours != theirs:
                if keep_both:
                    continue
                raise RestoreTargetError(
                    f"{self._target / where} and what would replace it are not both directories or"
                    " both files; move it away and restore again."
                )
            if ours:
                merged.add(where)
                with self._opened(source, name) as a, self._opened(target, name) as b:
                    self._check(a, b, where, merged, keep_both)

    def _create(self, parent: int, name: str, path: str, entry: Entry) -> bool:
        match entry.kind:
            case EntryKind.DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=parent)
                self._directories.append((path, entry))
                return True
            case EntryKind.FILE:
                return self._create_file(parent, name, path, entry)
            case EntryKind.SYMLINK:
                os.symlink(entry.target or "", name, dir_fd=parent)
            case EntryKind.FIFO:
                os.mkfifo(name, 0o600, dir_fd=parent)
            case EntryKind.SOCKET:
                os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=parent)
            case _:
                # A guest's word must not open this machine's disks to whoever finds the node.
                self.note(f"{path}: a device node is not restored")
                return False
        self._node_attributes(parent, name, path, entry)
        return True

    def _create_file(self, parent: int, name: str, path: str, entry: Entry) -> bool:
        if entry.nlink > 1 and entry.inode in self._links:
            first = self._links[entry.inode]
            if first is None:
                self.lose(f"{path}: not restored, for the same reason as its other name")
                return False
            folder, _, other = first.rpartition("/")
            with self._opened(self._staging, folder) as source:
                os.link(other, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            self.files += 1
            return True
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = (os.open(name, flags, 0o600, dir_fd=parent), path, entry)
        if entry.nlink > 1:
            self._links[entry.inode] = path
        return True

    def _attributes(self, descriptor: int, path: str, entry: Entry) -> None:
        """Owner, then what a change of owner clears, then times."""
        mode, xattrs = self._granted(path, entry)
        if not self._own(descriptor, None, path, entry):
            if mode & _PRIVILEGED:
                self.note(f"{path}: set-user-id or set-group-id, as its owner could not be kept")
            mode &= ~_PRIVILEGED
        with self._keeping(path, "mode"):
            os.chmod(descriptor, mode)
        for name, value in xattrs:
            with self._keeping(path, f"attribute {name}"):
                os.setxattr(descriptor, name, value)
        with self._keeping(path, "times"):
            os.utime(descriptor, ns=(entry.atime_ns, entry.mtime_ns))

    def _granted(self, path: str, entry: Entry) -> tuple[int, list[tuple[str, bytes]]]:
        """Mode and attributes without what would let a guest's program act as root here."""
        mode, xattrs = entry.mode, list(entry.xattrs or ())
        if self._keep_privileges or entry.kind is EntryKind.DIRECTORY:
            return mode, xattrs  # set-group-ID of a directory only says whom new files belong to
        held = {
            "set-user-ID": mode & stat.S_ISUID,
            "set-group-ID": mode & stat.S_ISGID,
            "file capabilities": any(name == _CAPABILITIES for name, _ in xattrs),
        }
        if any(held.values()):
            what = ", ".join(name for name, there in held.items() if there)
            self.note(
                f"{path}: {what} left off, as this would give rights on this machine;"
                " --keep-privileges keeps it"
            )
        return mode & ~_PRIVILEGED, [pair for pair in xattrs if pair[0] != _CAPABILITIES]

    def _node_attributes(self, parent: int, name: str, path: str, entry: Entry) -> None:
        """The same for what must not be opened and has no use for privileges."""
        self._own(parent, name, path, entry)
        if entry.kind is not EntryKind.SYMLINK:
            with self._keeping(path, "mode"):
                os.chmod(name, entry.mode & ~_PRIVILEGED, dir_fd=parent)
        for key, value in entry.xattrs or ():
            if key == _CAPABILITIES:
                continue
            # There is no call for attributes relative to a directory.
            with self._keeping(path, f"attribute {key}"):
                through = f"/proc/self/fd/{parent}/{name}"
                os.setxattr(through, key, value, follow_symlinks=False)
        with self._keeping(path, "times"):
            times = (entry.atime_ns, entry.mtime_ns)
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _own(self, descriptor: int, name: str | None, path: str, entry: Entry) -> bool:
        """Give it to its owner; False when that was refused."""
        if _NO_ID in (entry.uid, entry.gid):  # to the kernel this means "leave as it is"
            self.note(f"{path}: its owner is not a user that can own files")
            return False
        try:
            if name is None:
                os.chown(descriptor, entry.uid, entry.gid)
            else:
                os.chown(name, entry.uid, entry.gid, dir_fd=descriptor, follow_symlinks=False)
        except PermissionError:
            self.note("owners: only root can give files away, restore as root to keep them", True)
            return False
        except OSError as error:
            self._failed(f"{path} (owner)", error)
            return False
        return True

    @contextmanager
    def _keeping(self, path: str, what: str) -> Iterator[None]:
        """An attribute that the target may refuse without the file being lost."""
        try:
            yield
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError):
                self._raise_fatal(error)
                if error.errno == errno.EOPNOTSUPP and what.startswith(_WINDOWS_ATTRIBUTE):
                    self.note(_NOT_WINDOWS, True)
                    return
            why = error.strerror if isinstance(error, OSError) else str(error)
            self.note(f"{path}: {what} ({why})")

    def _failed(self, path: str, error: OSError) -> None:
        self._raise_fatal(error)
        self.note(f"{path}: not restored ({error.strerror})")

    def _raise_fatal(self, error: OSError) -> None:
        if error.errno in _FATAL:
            raise self._broken(error) from error

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What goes wrong inside is the target's fault."""
        try:
            yield
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> RestoreTargetError:
        return RestoreTargetError(
            f"Restoring into {self._target} failed ({error.strerror}); nothing half-done is left"
            " there: make room or choose another directory, and restore again."
        )

    def _taken(self, name: str) -> RestoreTargetError:
        return RestoreTargetError(
            f"{self._target / name} exists already; choose another directory, or allow overwriting."
        )

    @contextmanager
    def _opened(self, top: int, path: str) -> Iterator[int]:
        """A directory below `top`, entered one component at a time, no symlink followed."""
        descriptor = _enter(top, path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _in_parent(self, path: str) -> Iterator[tuple[int, str]]:
        """(directory, name) of a path in the staging tree; the last directory stays open."""
        parent, _, name = path.rpartition("/")
        if self._parent is None or self._parent[0] != parent:
            self._leave_parent()
            self._parent = (parent, _enter(self._staging, parent))
        yield self._parent[1], name

    def _leave_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _clear_leftovers(self) -> None:
        """Remove staging directories whose process was killed: their lock is free."""
        for name in os.listdir(self._top):  # noqa: PTH208 - a descriptor
            if not _STAGING.fullmatch(name):
                continue
            with suppress(BlockingIOError, FileNotFoundError), self._opened(self._top, name) as old:
                if os.fstat(old).st_uid == os.geteuid():
                    fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    empty_directory(old)
                    os.rmdir(name, dir_fd=self._top)


def _enter(top: int, path: str) -> int:
    """Open a directory component by component; OSError where one is not a directory."""
    descriptor = os.open(".", _DIRECTORY, dir_fd=top)
    for part in path.split("/") if path else ():
        try:
            below = os.open(part, _DIRECTORY, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor
