"""What guests name and say about their files, in archives that others unpack."""

import io
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atoll.filesystems.interface import Entry, EntryKind
from atoll.recovery.archives import ArchiveWriter, TarWriter, ZipWriter

DIRECTORY, FILE, SYMLINK = EntryKind.DIRECTORY, EntryKind.FILE, EntryKind.SYMLINK


def entry(kind: EntryKind = FILE, size: int = 0, **more: Any) -> Entry:
    made = Entry("/x", kind, size, 0o644, 0, 0, 0, 0, 0, 1, 12, allocated_bytes=size)
    return replace(made, **more)


class Pipe(io.RawIOBase):
    """An output that cannot go back."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.content += content
        return len(content)


@pytest.fixture(params=[TarWriter, ZipWriter])
def writer(request: pytest.FixtureRequest) -> ArchiveWriter:
    out = Pipe()
    made: ArchiveWriter = request.param(out)
    made.out = out  # type: ignore[attr-defined]
    return made


def content(writer: Any) -> dict[str, bytes | None]:
    """Names and bytes, None for what has none."""
    writer.end()
    raw = io.BytesIO(bytes(writer.out.content))
    if isinstance(writer, TarWriter):
        with tarfile.open(fileobj=raw) as tar:
            return {
                member.name: file.read() if (file := tar.extractfile(member)) else None
                for member in tar.getmembers()
                if not member.issym()
            }
    with zipfile.ZipFile(raw) as archive:
        assert archive.testzip() is None
        return {
            info.filename.rstrip("/"): None if info.is_dir() else archive.read(info)
            for info in archive.infolist()
            if info.external_attr >> 28 != 0o12
        }


def test_nothing_leads_out(writer: ArchiveWriter) -> None:
    assert writer.add("home", entry(DIRECTORY))
    assert writer.add("home/link", entry(SYMLINK, target="/etc"))
    for path in (
        "/etc/passwd",
        "../x",
        "home/..",
        "home/.",
        "home//x",
        "home/link/passwd",
        "home/link",
        "elsewhere/x",
        "",
    ):
        assert not writer.add(path, entry(size=3)), path
        writer.write(0, b"bad")
    for kind in (SYMLINK, FILE):
        assert not writer.add("home", entry(kind, target="/"))
    assert writer.add("home/ok", entry(size=2))
    writer.write(0, b"ok")
    assert content(writer) == {"home": None, "home/ok": b"ok"}
    assert writer.missing == 11
    assert (writer.files, writer.bytes) == (1, 2)


def test_a_first_name_does_not_become_a_symlink() -> None:
    out = Pipe()
    tar = TarWriter(out)
    assert tar.add("f", entry(nlink=2))
    assert not tar.add("f", entry(SYMLINK, target="/etc/shadow"))
    assert tar.add("g", entry(nlink=2))
    tar.end()
    with tarfile.open(fileobj=io.BytesIO(bytes(out.content))) as archive:
        assert [(each.name, each.type) for each in archive] == [
            ("f", tarfile.REGTYPE),
            ("g", tarfile.LNKTYPE),
        ]


def test_content_that_is_not_in_order_or_too_long(writer: ArchiveWriter) -> None:
    writer.add("f", entry(size=10))
    writer.write(2, b"abc")
    writer.write(3, b"xyz")
    writer.write(8, b"longer than it says")
    writer.write(50, b"beyond")
    writer.add("g", entry(size=0))
    writer.write(0, b"none")
    assert content(writer) == {"f": b"\0\0abcz\0\0lo", "g": b""}


def test_damage_is_told_and_the_archive_goes_on(writer: ArchiveWriter) -> None:
    writer.add("f", entry(size=6, nlink=2 if writer.links else 1))
    writer.write(0, b"abc")
    writer.abandon_file()
    writer.add("after", entry(size=1, inode=13))
    writer.write(0, b"!")
    assert content(writer) == {"f": b"abc\0\0\0", "after": b"!"}
    assert (writer.missing, writer.files, writer.restored) == (1, 1, 1)
    assert any("with zeros" in note for note in writer.not_kept)


def test_a_name_of_a_damaged_file_is_missing_too() -> None:
    tar = TarWriter(Pipe())
    tar.add("f", entry(size=6, nlink=2))
    tar.abandon_file()
    assert not tar.add("g", entry(size=6, nlink=2))
    assert tar.missing == 2


def test_endless_holes_are_not_written(writer: ArchiveWriter) -> None:
    assert not writer.add("f", entry(size=1 << 50, allocated_bytes=4096))
    assert content(writer) == {}
    assert "restore it into a directory" in writer.not_kept[0]


@pytest.mark.parametrize("keep", [False, True])
def test_privileges_only_when_asked_for(keep: bool) -> None:
    held = (("security.capability", b"\1\0\0\2"), ("user.x", b"\xff\0="), ("user.a=b", b""))
    out = Pipe()
    tar = TarWriter(out, keep)
    tar.add("su", entry(mode=0o6755, xattrs=held))
    tar.add("shared", entry(DIRECTORY, mode=0o2775))
    tar.end()
    with tarfile.open(fileobj=io.BytesIO(bytes(out.content)), errors="surrogateescape") as archive:
        su, shared = archive.getmembers()
    assert su.mode == (0o6755 if keep else 0o755)
    assert shared.mode == 0o2775
    assert ("SCHILY.xattr.security.capability" in su.pax_headers) == keep
    assert "SCHILY.xattr.user.x" in su.pax_headers
    assert len(tar.not_kept) == (1 if keep else 3)


def test_times_and_numbers_beyond_the_old_format(tmp_path: Path) -> None:
    """GNU tar takes them, and names of bytes that are no text."""
    out = Pipe()
    tar = TarWriter(out)
    times = {"a": -1_500_000_000, "b": 4_354_819_200_000_000_001, "c": 1_600_000_000_123_456_789}
    for name, when in times.items():
        path = f"{name}\udcff" + "x" * 150
        tar.add(path, entry(mtime_ns=when, uid=3_000_000_000, gid=4_000_000_000, size=1))
    tar.end()
    listed = subprocess.run(
        ["tar", "--numeric-owner", "--full-time", "--utc", "-tvf", "-"],
        input=bytes(out.content),
        check=True,
        capture_output=True,
    ).stdout.splitlines()
    assert [line.split()[1] for line in listed] == [b"3000000000/4000000000"] * 3
    assert all(line.endswith(rb"\377" + b"x" * 150) for line in listed)
    unpack = ["tar", "--no-same-owner", "-xf", "-", "-C", tmp_path]
    subprocess.run(unpack, input=bytes(out.content), check=True)
    found = {path.name[0]: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert found == times


def test_names_for_windows() -> None:
    out = Pipe()
    made = ZipWriter(out)
    names = [r"..\..\evil", "C:x", "a%5Cb", "a\\b", "ü\udcff", "täglich", "nl\n"]
    told = [made.add(name, entry()) for name in names]
    assert told == [True, True, True, False, True, True, True]
    made.end()
    with zipfile.ZipFile(io.BytesIO(bytes(out.content))) as archive:
        assert archive.namelist() == [
            "..%5C..%5Cevil",
            "C%3Ax",
            "a%5Cb",
            "ü%FF",
            "täglich",
            "nl%0A",
        ]
    assert made.missing == 1


def test_times_that_zip_cannot_say() -> None:
    made = ZipWriter(Pipe())
    made.add("f", entry(mtime_ns=0))
    assert any("its time" in note for note in made.not_kept)
