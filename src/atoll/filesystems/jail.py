"""The jail a parser of hostile images runs in: nothing but compute, and speak on one descriptor.

Walls, each enough to keep files, network and other processes out of reach:
nobody's uid where we were root, resource limits, landlock where the kernel has
it (Linux 5.13), and a seccomp allow-list that is never optional. Sources:
landlock(7), seccomp(2), linux/filter.h.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
from dataclasses import dataclass

from atoll.model.errors import UnsupportedFormatError

_NOBODY = 65534

# x86-64 numbers (asm/unistd_64.h): talk on open descriptors, manage own memory, end.
# No open, socket, clone, execve, kill, ptrace, prlimit, ioctl or fcntl.
_ALLOWED = {
    "read": 0,
    "write": 1,
    "close": 3,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "setitimer": 38,
    "mremap": 25,
    "madvise": 28,
    "exit": 60,
    "sigaltstack": 131,
    "futex": 202,
    "restart_syscall": 219,
    "clock_gettime": 228,
    "exit_group": 231,
    "getrandom": 318,
}
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000  # refuse: EPERM
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446


@dataclass(frozen=True, slots=True)
class Confinement:
    """How much a jailed process may use in its whole life.

    Its parent stops it much sooner when it makes no progress; the CPU limit is
    for one whose parent is dead, and large enough to read out tens of TiB.
    """

    memory_bytes: int = 512 << 20
    cpu_seconds: int = 24 * 3600


def lock_down(confinement: Confinement) -> None:
    """Confine this process for good. Import and open everything needed before.

    Raises UnsupportedFormatError where the machine cannot build the jail: no
    parser may run outside it.
    """
    if platform.machine() != "x86_64":
        raise UnsupportedFormatError(
            f"Guest files cannot be read on {platform.machine()}: the parsers' jail exists for"
            " x86-64 only; restore whole disks, or restore files on another machine."
        )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    for limit, soft, hard in (
        (resource.RLIMIT_AS, confinement.memory_bytes, confinement.memory_bytes),
        (resource.RLIMIT_CPU, confinement.cpu_seconds, confinement.cpu_seconds),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        resource.setrlimit(limit, (soft, hard))
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, _PR_SET_DUMPABLE, 0)
    _landlock(libc)
    _seccomp(libc)


def allow_cpu(seconds: float) -> None:
    """End this process, by SIGPROF, once it has computed so long without calling this again.

    Unlike a limit on waiting it costs an idle process nothing, and it works
    when the parent, whose patience is the usual limit, was killed.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise UnsupportedFormatError(
            f"The kernel refused prctl {option} ({os.strerror(ctypes.get_errno())}), so the"
            " parsers' jail cannot be built; check the container's security profile."
        )


def _landlock(libc: ctypes.CDLL) -> None:
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    rules = struct.pack("<Q", files)
    if version >= 4:
        rules += struct.pack("<Q", 3)  # bind and connect over TCP
    if version >= 6:
        rules += struct.pack("<Q", 3)  # abstract sockets and signals outside
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules, len(rules), 0)
    if ruleset < 0 or libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) != 0:
        raise UnsupportedFormatError(
            f"The kernel refused landlock ({os.strerror(ctypes.get_errno())}), so the parsers'"
            " jail cannot be built; check the container's security profile."
        )
    os.close(ruleset)


def _seccomp(libc: ctypes.CDLL) -> None:
    numbers = sorted(_ALLOWED.values())
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        *((_JUMP_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    handle = Program(len(program), ctypes.cast(code, ctypes.c_void_p))
    if libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(handle), 0, 0) != 0:
        raise UnsupportedFormatError(
            f"The kernel refused a seccomp filter ({os.strerror(ctypes.get_errno())}), so the"
            " parsers' jail cannot be built; check the container's security profile."
        )
