"""Hostile entries cannot lead a restore out of its target."""

import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.filesystems.interface import Entry, EntryKind
from atoll.model.errors import RestoreTargetError
from atoll.recovery.tree_writer import TreeWriter


def entry(kind: EntryKind, inode: int = 12, nlink: int = 1, **more: object) -> Entry:
    me = {"uid": os.geteuid(), "gid": os.getegid()}
    values = {"size": 4, "mode": 0o755, "mtime_ns": 0, "atime_ns": 0, "ctime_ns": 0}
    return Entry(path="/x", kind=kind, nlink=nlink, inode=inode, **(values | me | more))


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
        assert writer.missing == 4
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
        assert writer.missing == 2
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
        assert writer.missing == 1
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


def test_a_device_node_is_left_out_and_not_missing(tmp_path: Path) -> None:
    with TreeWriter(tmp_path) as writer:
        assert not writer.add("sda", entry(EntryKind.BLOCK, device=(8, 0)))
        assert (len(writer.not_kept), writer.missing) == (1, 0)


CAPABILITY = ("security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))


def privileged(target: Path, keep: bool) -> list[str]:
    """Restore a file with every privilege and a directory of a group; the notes."""
    with TreeWriter(target, keep_privileges=keep) as writer:
        writer.add("group", entry(EntryKind.DIRECTORY, mode=0o2775))
        xattrs = (CAPABILITY,) if os.geteuid() == 0 else ()
        writer.add("group/su", entry(EntryKind.FILE, size=0, mode=0o6755, xattrs=xattrs))
        writer.add("group/plain", entry(EntryKind.FILE, inode=13, size=0))
        writer.settle(overwrite=False)
        assert writer.missing == 0
        return writer.not_kept


def test_privileges_that_a_guest_chose_are_left_off(tmp_path: Path) -> None:
    (note,) = privileged(tmp_path, keep=False)
    assert note.startswith("group/su: set-user-ID, set-group-ID")
    assert "--keep-privileges" in note
    su = tmp_path / "group" / "su"
    assert stat.S_IMODE(su.stat().st_mode) == 0o755
    assert CAPABILITY[0] not in os.listxattr(su)
    assert stat.S_IMODE((tmp_path / "group").stat().st_mode) == 0o2775


def test_privileges_are_kept_when_that_is_asked_for(tmp_path: Path) -> None:
    assert privileged(tmp_path, keep=True) == []
    su = tmp_path / "group" / "su"
    assert stat.S_IMODE(su.stat().st_mode) == 0o6755
    if os.geteuid() == 0:
        assert os.getxattr(su, CAPABILITY[0]) == CAPABILITY[1]


@pytest.fixture
def ordinary() -> Iterator[Path]:
    """A directory of a user without privileges, who we are meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)
            os.setegid(0)


def read_only(writer: TreeWriter) -> None:
    """Add directories that nobody may write into."""
    for number, path in enumerate(("top", "top/middle", "top/middle/low")):
        writer.add(path, entry(EntryKind.DIRECTORY, inode=20 + number, mode=0o550))
        writer.add(f"{path}/f", entry(EntryKind.FILE, inode=30 + number, size=0, mode=0o400))


def modes(top: Path) -> list[int]:
    """Modes of what `read_only` added."""
    found = [top / path for path in ("top", "top/middle", "top/middle/low", "top/middle/low/f")]
    return [stat.S_IMODE(path.stat().st_mode) for path in found]


def test_read_only_directories_come_back_without_root(ordinary: Path) -> None:
    with TreeWriter(ordinary) as writer:
        read_only(writer)
        writer.settle(overwrite=False)
        assert writer.not_kept == []
    assert os.listdir(ordinary) == ["top"]
    assert modes(ordinary) == [0o550, 0o550, 0o550, 0o400]


def test_read_only_directories_come_back_into_one_that_exists(ordinary: Path) -> None:
    (ordinary / "top").mkdir()
    (ordinary / "top" / "mine").touch()
    with TreeWriter(ordinary) as writer:
        read_only(writer)
        writer.settle(overwrite=True)
    assert sorted(os.listdir(ordinary / "top")) == ["f", "middle", "mine"]
    assert modes(ordinary) == [0o550, 0o550, 0o550, 0o400]


def test_read_only_directories_that_cannot_be_placed_are_removed(ordinary: Path) -> None:
    with TreeWriter(ordinary) as writer:
        read_only(writer)
        (ordinary / "top").touch()
        with pytest.raises(RestoreTargetError, match="exists already"):
            writer.settle(overwrite=False)
        (ordinary / "top").unlink()
    assert os.listdir(ordinary) == []


def test_read_only_leftovers_are_cleared_without_root(ordinary: Path) -> None:
    left = ordinary / ".atoll-restore-0123456789ab"
    (left / "d" / "e").mkdir(parents=True)
    (left / "d" / "e").chmod(0o000)
    (left / "d").chmod(0o500)
    with TreeWriter(ordinary):
        assert not left.exists()


def test_a_tree_too_deep_to_walk_down_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    with TreeWriter(tmp_path / "target") as writer:
        path = "d"
        for number in range(1500):
            assert writer.add(path, entry(EntryKind.DIRECTORY, inode=100 + number))
            path += "/d"
        writer.add(path, entry(EntryKind.SYMLINK, target=str(outside)))
    assert os.listdir(tmp_path / "target") == []
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755
