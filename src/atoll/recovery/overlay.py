"""A restore point's disk that can be written: the point below, what was written since above it.

Three files in a directory of the disk's own:

    data      sparse, as long as the disk; a block that was written lies where the disk has it
    written   a page of head, then a bit for each block of `data` that is on stable storage
    recent    the same, of the blocks that were written at all, and the machine's boot that did

`data` is on stable storage before `written` says so, and bits are only ever set, so whatever part of
a write a power cut leaves is right. What was acknowledged and not flushed may be lost then, as on any
disk. When only this process dies nothing is: the kernel still has what it was given, and `recent`,
believed in the same boot alone, says what that is.
"""

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from atoll.model.errors import RestoreTargetError, StorageConflictError
from atoll.model.readers import BlockReader

BLOCK_BYTES = 4096
_PAGE = 4096
_MAGIC = b"ATOLOVL1"
_HEAD = struct.Struct("<8sIQ36s64s")  # magic, block bytes, size, boot, what lies below
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StoredFile(Protocol):
    """A file as the overlay uses it. OSError says what failed."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes, fewer only at its end."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of `data`; kept over the death of the process, not over that of the machine."""
        ...

    def sync(self) -> None:
        """Return when all that was written is on stable storage."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Overlay:
    """A disk of `size_bytes`, at any offset and length, by any number of threads. Raises OSError.

    `directory` keeps what was written; it goes on there when it is opened again over the same
    point, which `below` names. Closing `base` is the caller's. StorageConflictError when the
    directory is another disk's.
    """

    def __init__(
        self,
        base: BlockReader,
        directory: Path,
        below: str,
        open_file: Callable[[Path, int], StoredFile] | None = None,
        boot_id: str | None = None,
    ) -> None:
        open_file = open_file or PlainFile
        self._base = base
        self.size_bytes = base.size_bytes
        self._boot = boot_id if boot_id is not None else _BOOT_ID.read_text().strip()
        self._below = below
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._begun = self._done = 0
        self._failed: OSError | None = None
        blocks = -(-self.size_bytes // BLOCK_BYTES)
        self._bits = bytearray(-(-blocks // 8))
        self._dirty: set[int] = set()
        length = _PAGE + len(self._bits)
        self._data = open_file(directory / "data", self.size_bytes)
        self._written = open_file(directory / "written", length)
        self._recent = open_file(directory / "recent", length)
        self._load()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, fewer only at the end."""
        length = max(0, min(length, self.size_bytes - offset))
        parts = []
        for start, end, written in self._runs(offset, offset + length):
            if written:
                part = self._data.read(start, end - start)
                # The last block may lie half beyond what was ever written of the file.
                part += bytes(end - start - len(part))
            else:
                part = self._base.read(start, end - start)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of `data`; ENOSPC beyond the disk's end."""
        self._refuse_failed()
        end = offset + len(data)
        if end > self.size_bytes:
            raise OSError(errno.ENOSPC, "beyond the end of the disk")
        if not data:
            return
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        whole_from = -(-offset // BLOCK_BYTES)
        whole_to = last + 1 if end == self.size_bytes else end // BLOCK_BYTES
        view = memoryview(data)
        if whole_from == first and whole_to == last + 1:
            self._data.write(offset, view)
            with self._lock:
                self._mark(first, last + 1)
            return
        # Of blocks that are written in part the rest comes from below, once.
        with self._lock:
            for block in {first, last}:
                if (block < whole_from or block >= whole_to) and not self._has(block):
                    at = block * BLOCK_BYTES
                    self._data.write(at, self._base.read(at, BLOCK_BYTES))
            self._data.write(offset, view)
            self._mark(first, last + 1)

    def flush(self) -> None:
        """Return when everything written before is on stable storage.

        Callers that wait for one another are served by one pass. After one that failed nothing is
        written any more: the kernel does not say which bytes it lost.
        """
        self._refuse_failed()
        with self._lock:
            ticket = self._begun + 1
        with self._flushing:
            if self._done >= ticket:
                return
            self._refuse_failed()
            with self._lock:
                self._begun += 1
                this = self._begun
                pages = {page: self._page(page) for page in self._dirty}
                self._dirty.clear()
            try:
                self._data.sync()
                if pages:
                    for page, content in sorted(pages.items()):
                        self._written.write(_PAGE + page * _PAGE, content)
                    self._written.sync()
            except OSError as error:
                self._failed = error
                raise
            self._done = this

    def written_bytes(self) -> int:
        """How many bytes lie above the point."""
        with self._lock:
            return int.from_bytes(self._bits).bit_count() * BLOCK_BYTES

    def close(self) -> None:
        """Flush and let go of the files."""
        try:
            self.flush()
        finally:
            for file in (self._data, self._written, self._recent):
                file.close()

    def _load(self) -> None:
        written, recent = self._written, self._recent
        head = written.read(0, _HEAD.size)
        if not any(head):
            written.write(0, self._head(""))
            written.sync()
        else:
            self._check(head)
            self._bits[:] = written.read(_PAGE, len(self._bits))
        head = recent.read(0, _HEAD.size)
        if any(head) and self._boot_of(head) == self._boot:
            later = recent.read(_PAGE, len(self._bits))
            for at, byte in enumerate(later):
                if byte & ~self._bits[at]:
                    self._bits[at] |= byte
                    self._dirty.add(at // _PAGE)
            return
        # Of another boot, which may have lost what it says was written. The head comes last: until
        # then it is of that boot, or none.
        recent.write(_PAGE, bytes(self._bits))
        recent.write(0, self._head(self._boot))

    def _check(self, head: bytes) -> None:
        magic, block, size, _, below = _HEAD.unpack(head)
        found = below.rstrip(b"\0").decode(errors="replace")
        if (magic, block, size, found) != (_MAGIC, BLOCK_BYTES, self.size_bytes, self._below):
            raise StorageConflictError(
                "What was written lies above another disk than the restore point's; end the recovery "
                "and begin it anew."
            )

    def _boot_of(self, head: bytes) -> str:
        magic, _, _, boot, _ = _HEAD.unpack(head)
        return boot.rstrip(b"\0").decode(errors="replace") if magic == _MAGIC else ""

    def _head(self, boot: str) -> bytes:
        return _HEAD.pack(_MAGIC, BLOCK_BYTES, self.size_bytes, boot.encode(), self._below.encode())

    def _refuse_failed(self) -> None:
        if self._failed is not None:
            raise OSError(self._failed.errno, f"an earlier flush failed: {self._failed.strerror}")

    def _has(self, block: int) -> bool:
        return bool(self._bits[block >> 3] >> (block & 7) & 1)

    def _mark(self, first: int, end: int) -> None:
        """Set the bits, and let `recent` say so before anybody is told. Call with the lock."""
        low, high = first >> 3, (end - 1) >> 3
        mask = ((1 << (end - first)) - 1) << (first & 7)
        before = int.from_bytes(self._bits[low : high + 1], "little")
        after = before | mask
        if after == before:
            return
        changed = after.to_bytes(high - low + 1, "little")
        self._recent.write(_PAGE + low, changed)
        self._bits[low : high + 1] = changed
        self._dirty.update(range(low // _PAGE, high // _PAGE + 1))

    def _page(self, page: int) -> bytes:
        return bytes(self._bits[page * _PAGE : (page + 1) * _PAGE])

    def _runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(start, end, whether written) of the parts of a range, in order."""
        at = offset
        while at < end:
            block = at // BLOCK_BYTES
            written = self._has(block)
            block += 1
            while block * BLOCK_BYTES < end and self._has(block) == written:
                block += 1
            stop = min(end, block * BLOCK_BYTES)
            yield at, stop, written
            at = stop


class PlainFile:
    """A file of this machine; made with `size_bytes`, all holes, when it is not there."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._descriptor).st_size < size_bytes:
                os.truncate(self._descriptor, size_bytes)
                os.fsync(self._descriptor)
                _sync_directory(path.parent)
        except OSError as error:
            raise RestoreTargetError(
                f"{path} cannot be kept ({error.strerror}); see to the directory of [recovery]."
            ) from error

    def read(self, offset: int, length: int) -> bytes:
        """Bytes, fewer only at its end."""
        parts = []
        while length:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of `data`."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count

    def sync(self) -> None:
        """As fdatasync(2)."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
