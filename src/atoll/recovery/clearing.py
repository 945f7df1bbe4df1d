"""Taking apart the tree of a restore that was given up, whatever depth and modes its guest chose."""

import os
import secrets
import stat
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def empty_directory(top: int) -> None:
    """Remove everything in the directory of a descriptor; it stays. No symlink is followed.

    Directories are made ours to write first and moved up beside each other, so
    neither a tree's depth nor its modes can stop this, and few descriptors are
    open at a time. Interrupted, it leaves something that can be emptied again.
    Raises OSError.
    """
    waiting = ["."]
    while waiting:
        name = waiting.pop()
        directory = os.open(name, _DIRECTORY, dir_fd=top)
        try:
            for inner in os.listdir(directory):  # noqa: PTH208 - a descriptor
                if not is_directory(inner, directory):
                    os.unlink(inner, dir_fd=directory)
                    continue
                _make_writable(inner, directory)
                beside = f".{secrets.token_hex(16)}"
                os.rename(inner, beside, src_dir_fd=directory, dst_dir_fd=top)
                waiting.append(beside)
        finally:
            os.close(directory)
        if name != ".":
            os.rmdir(name, dir_fd=top)


def is_directory(name: str, parent: int) -> bool:
    """Whether a name in a directory is one itself, and not a symlink to one."""
    return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)


def _make_writable(name: str, parent: int) -> None:
    # O_PATH needs no right to read; chmod by name would follow a symlink put in its place.
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{descriptor}").chmod(0o700)
    finally:
        os.close(descriptor)
