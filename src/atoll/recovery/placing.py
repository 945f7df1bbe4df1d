"""Making a finished file or tree appear under its name in one step, never over another."""

import ctypes
import errno
import os

_NO_REPLACE = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def place_new(name: str, from_directory: int, final: str, to_directory: int) -> None:
    """Rename to a name that must be free, and make that last; FileExistsError if it is taken.

    Directories are descriptors. The content must have been synced before.
    """
    source, target = os.fsencode(name), os.fsencode(final)
    if _LIBC.renameat2(from_directory, source, to_directory, target, _NO_REPLACE) != 0:
        code = ctypes.get_errno()
        if code != errno.EINVAL:
            raise OSError(code, os.strerror(code), final)
        # File systems without the flag (some network ones) leave a gap between look and rename.
        if final in os.listdir(to_directory):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final)
        os.rename(name, final, src_dir_fd=from_directory, dst_dir_fd=to_directory)
    os.fsync(to_directory)


def sync_filesystem(descriptor: int) -> None:
    """Write out everything of the file system a descriptor is on; OSError if that failed."""
    if _LIBC.syncfs(descriptor) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
