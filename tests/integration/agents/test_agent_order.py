"""A file system inside another one's file freezes first, or the freeze would wait for itself."""

import os

import pytest
from private_guest import mounted, run

from atoll_agent.clock import Deadline
from atoll_agent.errors import HoldError
from atoll_agent.guard import Guard
from atoll_agent.mounts import device_name, freezable, freeze_order, read_mounts, select_mounts

pytestmark = pytest.mark.needs_root


def test_stacked_file_systems_freeze_from_the_top(tmp_path):
    outer_image = tmp_path / "outer.img"
    outer_image.touch()
    os.truncate(outer_image, 400 << 20)
    run("mkfs.ext4", "-q", "-F", outer_image)
    with mounted(outer_image, tmp_path / "a/much/deeper/path") as outer:
        inner_image = outer / "inner.img"
        inner_image.touch()
        os.truncate(inner_image, 200 << 20)
        run("mkfs.btrfs", "-q", inner_image)
        with mounted(inner_image, tmp_path / "i") as inner:
            mounts = read_mounts()
            ours = select_mounts(freezable(mounts), [str(outer), str(inner)], [])
            order = freeze_order(ours, mounts)
            assert [mount.mountpoint for mount in order] == [str(inner), str(outer)]
            assert all(device_name(mount).startswith("loop") for mount in order)
            # Dirty data above and below: the inner sync must get through the outer one.
            (inner / "data").write_bytes(os.urandom(4 << 20))
            endings = []
            guard = Guard(order, [], 60)
            assert guard.begin(Deadline(60), 60, endings.append)
            assert guard.freeze(Deadline(60)) > 0
            ending = guard.thaw()
            assert (ending.held, ending.reason, endings) == (True, "", [])
            (inner / "data").write_bytes(b"writable again")


def test_a_freeze_that_fails_half_way_thaws_the_rest(tmp_path):
    images = []
    for name in ("one", "two"):
        image = tmp_path / f"{name}.img"
        image.touch()
        os.truncate(image, 64 << 20)
        run("mkfs.ext4", "-q", "-F", image)
        images.append(image)
    with mounted(images[0], tmp_path / "one") as one, mounted(images[1], tmp_path / "two") as two:
        mounts = [m for m in read_mounts() if m.mountpoint in {str(one), str(two)}]
        mounts.sort(key=lambda mount: mount.mountpoint)
        run("fsfreeze", "-f", two)
        guard = Guard(mounts, [], 60)
        assert guard.begin(Deadline(60), 60, lambda ending: None)
        with pytest.raises(HoldError, match=f"{two} could not be frozen: it is already frozen"):
            guard.freeze(Deadline(60))
        (one / "free").write_bytes(b"x")
        run("fsfreeze", "-u", two)
        (two / "free").write_bytes(b"x")
