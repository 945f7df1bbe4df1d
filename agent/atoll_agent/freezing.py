"""FIFREEZE and FITHAW (linux/fs.h) on file descriptors opened beforehand."""

import errno
import os
import sys
from collections.abc import Sequence

# At the start, not at the first freeze: a watchdog opens nothing once it is armed. Windows imports
# this module too and has no fcntl; nothing calls it there.
if sys.platform != "win32":
    import fcntl

# _IOWR('X', 119, int) and _IOWR('X', 120, int)
_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878


def freeze(descriptor: int) -> str:
    """Freeze a file system: waits for running writes, syncs, then blocks writers.

    Returns an empty string, or why it could not be frozen.
    """
    try:
        fcntl.ioctl(descriptor, _FIFREEZE, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "it is already frozen by something else"
        return os.strerror(error.errno or 0)
    return ""


def thaw(descriptor: int) -> str:
    """Thaw a file system; returns an empty string, or why there was nothing to thaw."""
    try:
        fcntl.ioctl(descriptor, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "it was thawed by something else"
        return os.strerror(error.errno or 0)
    return ""


def thaw_leftovers(mountpoints: Sequence[str]) -> list[str]:
    """Thaw whatever a dead agent may have left frozen; returns the mount points that were.

    The kernel refuses to thaw what is not frozen, which makes this harmless.
    """
    freed = []
    for mountpoint in mountpoints:
        try:
            descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            # Unmounted since it was listed: nothing of ours can be frozen there.
            continue
        try:
            if not thaw(descriptor):
                freed.append(mountpoint)
        finally:
            os.close(descriptor)
    return freed
