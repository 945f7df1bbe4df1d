"""Keeps the first thread of a tgtd still: until told, until its own caller dies, or for a while.

Run as a script of its own, with the standard library only, so that it starts in milliseconds.
Arguments: the process id, a pidfd of it that is inherited, and seconds. Says `ready`; upon a byte
on standard input stops the thread where it waits for work, and says `held`; upon another lets it
go and says `released`, if it was still all the while. Anything else it says is why not.

The kernel lets a traced thread go when its tracer ends (ptrace(2), PTRACE_SEIZE), so nothing stays
stopped, whoever is killed.
"""

import ctypes
import os
import select
import signal
import struct
import sys
import time
from contextlib import suppress

# linux/ptrace.h
_SYSCALL, _DETACH, _SEIZE, _INTERRUPT, _SYSCALL_INFO = 24, 17, 0x4206, 0x4207, 0x420E
_TRACE_SYSGOOD = 1
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_EVENT_STOP = 128
_ENTRY = 1
_INFO = struct.Struct("=B3xIQQ7Q")  # struct ptrace_syscall_info up to the entry's arguments
_ANY_CHILD = 0x40000000  # __WALL

_WAITS_FOR_EVENTS = {
    "x86_64": {232, 281, 441},  # epoll_wait, epoll_pwait, epoll_pwait2
    "aarch64": {22, 441},
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def main(process: int, pidfd: int, limit_seconds: float) -> None:
    """Speak as the module says."""
    _say("ready")
    if not os.read(0, 1):
        return
    deadline = time.monotonic() + limit_seconds
    try:
        _limit(limit_seconds)
        _seize(process, pidfd)
        _run_until_it_waits(process)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say("held")
        heard, _, _ = select.select([0], [], [], max(0.0, deadline - time.monotonic()))
        told = bool(heard and os.read(0, 1))
        _trace(_DETACH, process)
    except OSError as error:
        _say(str(error.strerror or error))
    else:
        _say("released" if told else "time was over")


def _limit(seconds: float) -> None:
    """Raise TimeoutError from whatever waits then."""

    def late(*_: object) -> None:
        raise TimeoutError("it did not come to rest")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _seize(process: int, pidfd: int) -> None:
    _trace(_SEIZE, process, 0, _TRACE_SYSGOOD)
    # The pidfd meant this process when it was opened and still does, so the id does too.
    if select.select([pidfd], [], [], 0)[0]:
        raise ProcessLookupError("it ended")
    _trace(_INTERRUPT, process)


def _run_until_it_waits(process: int) -> None:
    """Let it go from one system call to the next, up to that in which it waits for work.

    Anywhere else it may hold a lock, such as malloc's, which the other threads need.
    """
    waits = _WAITS_FOR_EVENTS.get(os.uname().machine, set())
    while True:
        _, status = os.waitpid(process, _ANY_CHILD)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError("it ended")
        stopped_by = os.WSTOPSIG(status)
        pass_on = 0
        if stopped_by == _SYSCALL_STOP:
            if _entering(process) in waits:
                return
        elif status >> 16 != _EVENT_STOP:
            pass_on = stopped_by
        _trace(_SYSCALL, process, 0, pass_on)


def _entering(process: int) -> int | None:
    """The number of the system call at whose entry it stands."""
    buffer = ctypes.create_string_buffer(_INFO.size)
    _trace(_SYSCALL_INFO, process, _INFO.size, ctypes.addressof(buffer))
    operation, _, _, _, number, *_ = _INFO.unpack(buffer.raw)
    return int(number) if operation == _ENTRY else None


def _trace(request: int, process: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, process, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _say(word: str) -> None:
    with suppress(BrokenPipeError):  # the caller is gone
        os.write(1, word.encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
