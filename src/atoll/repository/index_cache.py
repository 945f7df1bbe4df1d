"""A local copy of what segments say, so that opening an index does not mean reading them all.

A directory holds *tables*, sorted rows that never change, and one *manifest*: which tables count, the
packs their rows are in, and the segments they were made from with the packs that each lists. Both are
written under other names, fsynced and renamed, the manifest last. A file that the manifest does not
name is a leftover, and whoever writes next removes it. Writers take turns by a lock; readers need none,
for they hold the tables open that their manifest named.

Nothing here is precious. What is absent, damaged, of another version or of another repository counts
as not there, and is made again from the segments.
"""

import errno
import fcntl
import os
import struct
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from atoll.model.errors import AtollError
from atoll.repository.index_file import FileTable, TableDamagedError, TableFile, write_all
from atoll.repository.index_state import PACK, State

_MANIFEST = "manifest"
_LOCK = "lock"
_TABLE = ".table"
_NEW = ".new"
_MAGIC = b"ATOLIXM\x01"
_HEAD = struct.Struct("<8s16s16sIIII")
_TABLES = np.dtype([("name", "V16"), ("first", "<u4")])
_SEGMENTS = np.dtype([("name", "V16"), ("packs", "<u4")])
_DIGEST_BYTES = 32
_TRIES = 5
_FILE_BYTES_PER_ROW = 60


class IndexCacheDamagedError(AtollError):
    """The local copy of the index is not what was written. The repository itself is not touched."""

    retryable = True


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """When rows go to files: at most `memory_rows` in memory, and what is worth saving for others."""

    memory_rows: int = 1 << 21
    save_rows: int = 1 << 16
    save_segments: int = 256


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Saved:
    """A state as the cache has it, with the names of its tables; None and nothing before it has one."""

    edition: bytes | None = None
    tables: tuple[bytes, ...] = ()
    state: State = field(default_factory=State)


