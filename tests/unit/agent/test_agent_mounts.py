"""Which file systems are frozen, and in which order."""

import os

from atoll_agent.mounts import Mount, freezable, freeze_order, parse_mountinfo, select_mounts

MOUNTINFO = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid shared:2 - proc proc rw
24 22 254:16 / /var/lib/postgresql rw shared:3 - xfs /dev/vdb rw
25 22 254:1 /srv /mnt/bind rw shared:1 - ext4 /dev/vda1 rw
26 22 0:40 /@ /data\\040one rw - btrfs /dev/vdc rw
27 22 0:41 /@home /data\\040one/home rw - btrfs /dev/vdc rw
28 22 254:48 / /media ro - ext4 /dev/vdd ro
29 22 0:50 / /net rw - nfs4 server:/x rw
30 22 254:64 / /var/lib/postgresql/wal rw - ext4 /dev/vde rw
broken line
"""


def test_each_writable_block_file_system_is_found_once_at_its_shortest_path():
    found = freezable(parse_mountinfo(MOUNTINFO))
    assert [(mount.mountpoint, mount.fstype) for mount in found] == [
        ("/", "ext4"),
        ("/var/lib/postgresql", "xfs"),
        ("/data one", "btrfs"),
        ("/var/lib/postgresql/wal", "ext4"),
    ]


def test_the_root_freezes_last_and_the_deepest_first():
    mounts = freezable(parse_mountinfo(MOUNTINFO))
    order = [mount.mountpoint for mount in freeze_order(mounts, mounts)]
    assert order == ["/var/lib/postgresql/wal", "/var/lib/postgresql", "/data one", "/"]


def test_the_configuration_narrows_the_choice():
    mounts = freezable(parse_mountinfo(MOUNTINFO))
    assert [m.mountpoint for m in select_mounts(mounts, ["/", "/x"], [])] == ["/"]
    assert "/" not in [m.mountpoint for m in select_mounts(mounts, None, ["/"])]


def test_what_this_machine_says_is_understood():
    with open("/proc/self/mountinfo") as stream:
        mounts = parse_mountinfo(stream.read())
    assert "/proc" in [mount.mountpoint for mount in mounts]
    for mount in freezable(mounts):
        assert isinstance(mount, Mount)
        assert os.path.isdir(mount.mountpoint)
