"""Disks of a pool, which come and go while it is in use (`btrfs device`)."""

import fcntl
import os
import struct
import subprocess
from pathlib import Path

from atoll.model.errors import PoolFullError, StorageConflictError, StorageUnreachableError
from atoll.model.storage import PoolDevice

# linux/btrfs.h: BTRFS_IOC_FS_INFO, BTRFS_IOC_DEV_INFO, BTRFS_IOC_GET_DEV_STATS
_FS_INFO, _DEV_INFO, _DEV_STATS = 0x8400941F, 0xD000941E, 0xC4089434
_ERROR_COUNTERS = 5


def list_devices(root: Path) -> list[PoolDevice]:
    """The disks of the file system `root` is on, in the order they were added. OSError."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        info = bytearray(1024)
        fcntl.ioctl(descriptor, _FS_INFO, info)
        (highest,) = struct.unpack_from("=Q", info)
        return [
            device
            for number in range(1, highest + 1)
            if (device := _device(descriptor, number)) is not None
        ]
    finally:
        os.close(descriptor)


def add_device(root: Path, path: str) -> None:
    """Add a disk that holds nothing btrfs or blkid knows; one that is in the pool already is right."""
    if _find(root, path) is None:
        _btrfs("add", path, str(root))


def remove_device(root: Path, path: str) -> None:
    """Move all chunks off a disk and let it go; as long as that takes. Repeatable."""
    leaving = _find(root, path)
    if leaving is None:
        return
    staying = [device for device in list_devices(root) if device.path != leaving.path]
    if not staying:
        raise StorageConflictError(
            f"{path} is the pool's only disk and cannot go; add another one first."
        )
    room = sum(device.size_bytes - device.used_bytes for device in staying)
    if room < leaving.used_bytes:
        raise PoolFullError(
            f"{path} holds {leaving.used_bytes} bytes and the other disks have {room} to give, so "
            "nothing was moved; add a disk, or delete snapshots and run `btrfs balance`."
        )
    try:
        _btrfs("remove", leaving.path, str(root))
    except StorageUnreachableError:
        # Whoever began it before may have been killed; btrfs went on, and it is done.
        if _find(root, path) is not None:
            raise


def _find(root: Path, path: str) -> PoolDevice | None:
    real = os.path.realpath(path)
    for device in list_devices(root):
        if path == device.path or real == os.path.realpath(device.path):
            return device
    return None


def _device(root: int, number: int) -> PoolDevice | None:
    info = bytearray(4096)
    struct.pack_into("=Q", info, 0, number)
    try:
        fcntl.ioctl(root, _DEV_INFO, info)
    except OSError:  # ENODEV: numbers of disks that went are not used again
        return None
    used, total = struct.unpack_from("=QQ", info, 24)
    path = bytes(info[3072:]).split(b"\0", 1)[0].decode(errors="replace")
    missing = not path or not Path(path).exists()
    return PoolDevice(path or f"missing disk {number}", total, used, _errors(root, number), missing)


def _errors(root: int, number: int) -> int:
    statistics = bytearray(1032)
    struct.pack_into("=QQQ", statistics, 0, number, _ERROR_COUNTERS, 0)
    try:
        fcntl.ioctl(root, _DEV_STATS, statistics)
    except OSError:  # a disk that is missing has none
        return 0
    return sum(struct.unpack_from(f"={_ERROR_COUNTERS}Q", statistics, 24))


def _btrfs(action: str, *arguments: str) -> None:
    done = subprocess.run(
        # One such change at a time: wait for what another began.
        ["btrfs", "device", action, "--enqueue", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise StorageUnreachableError(
            f"btrfs could not {action} {arguments[0]}: {said[-1] if said else done.returncode}."
        )
