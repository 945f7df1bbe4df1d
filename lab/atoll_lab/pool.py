"""A btrfs in a sparse file behind a loop device: the lab's disks for the embedded engine."""

import os
import subprocess
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.storage.catalogue import Catalogue
from atoll.storage.drivers.embedded.pool import open_pool
from atoll.storage.targets.tgt.process import TargetProcess, find_process
from atoll.storage.targets.tgt.tgt_socket import TgtSocket

_IMAGE = "pool.btrfs"
_MOUNTPOINT = "pool"


def create_loop_pool(directory: Path, size_bytes: int) -> Path:
    """Make and mount a file system of `size_bytes` under `directory`; returns its mount point.

    One that exists is mounted as it is. Needs root. StorageUnreachableError says
    which program failed and why.
    """
    directory.mkdir(parents=True, exist_ok=True)
    image = directory / _IMAGE
    if not image.exists():
        fresh = image.with_suffix(".new")
        fresh.touch(mode=0o600)
        os.truncate(fresh, size_bytes)
        _run("mkfs.btrfs", "-q", "-f", str(fresh))
        fresh.rename(image)
    return mount(directory)


def mount(directory: Path) -> Path:
    """Mount the file system made under `directory`, unless it is; returns its mount point."""
    mountpoint = directory / _MOUNTPOINT
    mountpoint.mkdir(exist_ok=True)
    if not mountpoint.is_mount():
        _run("mount", "-o", "loop,noatime", str(directory / _IMAGE), str(mountpoint))
    return mountpoint


def unmount(directory: Path) -> None:
    """Unmount it and let the loop device go, keeping the image; absent is success.

    Stop the engine's daemons first: they hold the file system.
    """
    mountpoint = directory / _MOUNTPOINT
    if mountpoint.is_mount():
        _run("umount", str(mountpoint))
    for device in _loop_devices(directory / _IMAGE):
        _run("losetup", "--detach", device)


def destroy(directory: Path) -> None:
    """Unmount it and remove image and mount point, also while somebody uses it; absent is success."""
    mountpoint = directory / _MOUNTPOINT
    try:
        unmount(directory)
    except StorageUnreachableError:
        if not mountpoint.is_mount():
            raise
        # Out of sight at once; gone, with its loop device, when its last user is.
        _run("umount", "--lazy", str(mountpoint))
        unmount(directory)
    for name in (_IMAGE, f"{Path(_IMAGE).stem}.new"):
        (directory / name).unlink(missing_ok=True)
    if mountpoint.is_dir():
        mountpoint.rmdir()


def _loop_devices(image: Path) -> list[str]:
    if not image.exists():
        return []
    return [line.split(":")[0] for line in _run("losetup", "--associated", str(image)).splitlines()]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageUnreachableError(
            f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}."
        )
    return done.stdout


def image(root: Path, group: str, lun: str) -> Path:
    """A LUN's bytes in the pool at `root`."""
    pool = open_pool(root)
    catalogue = Catalogue(pool.name, pool.records)
    record = catalogue.known_group(group)
    return pool.image(record.id, catalogue.known_lun(record, lun).volume)


def snapshot_image(root: Path, group: str, snapshot: str, lun: str) -> Path:
    """A LUN's bytes in a snapshot."""
    pool = open_pool(root)
    found, volume = Catalogue(pool.name, pool.records).snapshot_volume(group, lun, snapshot)
    return pool.snapshot_image(found.id, volume)


def daemon(root: Path, run: Path, group: str) -> TargetProcess | None:
    """The tgtd of a group, whose sockets are in `run`; the caller closes it."""
    pool = open_pool(root)
    record = Catalogue(pool.name, pool.records).known_group(group)
    return find_process(TgtSocket(run / f"{record.id}.tgt"))
