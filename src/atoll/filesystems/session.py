"""A guest file system opened in a jailed process of its own, fed from a BlockReader."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, get_args

from atoll.filesystems import wire
from atoll.filesystems.detect import SUPPORTED, detect
from atoll.filesystems.interface import Blocks, Data, Entry, EntryKind, Fault, Journal, Placed
from atoll.filesystems.rows import Row, checked
from atoll.filesystems.wire import Kind
from atoll.model.errors import AtollError, NotFoundInPointError, UnsupportedFormatError

A = TypeVar("A")
R = TypeVar("R")

PARSER = ("-m", "atoll.filesystems.parser")
"""What the child's interpreter runs."""

_STARVED_PATIENCES = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What one open file system may cost.

    `patience_seconds` is how long the parser may go without a result, not
    counting the time its parent takes to read blocks, nor, up to ten times as long, that for which
    it wants to run and the machine's other work does not let it. `entries` bounds one
    listing or export, `places` the pieces of one file.
    """

    memory_bytes: int = 512 << 20
    patience_seconds: float = 60.0
    entries: int = 50_000_000
    places: int = 2_000_000


def open_filesystem(reader: Blocks, limits: Limits | None = None) -> "FileSystemSession":
    """Open what begins at offset 0 of `reader`; the reader stays the caller's to close.

    Raises UnsupportedFormatError, in one sentence, for a kind that is not in `detect.SUPPORTED`.
    """
    content = detect(reader)
    if not content.supported:
        raise content.refusal()
    return FileSystemSession(reader, content.kind, limits or Limits())


class ParserEndedError(UnsupportedFormatError):
    """The parser's process ended: it crashed, or somebody killed it."""


