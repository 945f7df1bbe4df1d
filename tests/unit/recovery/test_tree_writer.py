"""Hostile entries cannot lead a restore out of its target."""

import os
import stat
from pathlib import Path

import pytest

from atoll.filesystems.interface import Entry, EntryKind
from atoll.model.errors import RestoreTargetError
from atoll.recovery.tree_writer import TreeWriter


def entry(kind: EntryKind, inode: int = 12, nlink: int = 1, **more: object) -> Entry:
    me = {"uid": os.geteuid(), "gid": os.getegid()}
    values = {"size": 4, "mode": 0o755, "mtime_ns": 0, "atime_ns": 0, "ctime_ns": 0}
    return Entry(path="/x", kind=kind, nlink=nlink, inode=inode, **(values | me | more))  # type: ignore[arg-type]


def test_nothing_is_written_through_a_symlink(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    with TreeWriter(tmp_path / "target") as writer:
        assert writer.add("a", entry(EntryKind.SYMLINK, target=str(outside)))
        assert not writer.add("a/evil", entry(EntryKind.FILE))
        writer.write(0, b"evil")
        assert not writer.add("a", entry(EntryKind.DIRECTORY))
        assert not writer.add("a/evil", entry(EntryKind.FILE))
        assert not writer.add("a", entry(EntryKind.FILE))
        writer.settle(overwrite=False)
        assert writer.files == 0
        assert len(writer.not_kept) == 4
    assert os.listdir(outside) == []
    assert os.readlink(tmp_path / "target" / "a") == str(outside)


def test_a_name_met_twice_keeps_the_first(tmp_path: Path) -> None:
    with TreeWriter(tmp_path / "target") as writer:
        writer.add("f", entry(EntryKind.FILE, size=5))
        writer.write(0, b"first")
        assert not writer.add("f", entry(EntryKind.FILE, inode=13, size=6))
        writer.write(0, b"second")
        writer.settle(overwrite=False)
    assert (tmp_path / "target" / "f").read_bytes() == b"first"


def test_an_abandoned_file_takes_its_other_names_along(tmp_path: Path) -> None:
    with TreeWriter(tmp_path / "target") as writer:
        writer.add("a", entry(EntryKind.FILE, nlink=2))
        writer.write(0, b"ab")
        writer.abandon_file()
        assert not writer.add("b", entry(EntryKind.FILE, nlink=2))
        assert writer.restored == 0
        writer.settle(overwrite=False)
        assert "b: not restored" in writer.not_kept[0]
    assert os.listdir(tmp_path / "target") == []


def test_an_impossible_size_costs_that_file_alone(tmp_path: Path) -> None:
    with TreeWriter(tmp_path / "target") as writer:
        writer.add("huge", entry(EntryKind.FILE, size=(1 << 63) - 1))
        writer.add("good", entry(EntryKind.FILE, inode=13))
        writer.write(0, b"good")
        writer.settle(overwrite=False)
        assert writer.files == 1
        assert writer.not_kept == ["huge: not restored (File too large)"]
    assert os.listdir(tmp_path / "target") == ["good"]


def test_nothing_remains_when_it_is_left_early(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), TreeWriter(tmp_path / "target") as writer:
        writer.add("d", entry(EntryKind.DIRECTORY))
        writer.add("d/f", entry(EntryKind.FILE))
        writer.write(0, b"half")
        staging = next((tmp_path / "target").iterdir())
        assert stat.S_IMODE(staging.stat().st_mode) == 0o700
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "target") == []


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with TreeWriter(tmp_path) as writer:
        writer.add("f", entry(EntryKind.FILE))
        writer.write(0, b"ours")
        (tmp_path / "f").write_text("theirs")
        with pytest.raises(RestoreTargetError, match="exists already"):
            writer.settle(overwrite=False)
    assert (tmp_path / "f").read_text() == "theirs"


def test_two_restores_into_one_directory_leave_each_other_alone(tmp_path: Path) -> None:
    with TreeWriter(tmp_path) as first:
        first.add("a", entry(EntryKind.FILE, size=0))
        with TreeWriter(tmp_path) as second:
            second.add("b", entry(EntryKind.FILE, size=0))
            second.settle(overwrite=False)
        first.settle(overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
