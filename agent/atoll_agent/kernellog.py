"""Which file systems the kernel had to recover when it mounted them."""

import os
import re

_EXT = re.compile(r"EXT[34]-fs \(([^)]+)\): (?:\S+: )?(?:recovery complete|\d+ orphan inode)")
_XFS = re.compile(r"XFS \(([^)]+)\): Starting recovery")
_BTRFS = re.compile(r"BTRFS info \(device ([^)]+?)(?: state \w+)?\): start tree-log replay")


def recovered_devices(log: str) -> frozenset[str]:
    """Kernel names of the devices whose journal was replayed, from the kernel's messages."""
    return frozenset(name for pattern in (_EXT, _XFS, _BTRFS) for name in pattern.findall(log))


def read_kernel_log() -> str:
    """All messages the kernel still keeps (/dev/kmsg: one record a read, text after the `;`)."""
    lines = []
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = os.read(descriptor, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                # Overwritten while we read; the next read continues with what is left.
                continue
            lines.append(record.decode(errors="replace").partition(";")[2])
    finally:
        os.close(descriptor)
    return "".join(lines)