class FileSystemSession:
    """A FileSystem (see `interface.py`) whose parser runs in the jail.

    An iterator that is closed before its end costs the jailed process, and the
    next call starts another: there is no other safe way to interrupt it.
    """

    _parser: tuple[str, ...] | None = None  # instead of PARSER
    # NumPy would start threads, which the jail does not allow, for mathematics that nobody does here.
    _environment: Mapping[str, str] = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

    def __init__(self, reader: Blocks, kind: str, limits: Limits) -> None:
        self._reader = reader
        self._detected = kind
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._busy = False
        self._silent_seconds = self._used_seconds = 0.0
        self._start()

    def __enter__(self) -> Self:
        """Use as a context manager to be sure the process ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the jailed process."""
        self.close()

    def close(self) -> None:
        """End the jailed process. Closing twice is harmless."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._busy = False

    @property
    def running(self) -> bool:
        """Whether the jailed process is there: a refusal leaves it, damage to itself ends it."""
        return self._process is not None

    @property
    def kind(self) -> str:
        """What it is, one of `detect.SUPPORTED`."""
        return self._kind

    @property
    def label(self) -> str:
        """The file system's label, or empty."""
        return self._label

    @property
    def uuid(self) -> str:
        """The file system's UUID as `/etc/fstab` writes it."""
        return self._uuid

    @property
    def journal(self) -> Journal:
        """Whether changes had to be taken from the journal."""
        return self._journal

    def stat(self, path: str) -> Entry:
        """The entry at `path`; symlinks are not followed."""
        return self._single("stat", path)

    def list(self, path: str, recursive: bool = False) -> Iterator[Entry]:
        """What is in a directory; see FileSystem.list."""
        faults = 0
        first: Fault | None = None
        for record in self._command("walk" if recursive else "list", path):
            match record:
                case Entry():
                    yield record
                case Fault():
                    faults += 1
                    first = first or record
                case _:
                    raise self._stop("content where a listing was asked for")
        if first is not None:
            raise UnsupportedFormatError(
                f"{faults} places below {path} are damaged and could not be listed, first"
                f" {first.path}: {first.reason}; restore the whole disk to get at them."
            )

    def read(self, path: str) -> Iterator[Data]:
        """A file's content in ascending order, holes left out."""
        with contextlib.closing(self._command("read", path)) as records:
            entry = next(records, None)
            if not isinstance(entry, Entry):
                raise self._stop("no metadata for a file")
            if entry.kind is not EntryKind.FILE:
                raise NotFoundInPointError(f"{path} is a {entry.kind}, so it has no content.")
            for record in records:
                if not isinstance(record, Data):
                    raise self._stop("metadata in the middle of a file")
                yield record

    def xattrs(self, path: str) -> dict[str, bytes]:
        """Extended attributes and POSIX ACLs, in the kernel's encoding."""
        return dict(self._single("xattrs", path).xattrs or ())

    def export(self, path: str) -> Iterator[Entry | Data | Fault]:
        """Everything at and below `path` in one pass; see FileSystem.export."""
        for record in self._command("export", path):
            if isinstance(record, Placed | Row):
                raise self._stop("places where content was asked for")
            yield record

    def node(self, inode: int) -> Row:
        """The entry of an inode, with details; see FileSystem.node."""
        found = list(self._command("node", inode))
        if len(found) != 1 or not isinstance(found[0], Row):
            raise self._stop("no single answer to a question about one inode")
        return found[0]

    def attributes(self, inode: int) -> dict[str, bytes]:
        """All extended attributes of an inode, however large."""
        return dict(self._single("attributes", inode).xattrs or ())

    def children(self, inode: int) -> Generator[Row, None, None]:
        """What is in a directory; see FileSystem.children."""
        for record in self._command("children", inode):
            if not isinstance(record, Row):
                raise self._stop("what is no name of a directory")
            yield record

    def layout(self, inode: int) -> Generator[Placed | Data, None, None]:
        """Where a file's content lies; see FileSystem.layout."""
        with contextlib.closing(self._command("layout", inode)) as records:
            entry = next(records, None)
            if not isinstance(entry, Entry):
                raise self._stop("no metadata for a file")
            if entry.kind is not EntryKind.FILE:
                raise NotFoundInPointError(
                    f"Inode {inode} is a {entry.kind}, so it has no content."
                )
            for record in records:
                if not isinstance(record, Placed | Data):
                    raise self._stop("metadata in the middle of a layout")
                yield record

    def _single(self, verb: str, where: str | int) -> Entry:
        records = list(self._command(verb, where))
        if len(records) != 1 or not isinstance(records[0], Entry):
            raise self._stop("no single answer to a question about one path")
        return records[0]

    def _command(
        self, verb: str, where: str | int
    ) -> Generator[Entry | Data | Placed | Fault | Row, None, None]:
        yield from self._asked(verb, where, self._records(named=verb == "children"))

    def _asked(self, verb: str, where: str | int, answer: Iterator[R]) -> Generator[R, None, None]:
        """Ask, and give what comes; a parser that is not heard out is ended."""
        if self._busy:
            raise RuntimeError("a file system session serves one iterator at a time")
        if self._process is None:
            self._start()
        self._busy = True
        finished = False
        try:
            self._send(Kind.COMMAND, json.dumps([verb, where]).encode())
            yield from answer
            finished = True
        except _AnsweredError as refused:
            finished = True
            raise refused.error from None
        finally:
            self._busy = False
            if not finished:
                self.close()

    def _records(self, *, named: bool) -> Iterator[Entry | Data | Placed | Fault | Row]:
        entries = end = size = places = 0
        while True:
            kind, payload = self._result()
            match kind:
                case Kind.END:
                    return
                case Kind.ENTRIES:
                    rows = wire.decode_entries(payload)
                    entries += len(rows)
                    if entries > self._limits.entries:
                        raise self._stop("more entries than a file system may have here")
                    for row in rows:
                        end, size = 0, row.size
                        yield row
                case Kind.ROWS:
                    for each in self._rows(payload, named=named):
                        entries += 1
                        if entries > self._limits.entries:
                            raise self._stop("more entries than a file system may have here")
                        yield each
                case Kind.DATA:
                    data = wire.decode_data(payload)
                    if data.offset < end or data.offset + len(data.content) > size:
                        raise self._stop("content outside its file")
                    end = data.offset + len(data.content)
                    yield data
                case Kind.PLACES:
                    known = list(wire.decode_places(payload))
                    places += len(known)
                    if places > self._limits.places:
                        raise self._too_scattered()
                    end = self._placed(known, end, size)
                    yield from known
                case Kind.FAULT:
                    yield wire.decode_fault(payload)
                case _:
                    raise self._stop("a frame out of turn")

    def _rows(self, payload: bytes, *, named: bool) -> Iterator[Row]:
        try:
            yield from checked(payload, self._reader.size_bytes, named=named)
        except UnsupportedFormatError:
            self.close()
            raise

    def _placed(self, places: Sequence[Placed], end: int, size: int) -> int:
        """Where the last of these pieces of a file ends; each behind the one before, all on the volume."""
        for offset, length, at in places:
            if offset < end or not 0 < length <= size - offset:
                raise self._stop("a layout outside its file")
            if length > self._reader.size_bytes - at:
                raise self._stop("a layout outside the image")
            end = offset + length
        return end

    def _too_scattered(self) -> AtollError:
        self.close()
        return UnsupportedFormatError(
            f"A file is in more than {self._limits.places} pieces, too many to be served; restore it"
            " with `atoll restore file`, or the whole disk."
        )

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # An interpreter of its own, with an empty environment: nothing of this process's
            # memory or descriptors is in the jail.
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", *(self._parser or PARSER)),
                    *(self._detected, str(self._reader.size_bytes), str(self._limits.memory_bytes)),
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                cwd="/",
            )
        self._socket = ours
        self._silent_seconds = self._used_seconds = 0.0
        try:
            self._greet()
        except _AnsweredError as refused:
            self.close()
            raise refused.error from None
        except BaseException:
            self.close()
            raise

    def _greet(self) -> None:
        kind, payload = self._result()
        if kind is not Kind.HELLO:
            raise self._stop("no greeting")
        self._kind, self._label, self._uuid, journal = wire.decode_text(payload, 4)
        states: dict[str, Journal] = {state: state for state in get_args(Journal)}
        if self._kind not in SUPPORTED or journal not in states:
            raise self._stop("an unknown kind of file system")
        self._journal = states[journal]

    def _result(self) -> tuple[Kind, bytes]:
        """The next frame that is not a request for blocks; those are served on the way."""
        while True:
            code, length = struct.unpack(wire.HEADER, self._exactly(struct.calcsize(wire.HEADER)))
            if length > wire.MAX_FRAME_BYTES or code not in set(Kind):
                raise self._stop("a frame too large")
            kind, payload = Kind(code), self._exactly(length)
            if kind is Kind.BLOCKS:
                self._serve(payload)
                continue
            self._heard()
            if kind is Kind.ERROR:
                word, sentence = wire.decode_text(payload, 2)
                sentence = wire.printable(sentence)
                if word == NotFoundInPointError.code:
                    raise _AnsweredError(NotFoundInPointError(sentence))
                raise _AnsweredError(UnsupportedFormatError(sentence))
            return kind, payload

    def _serve(self, payload: bytes) -> None:
        if len(payload) != 12:
            raise self._stop("a malformed request for blocks")
        offset, length = struct.unpack("<QI", payload)
        if length > wire.MAX_READ_BYTES or offset + length > self._reader.size_bytes:
            raise self._stop("a request for blocks outside the image")
        self._send(Kind.ANSWER, self._reader.read(offset, length))

    def _exactly(self, length: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < length:
            piece = self._waited(socket.socket.recv, length - len(pieces))
            if not piece:
                raise self._ended()
            pieces += piece
        return bytes(pieces)

    def _send(self, kind: Kind, payload: bytes) -> None:
        left = memoryview(struct.pack(wire.HEADER, kind, len(payload)) + payload)
        while left:
            left = left[self._waited(socket.socket.send, left) :]

    def _waited(self, act: Callable[..., A], argument: object) -> A:
        """What one wait on the child's channel gives; it counts against its patience."""
        while True:
            left = self._limits.patience_seconds - self._silent_seconds
            if left <= 0:
                left = self._owed()
            if self._socket is None or left <= 0:
                raise self._impatient()
            began = time.monotonic()
            self._socket.settimeout(left)
            try:
                return act(self._socket, argument)
            except TimeoutError:
                continue
            except OSError:
                raise self._ended() from None
            finally:
                self._silent_seconds += time.monotonic() - began

    def _owed(self) -> float:
        """Seconds that the child may still have, its patience being over, because it was not let run."""
        patience = self._limits.patience_seconds
        if self._process is None or self._silent_seconds > _STARVED_PATIENCES * patience:
            return 0.0
        running, used = _processor_use(self._process.pid)
        return max(0.0, patience - (used - self._used_seconds)) if running else 0.0

    def _heard(self) -> None:
        """A result came: the child's patience begins anew."""
        self._silent_seconds = 0.0
        if self._process is not None:
            self._used_seconds = _processor_use(self._process.pid)[1]

    def _impatient(self) -> AtollError:
        self.close()
        return UnsupportedFormatError(
            f"The parser of the {self._detected} file system had no result for"
            f" {self._limits.patience_seconds:g} s and was stopped; the file system is damaged or"
            " hostile: restore the whole disk instead."
        )

    def _ended(self) -> AtollError:
        code = None if self._process is None else self._process.wait()
        self.close()
        return ParserEndedError(
            f"The parser of the {self._detected} file system ended unexpectedly (status {code});"
            " the file system is damaged, or this machine cannot run the parser:"
            " restore the whole disk instead."
        )

    def _stop(self, what: str) -> AtollError:
        self.close()
        return wire.distrust(what)


def _processor_use(process: int) -> tuple[bool, float]:
    """Whether a process runs or wants to, and the processor seconds it has had (proc(5), stat)."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False, 0.0
    fields = text.rpartition(")")[2].split()
    return fields[0] == "R", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _AnsweredError(Exception):
    """The child refused a command in good order and can take the next."""

    def __init__(self, error: AtollError) -> None:
        super().__init__(str(error))
        self.error = error
