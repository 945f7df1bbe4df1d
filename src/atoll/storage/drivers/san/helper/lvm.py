"""LVM's part: a volume group, the thin pool and Atoll's book in it, and the disks it is made of."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.model.errors import PoolFullError, StorageConflictError, StorageUnreachableError
from atoll.storage.drivers.san.helper.failures import run

_BOOK_BYTES = 64 << 20
_POOL_SHARE = "50%FREE"
_METADATA_PER_DATA = 512
"""A byte of metadata for so many of data: 128 bytes a chunk of 64 KiB, room for many snapshots."""
_METADATA_BYTES = range(16 << 20, 15 << 30)


@dataclass(frozen=True, slots=True)
class Group:
    """A volume group's room in bytes."""

    size_bytes: int
    free_bytes: int
    extent_bytes: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A physical volume; `used_bytes` is allocated, `free_bytes` can be."""

    path: str
    size_bytes: int
    used_bytes: int
    missing: bool

    @property
    def free_bytes(self) -> int:
        """What could be moved here."""
        return 0 if self.missing else self.size_bytes - self.used_bytes


def book_name(pool: str) -> str:
    """The logical volume beside a pool that holds Atoll's book."""
    return f"{pool}_atoll"


def device_name(volume_group: str, logical_volume: str) -> str:
    """What device mapper calls a logical volume: hyphens doubled, one between."""
    return "-".join(name.replace("-", "--") for name in (volume_group, logical_volume))


def activate(volume_group: str, pool: str) -> None:
    """Have the pool and the book's volume in the kernel."""
    names = [f"{volume_group}/{name}" for name in (pool, book_name(pool))]
    _lvm("lvchange", "-q", "-ay", *names)


def create(volume_group: str, pool: str, chunk_bytes: int) -> None:
    """Make the pool and the book's volume in the volume group, those that are not there.

    The pool begins with half of what is free: thin pools never shrink, and
    disks can leave only while the rest of the group has room.
    """
    present = {row["lv_name"]: row for row in _rows("lvs", "lv_name,segtype,pool_lv", volume_group)}
    if pool not in present:
        room = group(volume_group)
        metadata = room.free_bytes // 2 // _METADATA_PER_DATA
        metadata = min(max(metadata, _METADATA_BYTES.start), _METADATA_BYTES.stop)
        _lvm(
            *("lvcreate", "-q", "-y", "--type", "thin-pool", "-l", _POOL_SHARE, "-n", pool),
            *("--chunksize", f"{chunk_bytes}b", "--poolmetadatasize", f"{metadata}b"),
            *("--discards", "passdown", volume_group),
        )
    elif present[pool]["segtype"] != "thin-pool":
        raise StorageConflictError(
            f"{volume_group}/{pool} is no thin pool; name another in the settings."
        )
    if used := [name for name, row in present.items() if row["pool_lv"] == pool]:
        raise StorageConflictError(
            f"The thin pool {volume_group}/{pool} holds LVM's own volumes ({', '.join(used)}); "
            "give Atoll a pool of its own."
        )
    if book_name(pool) not in present:
        _lvm(
            *("lvcreate", "-q", "-y", "-Wy", "-L", f"{_BOOK_BYTES}b"),
            *("-n", book_name(pool), volume_group),
        )


def group(volume_group: str) -> Group:
    """How large the volume group is."""
    [row] = _rows("vgs", "vg_size,vg_free,vg_extent_size", volume_group)
    return Group(int(row["vg_size"]), int(row["vg_free"]), int(row["vg_extent_size"]))


def grow_pool(volume_group: str, pool: str, extra_bytes: int) -> None:
    """Give the pool more of the volume group's room."""
    _lvm("lvextend", "-q", "-L", f"+{extra_bytes}b", f"{volume_group}/{pool}")


def disks(volume_group: str) -> list[Disk]:
    """The volume group's disks."""
    rows = _rows("pvs", "pv_name,pv_size,pv_used,pv_missing,vg_name", None)
    return [
        Disk(row["pv_name"], int(row["pv_size"]), int(row["pv_used"]), row["pv_missing"] != "")
        for row in rows
        if row["vg_name"] == volume_group
    ]


def add_disk(volume_group: str, path: str) -> None:
    """Give the volume group a disk that holds nothing; one it has already is right."""
    here = {os.path.realpath(disk.path) for disk in disks(volume_group)}
    if os.path.realpath(path) in here:
        return
    if not Path(path).is_block_device():
        raise StorageConflictError(f"{path} is no disk of the SAN server; correct the name.")
    try:
        # LVM asks before it overwrites anything it recognises, and nobody is there to say yes.
        _lvm("vgextend", "-q", volume_group, path)
    except StorageUnreachableError as error:
        raise StorageConflictError(
            f"{path} was not added, for it may hold something: {error} Clear it with wipefs if "
            "nothing on it matters."
        ) from error


def remove_disk(volume_group: str, path: str) -> None:
    """Move everything off a disk and take it out; absent is success, repeatable."""
    every = disks(volume_group)
    real = os.path.realpath(path)
    disk = next((each for each in every if os.path.realpath(each.path) == real), None)
    if disk is None:
        return
    others = [each for each in every if each is not disk]
    room = sum(each.free_bytes for each in others)
    if not others or disk.used_bytes > room:
        raise PoolFullError(
            f"{path} holds {disk.used_bytes} bytes and the other disks of {volume_group} have "
            f"{room} free; nothing was moved, add a disk first. What a thin pool was once given it "
            "keeps, used or not."
        )
    _lvm("pvchange", "-q", "-xn", path)  # nothing new comes here while it empties
    try:
        if disk.used_bytes:
            _lvm("pvmove", "-q", path)
        _lvm("vgreduce", "-q", volume_group, path)
    except StorageUnreachableError:
        _lvm("pvchange", "-q", "-xy", path)
        raise
    _lvm("pvremove", "-q", path)


def _rows(program: str, columns: str, name: str | None) -> list[dict[str, str]]:
    output = _lvm(
        *(program, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", columns),
        *([name] if name else []),
    )
    report: dict[str, Any] = json.loads(output)["report"][0]
    rows: list[dict[str, str]]
    [rows] = report.values()
    return rows


def _lvm(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    if not Path("/run/udev/control").exists():
        environment["DM_DISABLE_UDEV"] = "1"  # nobody would answer
    return run(command, environment)
