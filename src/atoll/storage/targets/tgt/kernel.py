"""System calls that Python has no function for, and a socket filter made with one of them.

All raise OSError: ENOSYS on machines whose numbers are not known here, EPERM without the rights.
"""

import ctypes
import errno
import os
import platform
import struct
from functools import cache

_PIDFD_GETFD = 438  # the same everywhere
_NUMBERS = {  # bpf, membarrier
    "x86_64": (321, 324),
    "aarch64": (280, 283),
}
_MEMBARRIER_GLOBAL = 1
_BPF_PROG_LOAD = 5
_SOCKET_FILTER = 1
_ATTRIBUTES = struct.Struct("<IIQQIIQII")
"""The beginning of union bpf_attr for BPF_PROG_LOAD: type, count, instructions, license, and logs."""

_LICENSE = b"AGPL\0"
_KTIME_GET_NS = 5


def duplicate(pidfd: int, descriptor: int) -> int:
    """A duplicate of a descriptor of another process (pidfd_getfd)."""
    return _call(_PIDFD_GETFD, pidfd, descriptor, 0)


def let_packets_settle() -> None:
    """Return when every packet the network stack was at has been dealt with.

    What it does under RCU is over after a global membarrier, which waits for that.
    """
    _call(_number(1), _MEMBARRIER_GLOBAL, 0, 0)


def load_pause(until_ns: int) -> int:
    """A filter for TCP sockets that drops what carries data or ends a connection.

    Bare acknowledgements pass, so what the owner sends arrives. From `until_ns`
    on (nanoseconds of the monotonic clock) everything passes: whoever attached it
    may die. Returns its descriptor; SO_ATTACH_BPF takes that.
    """
    return _load(pause_program(until_ns))


def pause_program(until_ns: int) -> bytes:
    """The filter's instructions (struct bpf_insn); offset 0 of a packet is its TCP header."""
    low, high = struct.unpack("<ii", struct.pack("<Q", until_ns))
    return b"".join(
        (
            _instruction(0xBF, 6, 1),  # r6 = the packet
            _instruction(0x85, value=_KTIME_GET_NS),  # r0 = now
            _instruction(0x18, 1, value=low),  # r1 = until_ns
            _instruction(0x00, value=high),
            _instruction(0x3D, 0, 1, 8),  # if now >= until_ns: pass
            _instruction(0x61, 7, 6),  # r7 = length of header and data
            _instruction(0x30, value=12),  # r0 = length of the header, in its upper four bits
            _instruction(0x57, 0, value=0xF0),  # … times sixteen
            _instruction(0x77, 0, value=2),  # … in bytes
            _instruction(0x2D, 7, 0, 5),  # if there is data: drop
            _instruction(0x30, value=13),  # r0 = flags
            _instruction(0x57, 0, value=0x01),
            _instruction(0x55, 0, 0, 2),  # if FIN: drop
            _instruction(0xB4, 0, value=-1),  # pass, all of it
            _instruction(0x95),
            _instruction(0xB4, 0),  # drop
            _instruction(0x95),
        )
    )


def _load(program: bytes) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    terms = ctypes.create_string_buffer(_LICENSE)
    attributes = _ATTRIBUTES.pack(
        _SOCKET_FILTER, len(program) // 8, ctypes.addressof(code), ctypes.addressof(terms),
        0, 0, 0, 0, 0,
    )  # fmt: skip
    kept = ctypes.create_string_buffer(attributes, 128)
    return _call(_number(0), _BPF_PROG_LOAD, ctypes.addressof(kept), len(kept))


def _instruction(
    operation: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("<BBhi", operation, source << 4 | target, offset, value)


def _number(which: int) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return numbers[which]


def _call(number: int, *arguments: int) -> int:
    result: int = _syscall()(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@cache
def _syscall() -> "ctypes._NamedFuncPointer":
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function
