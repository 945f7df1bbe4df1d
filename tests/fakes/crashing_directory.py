"""What a power cut may leave of a directory: every system call is recorded, and any state can be built.

`CrashingDirectory` stands in for the module `os` in `atoll.repository.local`. It performs each call and
writes down what it does to names and bytes. `states` then gives what a file system may hold when power
fails after any of the calls, by the rules of POSIX and no kinder ones:

- Bytes of a file are safe once an fsync of the file has returned. Until then there may be all of them, a
  beginning, none, or zeros in their place.
- Bytes for which an fsync failed are never safe, though the next one succeeds: the kernel tells of it
  once. Names are safe with the next that succeeds, for a file system that cannot write its own records
  lets nothing succeed.
- A name in a folder is safe once an fsync of that folder has returned: made, linked, renamed or removed,
  each of them alone, a rename's two halves too. An fsync of the file does not help its name, and one of a
  folder does not help the folder's own name.

File systems keep more promises than these, each another one.
"""

import errno
import fcntl
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

ALL_SUBSETS_OF = 5
"""So many names that are not safe are tried in every combination; more are sampled."""


class Killed(BaseException):
    """The process was killed at this call; all its later calls fail too."""


@dataclass(eq=False)
class File:
    """Bytes by how safe they are."""

    safe: bytes = b""
    written: bytes = b""


@dataclass(eq=False)
class Folder:
    """Names that are safe, and changes of names since the last fsync, in order."""

    safe: dict[str, "Node"] = field(default_factory=dict)
    names: dict[str, "Node"] = field(default_factory=dict)


Node = File | Folder


@dataclass(frozen=True)
class NameChange:
    """`name` in `folder` means `node` from now on, or nothing."""

    folder: Folder
    name: str
    node: Node | None


@dataclass(frozen=True)
class Append:
    """Bytes at the end of a file."""

    file: File
    data: bytes


@dataclass(frozen=True)
class Sync:
    """An fsync that returned."""

    node: Node


@dataclass(frozen=True)
class Spoilt:
    """A file of which an fsync failed."""

    file: File


@dataclass(frozen=True)
class Note:
    """What the workload says it has reached; no call."""

    text: str


Event = NameChange | Append | Sync | Spoilt | Note
Tree = dict[str, "bytes | Tree"]
"""A state: what a power cut left."""


