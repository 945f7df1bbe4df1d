"""syncfs(2) of one file system, which Python does not offer."""

import ctypes
import os


def sync_filesystem(mountpoint: str) -> None:
    """Write all dirty data of the file system to disk. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), mountpoint)
    finally:
        os.close(descriptor)
