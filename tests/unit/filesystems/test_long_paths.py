"""Paths and attributes that a guest's user can make longer than any record may be."""

import os
from collections.abc import Iterator

import pytest

from atoll.filesystems import parser, wire
from atoll.filesystems.interface import Data, Entry, EntryKind, Fault
from atoll.filesystems.tree import walk
from atoll.filesystems.wire import Kind
from atoll.model.errors import UnsupportedFormatError

LEVELS = 300
NAME = b"\xff" * 255


class Nested:
    """Directories in one another, inode 2 to LEVELS; the last but one has many names."""

    kind, label, uuid, journal = "ext4", "", "", "clean"
    root = 2

    def __init__(self, siblings_at: int = 0, xattrs: tuple[tuple[str, bytes], ...] = ()) -> None:
        self._siblings_at = siblings_at
        self._xattrs = xattrs

    def entry(self, inode: int, path: str) -> Entry:
        kind = EntryKind.DIRECTORY if inode <= LEVELS else EntryKind.FILE
        return Entry(path, kind, 0, 0o755, 0, 0, 0, 0, 0, 1, inode)

    def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
        if inode == self._siblings_at:
            for number in range(500):
                yield b"%03d" % number + NAME[:200], 1000 + number
        if inode < LEVELS:
            yield NAME, inode + 1

    def content(self, inode: int) -> Iterator[Data]:
        return iter(())

    def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
        return self._xattrs


class Frames:
    """What the parent receives, taken as the session takes it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.faults: list[Fault] = []

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        assert len(payload) <= wire.MAX_FRAME_BYTES
        match kind:
            case Kind.ENTRIES:
                self.entries += wire.decode_entries(payload)
            case Kind.FAULT:
                self.faults.append(wire.decode_fault(payload))
            case _:
                assert kind is Kind.END


@pytest.mark.parametrize("verb", ["walk", "export"])
def test_a_path_too_long_is_one_fault(verb: str) -> None:
    frames = Frames()
    parser._answer(frames, Nested(siblings_at=100), verb, "/")
    (fault,) = frames.faults
    assert "longer than 65536 characters" in fault.reason
    assert fault.path == max((entry.path for entry in frames.entries), key=len)
    files = [entry for entry in frames.entries if entry.kind is EntryKind.FILE]
    assert len(files) == 500


def test_what_is_beyond_is_not_entered() -> None:
    asked: list[int] = []

    class Watched(Nested):
        def names(self, inode: int) -> Iterator[tuple[bytes, int]]:
            asked.append(inode)
            return super().names(inode)

    records = list(walk(Watched(), 2, "/", deep=True))
    assert isinstance(records[-1], Fault)
    assert len(asked) == len(records) == 257
    longest = max(len(record.path) for record in records)
    assert longest <= wire.MAX_TEXT_CHARACTERS < longest + 256


def test_many_long_paths_fit_their_frames() -> None:
    frames = Frames()
    parser._answer(frames, Nested(siblings_at=255), "walk", "/")
    files = [entry for entry in frames.entries if entry.kind is EntryKind.FILE]
    assert len(files) == 500
    assert os.fsencode(files[0].path).startswith(b"/\xff")


def test_attributes_too_large_together_cost_the_attributes_alone() -> None:
    xattrs = tuple((f"user.{number}", bytes(64 << 10)) for number in range(100))
    frames = Frames()
    parser._answer(frames, Nested(xattrs=xattrs), "xattrs", "/")
    (entry,), (fault,) = frames.entries, frames.faults
    assert entry.xattrs == ()
    assert fault == Fault("/", "the attributes are too large together", True)


def test_damaged_attributes_are_told_from_a_damaged_file() -> None:
    class Damaged(Nested):
        def xattrs(self, inode: int) -> tuple[tuple[str, bytes], ...]:
            raise UnsupportedFormatError("no")

    frames = Frames()
    parser._answer(frames, Damaged(), "export", "/" + "/".join(["\udcff" * 255] * 256))
    assert Fault(frames.entries[0].path, "no", attributes_only=True) in frames.faults


def test_a_kind_that_is_no_text_is_distrusted() -> None:
    row = wire.encode_entry(Nested().entry(2, "/"))
    row[1] = []
    with pytest.raises(UnsupportedFormatError, match="restore the whole disk"):
        wire._entry(row)
