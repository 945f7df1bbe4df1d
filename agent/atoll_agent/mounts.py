"""Which mounted file systems can be frozen, and in which order that is safe."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FREEZABLE = frozenset({"ext3", "ext4", "xfs", "btrfs"})

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mounted file system. `device` is `major:minor`, or the source for btrfs (whose is anonymous)."""

    mountpoint: str
    source: str
    fstype: str
    device: str
    read_only: bool


def parse_mountinfo(text: str) -> list[Mount]:
    """All mounts of a `/proc/PID/mountinfo` (proc(5)), in its order."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(tail) < 3:
            continue
        source = _unescape(tail[1])
        mounts.append(
            Mount(
                mountpoint=_unescape(fields[4]),
                source=source,
                fstype=tail[0],
                device=source if tail[0] == "btrfs" else fields[2],
                read_only="ro" in tail[2].split(","),
            )
        )
    return mounts


def freezable(mounts: Sequence[Mount]) -> list[Mount]:
    """One mount for each writable block-backed file system, the shortest path of each."""
    chosen: dict[str, Mount] = {}
    for mount in mounts:
        if mount.fstype not in FREEZABLE or mount.read_only:
            continue
        known = chosen.get(mount.device)
        if known is None or len(mount.mountpoint) < len(known.mountpoint):
            chosen[mount.device] = mount
    return list(chosen.values())


def select_mounts(
    mounts: Sequence[Mount], only: Sequence[str] | None, never: Sequence[str]
) -> list[Mount]:
    """The mounts the configuration wants frozen; `only` None means all."""
    return [
        mount
        for mount in mounts
        if (only is None or mount.mountpoint in only) and mount.mountpoint not in never
    ]


def freeze_order(mounts: Sequence[Mount], all_mounts: Sequence[Mount]) -> list[Mount]:
    """Highest in the storage stack first, then deepest path first, the root always last.

    A file system in a file (a loop device) must freeze before the one that
    holds the file: freezing writes, and a write into a frozen file system waits
    for the thaw.
    """

    def key(mount: Mount) -> tuple[bool, int, int, str]:
        depth = mount.mountpoint.rstrip("/").count("/")
        return (
            mount.mountpoint == "/",
            -_loops_below(mount.device, all_mounts, frozenset()),
            -depth,
            mount.mountpoint,
        )

    return sorted(mounts, key=key)


def read_mounts() -> list[Mount]:
    """What is mounted for this process now."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text())


def device_name(mount: Mount) -> str:
    """The kernel's name of the mount's device, as its log spells it, e.g. `sda1` or `dm-0`."""
    if ":" in mount.device:
        link = Path("/sys/dev/block") / mount.device
        if link.exists():
            return link.resolve().name
    return Path(os.path.realpath(mount.source)).name


def _loops_below(device: str, mounts: Sequence[Mount], seen: frozenset[str]) -> int:
    """How many loop devices lie between a block device and the disks below."""
    node = Path("/sys/dev/block") / device if ":" in device else _sysfs_of(device)
    if device in seen or node is None or not node.exists():
        return 0
    seen |= {device}
    real = node.resolve()
    below = [(real / "slaves" / name / "dev") for name in _names(real / "slaves")]
    if (real / "partition").exists():
        below.append(real.parent / "dev")
    found = max((_loops_below(path.read_text().strip(), mounts, seen) for path in below), default=0)
    backing = real / "loop" / "backing_file"
    if backing.exists():
        path = backing.read_text().strip()
        host = mount_holding(path, mounts)
        found = 1 + (_loops_below(host.device, mounts, seen) if host else 0)
    return found


def mount_holding(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount a file lies on, the deepest; None when there is none."""
    holding = [
        mount
        for mount in mounts
        if path.startswith(mount.mountpoint.rstrip("/") + "/") or mount.mountpoint == "/"
    ]
    return max(holding, key=lambda mount: len(mount.mountpoint), default=None)


def _sysfs_of(source: str) -> Path | None:
    try:
        number = os.stat(source).st_rdev  # noqa: PTH116 - st_rdev of a device node
    except OSError:
        return None
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.is_dir() else []  # noqa: PTH208


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), text)
