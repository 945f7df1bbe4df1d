"""Takes descriptors out of another process's epoll, run as a program of its own.

`dismiss.py pidfd epoll descriptor…`: epoll knows a descriptor by its file and its number, so a
duplicate must have the very number, and here all numbers are free. Imports nothing of Atoll.
"""

import ctypes
import fcntl
import os
import select
import sys

_PIDFD_GETFD = 438
_OUT_OF_THE_WAY = 1000


def _duplicate(pidfd: int, number: int) -> int:
    found: int = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, pidfd, number, 0)
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    moved = fcntl.fcntl(found, fcntl.F_DUPFD, _OUT_OF_THE_WAY)
    os.close(found)
    return moved


def main() -> None:
    """Do what the arguments say."""
    given, epoll_number, *numbers = (int(word) for word in sys.argv[1:])
    pidfd = fcntl.fcntl(given, fcntl.F_DUPFD, _OUT_OF_THE_WAY)
    os.close(given)
    with select.epoll.fromfd(_duplicate(pidfd, epoll_number)) as epoll:
        for number in numbers:
            os.dup2(_duplicate(pidfd, number), number)
            epoll.unregister(number)


if __name__ == "__main__":
    main()
