"""Holds a tgtd's answers back around snapshots, while its backing store goes on working.

For a backing store inside tgtd that a snapshot needs alive, which `barrier` would stop: librbd's
threads hold the images' locks and take part in each snapshot. One thread of tgtd, its first, reads
every iSCSI command and sends every answer; others carry out what it has taken. With the first
thread still, no write is acknowledged and no new one is taken, so volumes snapshot one after another
are snapshot at one instant: a write that a snapshot lacks was not acknowledged, and none that waits
for it was issued.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atoll.storage.backend import SnapshotTimes
from atoll.storage.targets.tgt import holder
from atoll.storage.targets.tgt.barrier import BarrierBrokenError
from atoll.storage.targets.tgt.process import TargetProcess


def while_answers_held(
    process: TargetProcess | None, action: Callable[[], None], *, limit_seconds: float
) -> SnapshotTimes:
    """Do `action` while `process` answers nothing; without a process, just do it.

    Answers flow again when this returns or raises, after `limit_seconds`, and at
    once if this process or the one that holds them is killed. BarrierBrokenError
    if that was before `action` was done: undo `action` then.
    """
    if process is None:
        started_at = time.time()
        action()
        return SnapshotTimes(started_at, time.time(), 0.0)
    with _holder(process, limit_seconds) as guard:
        started_at, began = time.time(), time.monotonic()
        _expect(guard, "held", limit_seconds)
        action()
        finished_at = time.time()
        _expect(guard, "released", limit_seconds)
        return SnapshotTimes(started_at, finished_at, time.monotonic() - began)


@contextmanager
def _holder(process: TargetProcess, limit_seconds: float) -> Iterator["subprocess.Popen[bytes]"]:
    guard = subprocess.Popen(
        [
            sys.executable, "-I", "-S", os.fspath(Path(holder.__file__)),
            str(process.pid), str(process.pidfd), str(limit_seconds),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        pass_fds=(process.pidfd,),
        start_new_session=True,  # a signal to the caller's group must not take both
    )  # fmt: skip
    with guard:
        if guard.stdout is None or guard.stdout.readline() != b"ready\n":
            raise BarrierBrokenError(
                "The process that holds the iSCSI daemon's answers back did not start, so no "
                "snapshot was taken; check memory and the process limit."
            )
        yield guard


def _expect(guard: "subprocess.Popen[bytes]", wanted: str, limit_seconds: float) -> None:
    """Give the word and hear that it was done."""
    said = ""
    if guard.stdin is not None and guard.stdout is not None:
        with suppress(BrokenPipeError):  # it gave up before; the reason is still to be read
            guard.stdin.write(b".")
        said = guard.stdout.readline().decode(errors="replace").strip()
    if said != wanted:
        raise BarrierBrokenError(
            f"The iSCSI daemon's answers could not be held back for the snapshot "
            f"({said or 'the holding process was killed'}; at most {limit_seconds:g} s), and no "
            "snapshot was kept; try again when the cluster is less busy, and see "
            "docs/drivers/ceph.md if it stays so."
        )
