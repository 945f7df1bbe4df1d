"""An export's directory: claimed, finished, cleared, and never half of it called whole."""

import errno
import os
from pathlib import Path

import pytest

from atoll.cli.vcb import place
from atoll.model.errors import MountError, RestoreTargetError


def exported(directory: Path) -> None:
    with place.claimed(directory):
        (directory / "disk.vmdk").write_bytes(b"x")
        place.finish(directory, "type\n", "catalog\n")


def test_an_export_is_finished_and_cleared_again_and_again(tmp_path: Path) -> None:
    target = tmp_path / "db1"
    exported(target)
    assert sorted(os.listdir(target)) == [".atoll-vcb", "catalog", "disk.vmdk", "unmount.dat"]
    with pytest.raises(RestoreTargetError, match=f"holds an export; .*vcbMounter -U {target}"):
        exported(target)
    assert place.clear(target)
    assert not target.exists()
    assert not place.clear(target)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "db1"
    with (
        pytest.raises(RestoreTargetError, match=r"No space left on device.*nothing was left"),
        place.claimed(target),
    ):
        (target / "disk.vmdk").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), place.claimed(tmp_path / "db1"):
        (tmp_path / "db1/disk.vmdk").write_bytes(b"x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_running_export_is_not_cleared(tmp_path: Path) -> None:
    with place.claimed(tmp_path / "db1"), pytest.raises(MountError, match="being exported to"):
        place.clear(tmp_path / "db1")


@pytest.mark.parametrize("left", [(".atoll-vcb",), (".atoll-vcb", "disk.vmdk"), ()])
def test_what_a_killed_export_left_is_cleared(tmp_path: Path, left: tuple[str, ...]) -> None:
    target = tmp_path / "db1"
    target.mkdir()
    for name in left:
        (target / name).touch()
    if left:
        with pytest.raises(RestoreTargetError, match="holds an unfinished export"):
            exported(target)
    assert place.clear(target)
    assert not target.exists()


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    other = tmp_path / "home"
    other.mkdir()
    (other / "letter").touch()
    with pytest.raises(MountError, match="no export of vcbMounter; nothing in it was touched"):
        place.clear(other)
    with pytest.raises(RestoreTargetError, match="exists and is not empty"):
        exported(other)
    with pytest.raises(RestoreTargetError, match="No such file or directory"):
        exported(tmp_path / "not/there")
    exported(tmp_path / "db1")
    (tmp_path / "db1/link").symlink_to(other)
    place.clear(tmp_path / "db1")
    assert os.listdir(other) == ["letter"]


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "db1").mkdir()
    exported(tmp_path / "db1")
    assert (tmp_path / "db1/unmount.dat").exists()
