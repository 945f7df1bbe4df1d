"""Holds a group's tgtd still around a snapshot: no write is acknowledged meanwhile.

A btrfs snapshot of several files is not by itself one instant for whoever writes to them. All
acknowledgements of a group leave one process, so stopping every thread of it makes the snapshot
one: a write it lacks was not acknowledged, and so none that waits for it was issued.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.storage.backend import SnapshotTimes
from atoll.storage.targets.tgt import watchdog
from atoll.storage.targets.tgt.process import TargetProcess

LIMIT_SECONDS = 5.0
"""After this long initiators matter more than the snapshot."""

_POLL_SECONDS = 0.0005


class BarrierBrokenError(StorageUnreachableError):
    """The daemon could not be held still long enough; what was done meanwhile is not atomic."""


def while_held(
    process: TargetProcess | None,
    action: Callable[[], None],
    *,
    limit_seconds: float = LIMIT_SECONDS,
) -> SnapshotTimes:
    """Do `action` while `process` is stopped; without a process, just do it.

    The process runs again when this returns or raises, and also if this process
    is killed at any instruction. BarrierBrokenError if it ran before `action`
    was done: undo `action` then.
    """
    started_at = time.time()
    if process is None:
        action()
        return SnapshotTimes(started_at, time.time(), 0.0)
    with _watched(process, limit_seconds):
        started_at = time.time()
        began = time.monotonic()
        try:
            process.signal(signal.SIGSTOP)
            _wait_until_stopped(process, limit_seconds)
            action()
            finished_at = time.time()
            # Only the watchdog wakes it, and only once: stopped now means stopped throughout.
            if not process.stopped():
                raise BarrierBrokenError(_too_slow(limit_seconds))
        finally:
            process.signal(signal.SIGCONT)
        return SnapshotTimes(started_at, finished_at, time.monotonic() - began)


def _wait_until_stopped(process: TargetProcess, limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    # A thread inside a disk write stops when the write is done.
    while not process.stopped():
        if process.ended():
            raise BarrierBrokenError(
                "The iSCSI daemon ended while it was to be held still; no snapshot was kept: "
                "reconcile starts it again, then try once more."
            )
        if time.monotonic() > deadline:
            raise BarrierBrokenError(_too_slow(limit_seconds))
        time.sleep(_POLL_SECONDS)


def _too_slow(limit_seconds: float) -> str:
    return (
        f"Writes were held for {limit_seconds:g} s and the snapshot was not done, so they were let "
        "go and no snapshot was kept; try again when the pool's disks are less busy."
    )


@contextmanager
def _watched(process: TargetProcess, limit_seconds: float) -> Iterator[None]:
    script = Path(watchdog.__file__)
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), str(process.pidfd), str(limit_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # nothing left to be written to a watchdog that is gone
        pass_fds=(process.pidfd,),
        start_new_session=True,  # a signal to the caller's group must not take both
    )
    if guard.stdin is None or guard.stdout is None:
        raise AssertionError("pipes were asked for")
    with guard:
        if guard.stdout.readline() != b"armed\n":
            raise BarrierBrokenError(
                "The watchdog that lets the iSCSI daemon run again did not start, so the daemon "
                "was not stopped and no snapshot was taken; check memory and the process limit."
            )
        try:
            yield
        finally:
            # Gone before the next hold of this process can begin: a late one would break that.
            with suppress(BrokenPipeError):  # its time was over
                guard.stdin.write(b"d")