class IndexCache:
    """The cache of one repository in a directory, which is made, mode 0700, when it is first needed.

    A directory that is another user's, or that others may write to, is not used.
    """

    def __init__(
        self, directory: Path, repository: str, limits: CacheLimits = CacheLimits()
    ) -> None:
        """`repository` is its id, 32 hex digits. Touches nothing yet."""
        self._directory = directory
        self._repository = bytes.fromhex(repository)
        self.limits = limits
        self._last: weakref.ref[Saved] | None = None

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        return str(self._directory)

    def load(self) -> Saved | None:
        """What was saved last; None if there is nothing that can be used.

        As long as one that was loaded is in use, the same is given again: it never changes.
        """
        for _ in range(_TRIES):
            edition = self.edition()
            if edition is None or not self._is_ours():
                return None
            last = self._last() if self._last is not None else None
            if last is not None and last.edition == edition:
                return last
            try:
                return self._remembered(self._read())
            except (OSError, TableDamagedError):
                # Unless somebody saved meanwhile, and so removed what we were about to open.
                if self.edition() == edition:
                    self.discard(edition)
        return None

    def edition(self) -> bytes | None:
        """What changes with every save, None if nothing is saved."""
        try:
            with (self._directory / _MANIFEST).open("rb") as file:
                head = file.read(_HEAD.size)
            magic, repository, edition, *_ = _HEAD.unpack(head)
        except (OSError, struct.error):
            return None
        return edition if (magic, repository) == (_MAGIC, self._repository) else None

    def discard(self, edition: bytes | None) -> None:
        """Forget what was saved, unless it is another edition by now."""
        if edition is not None and self.edition() == edition:
            with suppress(OSError):
                (self._directory / _MANIFEST).unlink()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether it is this process's turn to save, while the block lasts. OSError if never."""
        self._make()
        handle = os.open(
            self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    def private_table(self, expected: int, fill: Callable[[TableFile], None]) -> FileTable:
        """A table in a file without a name, which goes with this process. OSError if it cannot be."""
        self._make(expected)
        with tempfile.TemporaryFile(dir=self._directory) as file:
            handle = os.dup(file.fileno())
        try:
            table = TableFile(handle, expected)
            fill(table)
            table.finish()
        except BaseException:
            os.close(handle)
            raise
        return FileTable(handle)

    def new_table(self, expected: int, fill: Callable[[TableFile], None]) -> FileTable:
        """A table for the next manifest. Only in one's turn. OSError if it cannot be."""
        self._make(expected)
        path = self._directory / f"table{_NEW}"
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            table = TableFile(handle, expected)
            fill(table)
            table.finish()
            path.rename(self._table(table.name))
        except BaseException:
            os.close(handle)
            with suppress(OSError):
                path.unlink()
            raise
        return FileTable(handle)

    def save(self, names: Sequence[bytes], state: State) -> Saved:
        """Replace the manifest and remove what the new one does not name. Only in one's turn.

        `names` are those of the state's tables, all of which are in this cache.
        """
        edition = os.urandom(16)
        path = self._directory / f"{_MANIFEST}{_NEW}"
        handle = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            write_all(handle, self._encode(edition, names, state))
            os.fsync(handle)
        finally:
            os.close(handle)
        self._sync()  # the tables' names, before anything relies on them
        path.rename(self._directory / _MANIFEST)
        self._sync()
        self.tidy(names)
        return self._remembered(Saved(edition, tuple(names), state))

    def _remembered(self, saved: Saved) -> Saved:
        self._last = weakref.ref(saved)
        return saved

    def tidy(self, names: Sequence[bytes]) -> None:
        """Remove what others left, all but these tables. Only in one's turn."""
        kept = {self._table(name) for name in names}
        for path in self._directory.iterdir():
            if path.suffix in (_TABLE, _NEW) and path not in kept:
                path.unlink(missing_ok=True)

    def _table(self, name: bytes) -> Path:
        return self._directory / f"{name.hex()}{_TABLE}"

    def _make(self, rows: int = 0) -> None:
        """Have the directory, with room for this many rows: what cannot succeed fills no disk."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_ours():
            raise PermissionError(f"{self._directory} is another's")
        system = os.statvfs(self._directory)
        if system.f_bavail * system.f_frsize < rows * _FILE_BYTES_PER_ROW:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_ours(self) -> bool:
        try:
            status = self._directory.stat()
        except OSError:
            return False
        return status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _sync(self) -> None:
        handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _encode(self, edition: bytes, names: Sequence[bytes], state: State) -> bytes:
        tables = np.zeros(len(names), _TABLES)
        tables["name"] = [np.void(name) for name in names]
        tables["first"] = [each.first for each in state.tables]
        segments = np.zeros(len(state.held), _SEGMENTS)
        segments["name"] = [np.void(bytes.fromhex(name)) for name in state.held]
        segments["packs"] = [len(listed) for listed in state.held.values()]
        listed = np.concatenate([np.zeros(0, np.int64), *state.held.values()]).astype("<u4")
        counts = (len(tables), len(state.records), len(segments), len(listed))
        head = _HEAD.pack(_MAGIC, self._repository, edition, *counts)
        text = b"".join(
            [head, *(part.tobytes() for part in (tables, state.records, segments, listed))]
        )
        return text + blake3(text).digest()

    def _read(self) -> Saved:
        text = (self._directory / _MANIFEST).read_bytes()
        body, digest = text[:-_DIGEST_BYTES], text[-_DIGEST_BYTES:]
        if blake3(body).digest() != digest:
            raise TableDamagedError("the manifest is not what was written")
        _, _, edition, *counts = _HEAD.unpack_from(body)
        tables, records, segments, listed = _arrays(
            body, _HEAD.size, counts, (_TABLES, PACK, _SEGMENTS, np.dtype("<u4"))
        )
        names = [each["name"].tobytes() for each in tables]
        opened = [
            (self._opened(name), int(each["first"]))
            for name, each in zip(names, tables, strict=True)
        ]
        ends = np.cumsum(segments["packs"], dtype=np.int64)
        held = {
            segment["name"].tobytes().hex(): listed[end - segment["packs"] : end].astype(np.int64)
            for segment, end in zip(segments, ends, strict=True)
        }
        return Saved(edition, tuple(names), State(opened, records, held))

    def _opened(self, name: bytes) -> FileTable:
        path = self._table(name)
        table = FileTable(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        if table.name != name:
            raise TableDamagedError(f"{path} is another table")
        return table


def _arrays(body: bytes, offset: int, counts: Sequence[int], kinds: Sequence[Any]) -> Iterator[Any]:
    for count, kind in zip(counts, kinds, strict=True):
        yield np.frombuffer(body, kind, count, offset)
        offset += count * kind.itemsize