class CrashingDirectory(ModuleType):
    """The module `os` for LocalStore, over a real folder `top` that is there and safe."""

    def __init__(self, top: Path) -> None:
        super().__init__("os")
        self._top = top
        self._root = Folder()
        self._open: dict[int, Node] = {}
        self._lock = threading.RLock()
        self.events: list[Event] = []
        self.kill_at = 0
        """Number of the change, from 1, at which the process is killed; 0 for never."""
        self.fail_at = 0
        """Number of the change, from 1, that fails with an I/O error; 0 for none."""
        self.changes = 0
        self.naming: list[tuple[int, str]] = []
        """Changes that make names safe, and what folder of a repository these lie in or below.

        Before them others see what a cut may undo.
        """
        self._dead = False

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def note(self, text: str) -> None:
        """Put a word between the calls."""
        with self._lock:
            self.events.append(Note(text))

    def bury(self) -> None:
        """Drop the locks of a killed process, as the kernel does; another may begin.

        Its descriptors are closed when its objects are collected, not now: their numbers would be
        given to the next process, which those objects would then close.
        """
        with self._lock:
            for handle in self._open:
                fcntl.flock(handle, fcntl.LOCK_UN)
            self._open.clear()
            self._dead = False
            self.kill_at = 0

    # --- the calls -----------------------------------------------------------------------------

    def open(
        self, path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        with self._lock:
            self._living()
            creates = bool(flags & os.O_CREAT)
            where = self._at(dir_fd)
            is_new = creates and not self._exists(str(path), dir_fd)
            if is_new:
                self._change()
            handle = os.open(path, flags, mode, dir_fd=dir_fd)
            if dir_fd is None:
                self._open[handle] = self._absolute(Path(path))
            elif is_new:
                self._open[handle] = file = File()
                self._name(NameChange(where, str(path), file))
            else:
                self._open[handle] = _below(where, str(path))
            return handle

    def close(self, handle: int) -> None:
        with self._lock:
            self._open.pop(handle, None)
            os.close(handle)

    def dup(self, handle: int) -> int:
        with self._lock:
            self._living()
            other = os.dup(handle)
            self._open[other] = self._open[handle]
            return other

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            self._living()
            where = self._at(dir_fd)
            self._change()
            os.mkdir(path, mode, dir_fd=dir_fd)
            self._name(NameChange(where, path, Folder()))

    def writev(self, handle: int, parts: Sequence[bytes]) -> int:
        with self._lock:
            return self.write(handle, b"".join(parts))

    def write(self, handle: int, data: bytes) -> int:
        with self._lock:
            self._living()
            self._change()
            file = self._open[handle]
            assert isinstance(file, File)
            data = bytes(data)
            # Short, as a full disk or a signal makes it, so that what follows is exercised as well.
            count = os.write(handle, data[: max(1, len(data) * 2 // 3)])
            file.written += data[:count]
            self.events.append(Append(file, data[:count]))
            return count

    def fsync(self, handle: int) -> None:
        with self._lock:
            self._living()
            self._change(self._open[handle])
            os.fsync(handle)
            self.events.append(Sync(self._open[handle]))

    def link(self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        with self._lock:
            self._living()
            self._change()
            os.link(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            node = self._at(src_dir_fd).names[src]
            self._name(NameChange(self._at(dst_dir_fd), dst, node))

    def rename(self, src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        with self._lock:
            self._living()
            self._change()
            os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            source = self._at(src_dir_fd)
            self._name(NameChange(self._at(dst_dir_fd), dst, source.names[src]))
            self._name(NameChange(source, src, None))

    def unlink(self, path: str, *, dir_fd: int) -> None:
        with self._lock:
            self._living()
            self._change()
            os.unlink(path, dir_fd=dir_fd)
            self._name(NameChange(self._at(dir_fd), path, None))

    # --- what they are made of -----------------------------------------------------------------

    def _living(self) -> None:
        if self._dead:
            raise Killed

    def _change(self, node: Node | None = None) -> None:
        self.changes += 1
        if isinstance(node, Folder):
            self.naming.append((self.changes, self._folder_name(node)))
        if self.changes == self.kill_at:
            self._dead = True
            raise Killed
        if self.changes == self.fail_at:
            if isinstance(node, File):
                self.events.append(Spoilt(node))
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _name(self, change: NameChange) -> None:
        _apply(change.folder.names, change)
        self.events.append(change)

    def _at(self, dir_fd: int | None) -> Folder:
        if dir_fd is None:
            return self._root
        folder = self._open[dir_fd]
        assert isinstance(folder, Folder)
        return folder

    def _folder_name(self, folder: Folder) -> str:
        places = [place for place in self._root.names.values() if isinstance(place, Folder)]
        for name, node in ((name, node) for place in places for name, node in place.names.items()):
            if node is folder or (isinstance(node, Folder) and folder in node.names.values()):
                return name
        return ""

    def _exists(self, path: str, dir_fd: int | None) -> bool:
        try:
            os.stat(path, dir_fd=dir_fd)
        except FileNotFoundError:
            return False
        return True

    def _absolute(self, path: Path) -> Node:
        """By its path from `top`; what was made there without our knowing is made now."""
        for child in self._top.iterdir():
            if child.is_dir() and child.name not in self._root.names:
                self._name(NameChange(self._root, child.name, Folder()))
        inside = path.relative_to(self._top)
        return self._root if inside == Path() else _below(self._root, str(inside))

    # --- what a power cut leaves ---------------------------------------------------------------

    def states(
        self, seed: int, samples: int, cuts: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Tree]]:
        """(events that had happened, a tree), each different tree after the same events once.

        `cuts` are the numbers of events to cut after, all by default. After each there are all
        subsets of the names that are not safe where these are few, else both extremes, each name
        alone, all but each, and `samples` more at random. Bytes that are not safe are at random.
        """
        chance = random.Random(seed)
        for cut in range(len(self.events) + 1) if cuts is None else cuts:
            seen = set()
            replay = _Replay(self._root, self.events[:cut])
            for chosen in _choices(len(replay.open), samples, chance):
                tree = replay.tree(chosen, chance)
                key = _frozen(tree)
                if key not in seen:
                    seen.add(key)
                    yield cut, tree


class _Replay:
    """Events once more, from the empty folder, with what is not safe after the last of them."""

    def __init__(self, root: Folder, events: Sequence[Event]) -> None:
        self._root = root
        self._safe: dict[Folder, dict[str, Node]] = {root: {}}
        self._bytes: dict[File, tuple[bytes, bytes]] = {}
        pending: list[NameChange] = []
        spoilt: set[File] = set()
        for event in events:
            if isinstance(event, NameChange):
                pending.append(event)
            elif isinstance(event, Spoilt):
                spoilt.add(event.file)
            elif isinstance(event, Append):
                safe, all_of_it = self._bytes.get(event.file, (b"", b""))
                self._bytes[event.file] = (safe, all_of_it + event.data)
            elif isinstance(event, Sync) and event.node in spoilt:
                continue
            elif isinstance(event, Sync) and isinstance(event.node, File):
                all_of_it = self._bytes.get(event.node, (b"", b""))[1]
                self._bytes[event.node] = (all_of_it, all_of_it)
            elif isinstance(event, Sync):
                names = self._safe.setdefault(event.node, {})
                for change in pending:
                    if change.folder is event.node:
                        _apply(names, change)
                pending = [change for change in pending if change.folder is not event.node]
        # A folder of temporaries is never safe and has no need to be: its names come as one.
        self.open: list[list[NameChange]] = []
        scratch: dict[Folder, list[NameChange]] = {}
        for change in pending:
            if _is_scratch(change.folder, root):
                scratch.setdefault(change.folder, []).append(change)
            else:
                self.open.append([change])
        self.open += scratch.values()

    def tree(self, chosen: Sequence[bool], chance: random.Random) -> Tree:
        """The names chosen have come through."""
        names = {folder: dict(safe) for folder, safe in self._safe.items()}
        for take, changes in zip(chosen, self.open, strict=True):
            for change in changes:
                if take and (len(changes) == 1 or chance.random() < 0.8):
                    _apply(names.setdefault(change.folder, {}), change)
        return self._folder(self._root, names, chance)

    def _folder(
        self, folder: Folder, names: dict[Folder, dict[str, Node]], chance: random.Random
    ) -> Tree:
        return {
            name: self._file(node, chance)
            if isinstance(node, File)
            else self._folder(node, names, chance)
            for name, node in sorted(names.get(folder, {}).items())
        }

    def _file(self, file: File, chance: random.Random) -> bytes:
        safe, written = self._bytes.get(file, (b"", b""))
        open_bytes = written[len(safe) :]
        if not open_bytes:
            return safe
        way = chance.randrange(4)
        if way == 0:
            return written
        if way == 1:
            return safe + bytes(len(open_bytes))
        if way == 2:
            return safe
        return safe + open_bytes[: chance.randrange(len(open_bytes))]


def put_tree(tree: Tree, place: Path) -> None:
    """Make the state a real folder."""
    place.mkdir(mode=0o700)
    for name, what in tree.items():
        if isinstance(what, bytes):
            (place / name).write_bytes(what)
        else:
            put_tree(what, place / name)


def _is_scratch(folder: Folder, root: Folder) -> bool:
    return any(
        isinstance(place, Folder) and place.names.get("tmp") is folder
        for place in root.names.values()
    )


def _choices(count: int, samples: int, chance: random.Random) -> Iterator[tuple[bool, ...]]:
    if count <= ALL_SUBSETS_OF:
        yield from product((False, True), repeat=count)
        return
    yield (False,) * count
    yield (True,) * count
    for one in range(count):
        yield tuple(at == one for at in range(count))
        yield tuple(at != one for at in range(count))
    for _ in range(samples):
        yield tuple(chance.random() < 0.5 for _ in range(count))


def _apply(names: dict[str, Node], change: NameChange) -> None:
    if change.node is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.node


def _below(folder: Folder, path: str) -> Node:
    node: Node = folder
    for part in path.split("/"):
        assert isinstance(node, Folder)
        node = node.names[part]
    return node


def _frozen(tree: Tree) -> object:
    return tuple(
        (name, what if isinstance(what, bytes) else _frozen(what)) for name, what in tree.items()
    )
