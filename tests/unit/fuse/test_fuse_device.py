"""Where a tree may be mounted, without mounting one."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.fuse import device
from atoll.model.errors import MountError


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda top: (top / "something").touch(), "is not empty"),
        (lambda top: top.rmdir(), "make an empty directory"),
        (lambda top: (top.rmdir(), top.touch()), "is not a directory"),
        (lambda top: top.chmod(0o777), "can be written by others"),
        (lambda top: top.chmod(0o775), "can be written by others"),
    ],
)
def test_bad_places_are_refused(
    tmp_path: Path, prepare: Callable[[Path], object], said: str
) -> None:
    top = tmp_path / "top"
    top.mkdir(mode=0o755)
    device.check(top)
    prepare(top)
    with pytest.raises(MountError, match=said):
        device.check(top)


def test_what_is_not_ours_is_not_unmounted(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="No tree of Atoll"):
        device.unmount(tmp_path)
    with pytest.raises(MountError, match="No tree of Atoll"):
        device.unmount(Path("/proc"))


def test_proc_is_no_mount_of_ours() -> None:
    assert stat.S_ISDIR(Path("/proc").stat().st_mode)
    assert Path("/proc") not in device.mounts()
