"""Which volume of a VM's disks is mounted where, by the guest's own /etc/fstab."""

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from atoll.blocks.partitions import Partition, open_partition, partitions
from atoll.filesystems.detect import Content, detect
from atoll.model.errors import UnsupportedFormatError
from atoll.model.readers import BlockReader

MAX_FSTAB_BYTES = 1 << 20
_DEVICE = re.compile(r"/dev/(?:(?:sd|vd|xvd|hd)([a-z]+)|nvme(\d+)n1p?)(\d*)")
_BY_NAME = {"by-uuid": "UUID", "by-label": "LABEL", "by-partuuid": "PARTUUID"}
_SECTOR = 512
_START_FILES = ("fat", "exfat")


@dataclass(frozen=True, slots=True)
class GuestVolume:
    """A partition or logical volume: on disk number `disk` (from 1), and what it holds.

    `partition_uuid` is what the guest calls PARTUUID, empty without a table. `top` is the directory
    that is mounted, where that is a subvolume of btrfs, and empty for all of it.
    """

    disk: int
    disk_label: str
    partition: Partition
    partition_uuid: str
    reader: BlockReader
    content: Content
    obstacle: str = ""
    top: str = ""

    @property
    def address(self) -> str:
        """How to name it without a mount point, e.g. `disk1:part2`."""
        return f"disk{self.disk}:part{self.partition.number}"

    def refusal(self) -> UnsupportedFormatError:
        """Why its files cannot be read."""
        if self.obstacle:
            return UnsupportedFormatError(self.obstacle)
        return UnsupportedFormatError(f"{self.address}: {self.content.refusal()}")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of fstab: `device` as it is written there, `point` without a slash at the end.

    `subvolume` is what the options say is mounted of a btrfs, by its path, or None.
    """

    device: str
    point: str
    subvolume: str | None = None


@dataclass(frozen=True, slots=True)
class MountTable:
    """Where volumes are mounted; `absent` are mount points of devices that no disk holds."""

    volumes: dict[str, GuestVolume]
    absent: dict[str, str]

    def owner(self, path: str) -> tuple[str, GuestVolume] | None:
        """The mount point a path is below, and its volume."""
        point = path
        while point not in self.volumes:
            if point == "/":
                return None
            point = point.rpartition("/")[0] or "/"
        return point, self.volumes[point]

    def below(self, path: str) -> list[str]:
        """Mount points strictly below a path, parents first."""
        prefix = path.rstrip("/") + "/"
        return sorted(point for point in self.volumes if point.startswith(prefix) and point != path)


def find_volumes(disks: Sequence[tuple[str, BlockReader]]) -> list[GuestVolume]:
    """Every partition and logical volume of the disks, whatever it holds."""
    found = []
    for number, (label, disk) in enumerate(disks, 1):
        for partition in partitions(disk):
            obstacle = ""
            reader: BlockReader = disk
            content = Content("unknown")
            try:
                reader = open_partition(disk, partition)
                content = detect(reader)
            except UnsupportedFormatError as error:
                obstacle = str(error)
            uuid = _partition_uuid(disk, partition.number)
            found.append(GuestVolume(number, label, partition, uuid, reader, content, obstacle))
    return found


FindSubvolume = Callable[[GuestVolume, str], str | None]
"""The directory of a volume that a subvolume is found at, "" for its root; None without it."""


def mount_table(
    volumes: Sequence[GuestVolume],
    read_fstab: Callable[[GuestVolume], bytes | None],
    find_subvolume: FindSubvolume = lambda _, path: path.rstrip("/"),
) -> MountTable:
    """Work out the mount points; `read_fstab` gives a volume's /etc/fstab or None.

    The root is the volume whose fstab mounts itself at `/`, else the first with
    an fstab, else the only volume with files (FAT, which start files lie on, not
    counted). Without any there are no mounts.
    """
    readable = [volume for volume in volumes if volume.content.supported]
    candidates = []
    for volume in readable:
        text = read_fstab(volume)
        if text is not None:
            candidates.append((volume, parse_fstab(text)))
    for volume, mounts in candidates:
        if any(m.point == "/" and resolve(m.device, volumes) is volume for m in mounts):
            return _table(volume, mounts, volumes, find_subvolume)
    if candidates:
        return _table(*candidates[0], volumes, find_subvolume)
    likely = [volume for volume in readable if volume.content.kind not in _START_FILES] or readable
    return MountTable({"/": likely[0]} if len(likely) == 1 else {}, {})


def parse_fstab(text: bytes) -> list[Mount]:
    """Lines that mount something at a path. Source: fstab(5)."""
    mounts = []
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#") or not fields[1].startswith("/"):
            continue
        device, point = (
            re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f) for f in fields[:2]
        )
        parts = [part for part in point.split("/") if part not in ("", ".")]
        if ".." not in parts and "\0" not in point:
            options = fields[3] if len(fields) > 3 else ""
            mounts.append(Mount(device.strip('"'), "/" + "/".join(parts), _subvolume(options)))
    return mounts


def resolve(device: str, volumes: Sequence[GuestVolume]) -> GuestVolume | None:
    """The volume a device of fstab means: by id, by name of a logical volume, or by order."""
    key, equals, value = device.partition("=")
    if device.startswith("/dev/disk/"):
        how, _, value = device.removeprefix("/dev/disk/").partition("/")
        key, equals = _BY_NAME.get(how, ""), "="
    if equals:
        value = value.strip('"')
        for volume in volumes:
            wanted = {
                "UUID": volume.content.uuid,
                "LABEL": volume.content.label,
                "PARTUUID": volume.partition_uuid,
            }.get(key, "")
            if wanted and wanted.lower() == value.lower():
                return volume
        return None
    for volume in volumes:
        group, slash, name = volume.partition.name.partition("/")
        mapped = f"/dev/mapper/{group.replace('-', '--')}-{name.replace('-', '--')}"
        if slash and device in (f"/dev/{group}/{name}", mapped):
            return volume
    match = _DEVICE.fullmatch(device)
    if match is None:
        return None
    letters, nvme, number = match.groups()
    disk = int(nvme) + 1 if letters is None else _ordinal(letters)
    for volume in volumes:
        if volume.disk == disk and volume.partition.number == int(number or 0):
            return volume
    return None


def _subvolume(options: str) -> str | None:
    """What is mounted of a btrfs; one given by its number alone is found by none. See btrfs(5)."""
    found = None
    for option in options.split(","):
        key, _, value = option.partition("=")
        if key == "subvol":
            parts = [part for part in value.split("/") if part not in ("", ".")]
            return None if ".." in parts else "/" + "/".join(parts)
        if key == "subvolid":
            found = "/" if value in ("0", "5") else option
    return found


def _table(
    root: GuestVolume,
    mounts: Sequence[Mount],
    volumes: Sequence[GuestVolume],
    find_subvolume: FindSubvolume,
) -> MountTable:
    found: dict[str, GuestVolume] = {"/": root}
    absent: dict[str, str] = {}
    for mount in mounts:
        volume = root if mount.point == "/" else resolve(mount.device, volumes)
        if volume is not None and volume.content.kind == "btrfs" and mount.subvolume is not None:
            top = find_subvolume(volume, mount.subvolume)
            if top is not None:
                found[mount.point] = replace(volume, top=top)
            elif mount.point != "/":
                absent[mount.point] = f"{mount.device} ({mount.subvolume})"
        elif volume is not None:
            found[mount.point] = volume
        elif "=" in mount.device or _DEVICE.fullmatch(mount.device):
            absent[mount.point] = mount.device
    return MountTable(found, absent)


def _ordinal(letters: str) -> int:
    """`a` is 1, `z` 26, `aa` 27."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number


def _partition_uuid(disk: BlockReader, number: int) -> str:
    """PARTUUID as udev gives it. Sources: UEFI 5.3 (GPT entries), the disk signature of an MBR."""
    head = disk.read(0, 2 * _SECTOR)
    if not 1 <= number <= 128 or len(head) < 2 * _SECTOR:
        return ""
    if head[_SECTOR : _SECTOR + 8] == b"EFI PART":
        first, _, size = struct.unpack_from("<QII", head, _SECTOR + 72)
        if not 128 <= size <= 4096 or first > 1 << 40:
            return ""
        entry = disk.read(first * _SECTOR + (number - 1) * size, 32)
        return str(UUID(bytes_le=entry[16:32])) if len(entry) == 32 else ""
    if head[510:512] == b"\x55\xaa":
        return f"{int.from_bytes(head[440:444], 'little'):08x}-{number:02x}"
    return ""
