"""What the lines of a guest's fstab mean."""

import pytest

from atoll.blocks.partitions import Partition
from atoll.filesystems.detect import Content
from atoll.guestfiles.mounts import GuestVolume, Mount, mount_table, parse_fstab, resolve


class Nothing:
    """A reader nobody reads."""

    size_bytes = 0


def volume(disk: int, number: int, kind: str = "ext4", **more: str) -> GuestVolume:
    content = Content(kind, more.get("label", ""), more.get("uuid", ""))
    partition = Partition(number, 0, 1, "linux", more.get("name", ""))
    return GuestVolume(
        disk, f"disk {disk}", partition, more.get("partuuid", ""), Nothing(), content
    )  # type: ignore[arg-type]


ROOT = volume(1, 1, uuid="aaaa-1", partuuid="5a0f-01")
SWAP = volume(1, 2, "swap", uuid="aaaa-2")
DATA = volume(2, 0, label="data")
LOGICAL = volume(1, 10001, name="vg-main/lv-data")
FIFTH = volume(28, 5)
ALL = [ROOT, SWAP, DATA, LOGICAL, FIFTH]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("UUID=AAAA-1", ROOT),
        ('UUID="aaaa-1"', ROOT),
        ("LABEL=data", DATA),
        ("PARTUUID=5a0f-01", ROOT),
        ("/dev/disk/by-uuid/aaaa-1", ROOT),
        ("/dev/disk/by-label/data", DATA),
        ("/dev/disk/by-partuuid/5a0f-01", ROOT),
        ("/dev/disk/by-path/pci-0", None),
        ("/dev/sda1", ROOT),
        ("/dev/vda1", ROOT),
        ("/dev/nvme0n1p1", ROOT),
        ("/dev/sdb", DATA),
        ("/dev/nvme1n1", DATA),
        ("/dev/sdab5", FIFTH),
        ("/dev/mapper/vg--main-lv--data", LOGICAL),
        ("/dev/vg-main/lv-data", LOGICAL),
        ("/dev/sdc1", None),
        ("UUID=", None),
        ("LABEL=", None),
        ("tmpfs", None),
        ("server:/export", None),
    ],
)
def test_devices(device: str, expected: GuestVolume | None) -> None:
    assert resolve(device, ALL) is expected


def test_lines() -> None:
    text = b"""
# a comment
UUID=1 / ext4 defaults 0 1
LABEL=x\t/with\\040space//inner/ ext4 defaults
/dev/sda2 none swap sw 0 0
broken line
/dev/sda3 /../../etc ext4 defaults
/dev/sda4 /bad\\000 ext4 defaults
\xff /\xff ext4 defaults
"""
    assert parse_fstab(text) == [
        Mount("UUID=1", "/"),
        Mount("LABEL=x", "/with space/inner"),
        Mount("\udcff", "/\udcff"),
    ]


def test_the_root_is_the_one_that_mounts_itself() -> None:
    other = volume(3, 1, uuid="cccc")
    tabs = {
        other.address: b"UUID=aaaa-1 / ext4 x\n",
        ROOT.address: b"UUID=aaaa-1 / ext4 x\nLABEL=data /data ext4 x\n/dev/sdz1 /gone ext4 x\n",
    }
    table = mount_table([other, *ALL], lambda v: tabs.get(v.address))
    assert table.volumes == {"/": ROOT, "/data": DATA}
    assert table.absent == {"/gone": "/dev/sdz1"}
    assert table.owner("/data/x/y") == ("/data", DATA)
    assert table.owner("/database") == ("/", ROOT)
    assert table.owner("/") == ("/", ROOT)
    assert table.below("/") == ["/data"]
    assert table.below("/dat") == []
    assert table.below("/data") == []


def test_an_fstab_that_never_names_its_own_root_still_marks_it() -> None:
    table = mount_table(ALL, lambda v: b"LABEL=data /data ext4 x\n" if v is ROOT else None)
    assert table.volumes == {"/": ROOT, "/data": DATA}


def test_no_fstab_and_several_file_systems_is_no_root() -> None:
    assert mount_table(ALL, lambda _: None).volumes == {}
    assert mount_table([ROOT, SWAP], lambda _: None).volumes == {"/": ROOT}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("defaults", None),
        ("compress=zstd,subvol=@home", "/@home"),
        ("subvol=/@/.snapshots/1/snapshot,noatime", "/@/.snapshots/1/snapshot"),
        ("subvolid=5", "/"),
        ("subvolid=257", "subvolid=257"),
        ("subvolid=257,subvol=/@", "/@"),
        ("subvol=../out", None),
    ],
)
def test_subvolumes(options: str, expected: str | None) -> None:
    (mount,) = parse_fstab(f"UUID=1 /x btrfs {options} 0 0\n".encode())
    assert mount.subvolume == expected


def test_a_subvolume_is_mounted_by_its_directory() -> None:
    btrfs = volume(1, 1, "btrfs", uuid="bbbb")
    text = b"UUID=bbbb / btrfs subvol=@\nUUID=bbbb /home btrfs subvol=@home\nUUID=bbbb /x btrfs subvolid=9\n"
    known = {"/@": "/@", "/@home": "/.btrfs-top-level/@home"}
    table = mount_table([btrfs], lambda _: text, lambda _, path: known.get(path))
    tops = {point: owner.top for point, owner in table.volumes.items()}
    assert tops == {"/": "/@", "/home": "/.btrfs-top-level/@home"}
    assert table.absent == {"/x": "UUID=bbbb (subvolid=9)"}


def test_start_files_do_not_hide_the_only_volume() -> None:
    start = volume(1, 1, "fat")
    assert mount_table([start, ROOT], lambda _: None).volumes == {"/": ROOT}
    assert mount_table([start], lambda _: None).volumes == {"/": start}
