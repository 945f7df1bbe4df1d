"""Running what a farm runs on another machine: on this one's last processor, and in the idle class.

The rest is left to the other processors (`stay_here`), so that the two share no processor. A
scheduling class alone does not keep them apart: the kernel's autogroups give each session an equal
share, whatever is in it (sched(7), "The autogroup feature"). So it is a control group.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_NAME = "atoll-bench-{}"
_ENTER = 'echo $$ > "$0" && exec taskset --cpu-list {} ionice -c 3 "$@"'
_PROCESSORS = os.sched_getaffinity(0)
_PERIOD_MICROSECONDS = 100_000
_EMPTY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A control group of the idle class. Disks are read in their idle class too."""

    group: Path

    def command(self, *words: str) -> list[str]:
        """The words of a command, to be run in it."""
        enter = _ENTER.format(max(_PROCESSORS))
        return ["sh", "-c", enter, str(self.group / "cgroup.procs"), *words]

    def limit(self, processors: float | None) -> None:
        """At most so much of the processors for all that is in it; None for as much as is left over."""
        quota = "max" if processors is None else str(int(processors * _PERIOD_MICROSECONDS))
        second = self.group / "cpu.max"
        if second.exists():
            second.write_text(f"{quota} {_PERIOD_MICROSECONDS}")
        else:
            (self.group / "cpu.cfs_quota_us").write_text("-1" if quota == "max" else quota)

    def take(self, process: int) -> None:
        """Move a process that runs already, with all its threads."""
        (self.group / "cgroup.procs").write_text(str(process))
        _bind(process, {max(_PROCESSORS)})


def stay_here(processes: Iterable[int]) -> None:
    """Keep processes, with all their threads, off the last processor for as long as they live."""
    here = _PROCESSORS - {max(_PROCESSORS)}
    if not here:
        raise RuntimeError("two processors are needed, one of them for what runs elsewhere")
    for process in processes:
        _bind(process, here)


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """The group while the block lasts; what runs in it must have ended by then. Needs root."""
    group = _controller() / _NAME.format(os.getpid())
    group.mkdir()
    try:
        (group / "cpu.idle").write_text("1")
        yield Elsewhere(group)
    finally:
        _remove(group)


def _bind(process: int, processors: set[int]) -> None:
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), processors)


def _controller() -> Path:
    """Where groups of the processor controller are made, of either version (cgroups(7))."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(where)
        controllers = Path(where, "cgroup.controllers")
        if kind == "cgroup2" and "cpu" in controllers.read_text().split():
            Path(where, "cgroup.subtree_control").write_text("+cpu")
            return Path(where)
    raise RuntimeError("the kernel offers no control groups for processors, which this needs")


def _remove(group: Path) -> None:
    """Killed processes leave it a moment after they were waited for."""
    deadline = time.monotonic() + _EMPTY_SECONDS
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
