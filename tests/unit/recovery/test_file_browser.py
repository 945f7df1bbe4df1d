"""How many parsers a browser keeps, and what a restore says is missing; the parser is a fake."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from atoll.blocks.partitions import Partition
from atoll.filesystems.detect import Content
from atoll.filesystems.interface import Data, Entry, EntryKind, Fault
from atoll.guestfiles import browser as guestfiles
from atoll.guestfiles.browser import FileBrowser
from atoll.guestfiles.mounts import GuestVolume
from atoll.model.errors import NotFoundInPointError, UnsupportedFormatError
from atoll.recovery.files import restore_files

FSTAB = b"UUID=u1 / ext4 x\nUUID=u2 /var ext4 x\n"


def entry(path: str, kind: EntryKind = EntryKind.FILE, inode: int = 12, nlink: int = 1) -> Entry:
    mode = 0o755 if kind is EntryKind.DIRECTORY else 0o644
    return Entry(path, kind, 4, mode, os.geteuid(), os.getegid(), 0, 0, 0, nlink, inode)


def directory(path: str, inode: int = 2) -> Entry:
    return entry(path, EntryKind.DIRECTORY, inode)


class FakeSession:
    """A volume whose parser says what the test wants."""

    live = 0
    most = 0
    journal = "clean"

    def __init__(self, records: list[Entry | Data | Fault], fstab: bytes | None) -> None:
        self._records = records
        self._fstab = fstab
        self._open = True
        self._busy = False
        FakeSession.live += 1
        FakeSession.most = max(FakeSession.most, FakeSession.live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        FakeSession.live -= self._open
        self._open = False

    def stat(self, path: str) -> Entry:
        assert self._open
        assert not self._busy
        if path == "/etc/fstab" and self._fstab is not None:
            return Entry(path, EntryKind.FILE, len(self._fstab), 0o644, 0, 0, 0, 0, 0, 1, 99)
        for record in self._records:
            if isinstance(record, Entry) and record.path == path:
                return record
        raise NotFoundInPointError(path)

    def list(self, path: str, recursive: bool = False) -> Iterator[Entry]:
        self._busy = True
        for record in self._records:
            if isinstance(record, Entry) and record.path != path:
                yield record
        self._busy = False

    def read(self, path: str) -> Iterator[Data]:
        assert self._open
        yield Data(0, self._fstab if path == "/etc/fstab" and self._fstab else b"late")

    def export(self, path: str) -> Iterator[Entry | Data | Fault]:
        yield from self._records


Guest = dict[int, tuple[list[Entry | Data | Fault], bytes | None]]


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    """Volumes by number, their records and fstab; numbers 100 and more hold XFS."""
    volumes: Guest = {}
    FakeSession.live = FakeSession.most = 0

    def find(_: object) -> list[GuestVolume]:
        return [
            GuestVolume(
                1,
                "disk",
                Partition(number, 0, 1, "linux", ""),
                "",
                number,
                Content("ext4" if number < 100 else "zfs", "", f"u{number}"),
            )
            for number in volumes
        ]

    monkeypatch.setattr(guestfiles, "find_volumes", find)
    monkeypatch.setattr(guestfiles, "open_filesystem", lambda number: FakeSession(*volumes[number]))
    return volumes


def test_looking_for_the_root_keeps_no_parser(guest: Guest) -> None:
    for number in range(1, 100):
        guest[number] = ([directory("/")], FSTAB)
    with FileBrowser([]) as browser:
        assert (FakeSession.live, FakeSession.most) == (0, 1)
        assert browser.mounts.volumes["/"].address == "disk1:part1"


def test_only_so_many_volumes_are_kept_open(guest: Guest) -> None:
    for number in range(1, 50):
        guest[number] = ([directory("/"), directory("/d", 3)], None)
    with FileBrowser([]) as browser:
        for number in range(1, 33):
            browser.stat(f"disk1:part{number}:/d")
        with pytest.raises(UnsupportedFormatError, match="32 volumes of this VM are open"):
            browser.stat("disk1:part33:/d")
        assert FakeSession.live == FakeSession.most == 32
        browser.stat("disk1:part32:/d")
    assert FakeSession.live == 0


def test_a_guest_with_more_mounts_comes_back_whole(guest: Guest, tmp_path: Path) -> None:
    fstab = b"".join(b"UUID=u%d /m%d ext4 x\n" % (n, n) for n in range(2, 50))
    guest[1] = ([directory("/")], b"UUID=u1 / ext4 x\n" + fstab)
    for number in range(2, 50):
        guest[number] = ([directory("/"), entry("/f"), Data(0, b"abcd")], None)
    with FileBrowser([]) as browser:
        assert len([e for e in browser.list("/", recursive=True) if e.name == "f"]) == 48
        report = restore_files(browser, "/", tmp_path)
    assert (report.files, report.missing) == (48, 0)
    assert FakeSession.most == 2


def test_one_volume_mounted_twice_can_be_listed(guest: Guest) -> None:
    guest[1] = (
        [directory("/"), directory("/again", 3)],
        b"UUID=u1 / ext4 x\nUUID=u1 /again ext4 x\n",
    )
    with FileBrowser([]) as browser:
        (again,) = browser.list("/")
        assert (again.path, again.inode) == ("/again", 2)


def test_what_is_missing_is_counted(guest: Guest, tmp_path: Path) -> None:
    guest[1] = (
        [
            directory("/"),
            Fault("/", "attributes", attributes_only=True),
            entry("/good", inode=20),
            Fault("/good", "attributes", attributes_only=True),
            Data(0, b"good"),
            entry("/torn", inode=21, nlink=2),
            Data(0, b"t"),
            Fault("/torn", "unreadable"),  # 1
            entry("/torn2", inode=21, nlink=2),  # 2: its other name
            entry("/good", inode=22),  # 3: the name is taken
            Fault("/good", "unreadable too"),
            directory("/dir", 23),
            Fault("/dir", "its names are unreadable"),  # 4
            Fault("/nothing", "no inode"),  # 5
            Fault("/var/below", "hidden by a mount"),
            Fault("/var", "hidden by a mount"),
        ],
        FSTAB + b"UUID=u100 /zfs zfs x\nUUID=gone /gone ext4 x\n",  # 6: the volume of ZFS
    )
    guest[2] = ([directory("/"), entry("/log"), Data(0, b"logs")], None)
    guest[100] = ([], None)
    with FileBrowser([]) as browser:
        report = restore_files(browser, "/", tmp_path)
    assert (tmp_path / "good").read_bytes() == b"good"
    assert report.files == 2
    assert report.missing == 6
    assert "/good (attributes): not restored. attributes" in report.not_kept
    assert not any("hidden" in note for note in report.not_kept)


def test_content_that_came_with_a_hidden_name_is_fetched(guest: Guest, tmp_path: Path) -> None:
    guest[1] = (
        [
            directory("/"),
            directory("/var", 3),
            entry("/var/hidden", inode=20, nlink=3),
            Data(0, b"late"),
            entry("/one", inode=20, nlink=3),
            entry("/two", inode=20, nlink=3),
            entry("/other", inode=21),
            Data(0, b"abcd"),
        ],
        FSTAB,
    )
    guest[2] = ([directory("/")], None)
    with FileBrowser([]) as browser:
        report = restore_files(browser, "/", tmp_path)
    assert (tmp_path / "one").read_bytes() == b"late"
    assert os.path.samefile(tmp_path / "one", tmp_path / "two")
    assert (report.files, report.missing) == (3, 0)
