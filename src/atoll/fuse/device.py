"""Mounting and unmounting: what /dev/fuse and the program fusermount3 do."""

import array
import ctypes
import errno
import os
import re
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from atoll.model.errors import MountError

KIND = "fuse.atoll"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
_MS_REMOUNT, _MS_NOSYMFOLLOW, _MS_BIND = 0x20, 0x100, 0x1000
_ANSWER_SECONDS = 5.0
_ESCAPED = re.compile(r"\\([0-7]{3})")


def mount(
    directory: Path,
    *,
    source: str,
    allow_other: bool,
    max_read_bytes: int,
    writable: bool = False,
) -> int:
    """Mount on an empty directory; the descriptor that the kernel's requests come through.

    Read-only unless `writable`, always without device files, set-user-ID and execution. Where we
    are root the kernel follows no symlink of the tree either, only shows them.
    """
    check(directory)
    options = (
        f"{'rw' if writable else 'ro'},nosuid,nodev,noexec,subtype=atoll,"
        f"fsname={_plain(source)},max_read={max_read_bytes}"
    )
    if allow_other:
        # Only with others are there permissions to enforce; alone, whoever mounts may read it all.
        options += ",allow_other,default_permissions"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", options, "--", str(directory)],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError as error:
            raise MountError(
                "There is no fusermount3 on this machine; install the package fuse3."
            ) from error
        if done.returncode != 0:
            raise MountError(
                f"{directory} could not be mounted: {_said(done.stderr)}; check that /dev/fuse is"
                " there and, for --allow-other, user_allow_other in /etc/fuse.conf."
            )
        _, control, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    descriptor = array.array("i", control[0][2])[0]
    os.set_inheritable(descriptor, False)
    return descriptor


def harden(directory: Path, *, writable: bool = False) -> None:
    """Let the kernel follow no symlink of the tree. Once it answers; without root nothing happens."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | (0 if writable else _MS_RDONLY)
    flags |= _MS_REMOUNT | _MS_BIND | _MS_NOSYMFOLLOW
    if libc.mount(None, os.fsencode(directory), None, flags, None) != 0:
        number = ctypes.get_errno()
        if number != errno.EINVAL:  # kernels before 5.10 know no such flag
            raise MountError(f"{directory} could not be made safe: {os.strerror(number)}.")


def check(directory: Path) -> None:
    """Refuse what is no place to mount on; a dead mount of ours that lies there is cleared."""
    if is_dead(directory):
        _detach(directory)
    if directory in mounts():
        raise MountError(
            f"{directory} is mounted already; `atoll unmount {directory}` first, or name another."
        )
    try:
        here = directory.stat()
        empty = not any(directory.iterdir())
    except NotADirectoryError as error:
        raise MountError(f"{directory} is not a directory; name an empty one.") from error
    except OSError as error:
        raise MountError(
            f"{directory} cannot be mounted on ({error.strerror}); make an empty directory."
        ) from error
    if not empty:
        raise MountError(f"{directory} is not empty; name an empty directory.")
    if os.geteuid() not in (0, here.st_uid) or here.st_mode & 0o022:
        raise MountError(
            f"{directory} can be written by others than you, who could put something else in its"
            " place; use a directory of your own that only you can write."
        )


def mounts() -> list[Path]:
    """Where Atoll's trees are mounted, dead ones too."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] == KIND:
            place = _ESCAPED.sub(lambda m: chr(int(m[1], 8)), before.split(" ")[4])
            found.append(Path(place))
    return found


def is_dead(directory: Path) -> bool:
    """Whether a mount lies there whose process is gone; one that gives no answer in time is not."""
    if directory not in mounts():
        return False
    met: list[OSError] = []

    def ask() -> None:
        try:
            # Not stat, which the kernel answers from what it remembers.
            os.statvfs(directory)
        except OSError as error:
            met.append(error)

    # By a thread, for a process that is stopped would keep whoever asks waiting for ever.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    return any(error.errno in (errno.ENOTCONN, errno.ECONNABORTED) for error in met)


def clear_dead() -> list[Path]:
    """Take away every mount whose process is gone; which they were."""
    dead = [place for place in mounts() if is_dead(place)]
    for place in dead:
        _detach(place)
    return dead


def unmount(directory: Path) -> None:
    """Unmount; MountError when somebody still uses it. A dead one is taken away in any case."""
    if directory not in mounts():
        raise MountError(f"No tree of Atoll is mounted on {directory}.")
    if is_dead(directory):
        _detach(directory)
        return
    done = _fusermount("-u", directory)
    if done.returncode != 0:
        raise MountError(
            f"{directory} is still in use ({_said(done.stderr)}); end what reads it and leave the"
            " directory, then unmount again."
        )


def let_go(directory: Path) -> bool:
    """Unmount at the end of the process that serves it: at once, readers or not; whether unused."""
    done = _fusermount("-u", directory)
    if done.returncode != 0 and directory in mounts():
        with suppress(MountError):
            _detach(directory)
        return False
    return True


def _detach(directory: Path) -> None:
    done = _fusermount("-uz", directory)
    if done.returncode != 0 and directory in mounts():
        raise MountError(
            f"The dead mount on {directory} could not be taken away: {_said(done.stderr)}."
        )


def _fusermount(how: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["fusermount3", how, "--", str(directory)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


def _said(text: str) -> str:
    return text.strip().replace("\n", "; ") or "no reason given"


def _plain(source: str) -> str:
    """Fit for a mount option: no separator of those."""
    return re.sub(r"[^A-Za-z0-9@._:-]", "_", f"atoll:{source}")
