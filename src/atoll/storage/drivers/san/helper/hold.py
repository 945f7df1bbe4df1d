"""Holds back all writes of several thin devices around a snapshot, never for longer than a limit.

A suspended device completes no request and takes no new one, so what is done while all of a
group's devices are suspended sees one instant of them: a write that it lacks was not acknowledged,
and so none that waits for it was issued.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from atoll.model.errors import StorageUnreachableError
from atoll.storage.drivers.san.helper import dm

LIMIT_SECONDS = 5.0
"""After this long initiators matter more than the snapshot."""


class BarrierBrokenError(StorageUnreachableError):
    """Writes went on before it was done; what was done meanwhile is not one instant."""


def while_held(
    devices: Sequence[str], action: Callable[[], None], limit_seconds: float = LIMIT_SECONDS
) -> tuple[float, float, float]:
    """Do `action` while these devices are suspended.

    Returns the seconds since the epoch before and after, and for how many
    seconds writes were held back. They go on when this returns or raises, when
    this process is killed at any instruction, and after `limit_seconds`.
    BarrierBrokenError in that case: undo `action` then.
    """
    with _Watchdog(devices, limit_seconds):
        began = time.monotonic()
        started_at = time.time()
        try:
            for device in devices:
                dm.suspend(device)
            action()
            finished_at = time.time()
            # Nobody but the watchdog resumes them, and only once: what is suspended now was so
            # throughout.
            if not all(_suspended(device) for device in devices):
                raise BarrierBrokenError(
                    f"Writes were held for {limit_seconds:g} s and the snapshot was not done, so "
                    "they were let go and no snapshot was kept; try again when the SAN's disks "
                    "are less busy."
                )
        finally:
            release(devices)
        return started_at, finished_at, time.monotonic() - began


def release(devices: Sequence[str]) -> list[str]:
    """Let writes of these devices go on; returns those that were held. Each gets its try."""
    held = [device for device in devices if _suspended(device)]
    failed = None
    for device in held:
        try:
            dm.resume(device)
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed
    return held


class _Watchdog:
    """A process of its own that resumes the devices after the limit, or as soon as this one dies.

    Forked, not started: what it needs is in memory, whatever state the SAN's
    disks are in.
    """

    def __init__(self, devices: Sequence[str], limit_seconds: float) -> None:
        self._devices = tuple(devices)
        self._limit_seconds = limit_seconds

    def __enter__(self) -> None:
        dm.control()  # opened before the fork, which closes all else
        theirs, self._ours = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            try:
                self._watch(theirs)
            finally:
                os._exit(0)
        os.close(theirs)

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):  # its time was over
            os.write(self._ours, b"d")
        os.close(self._ours)
        os.waitpid(self._child, 0)

    def _watch(self, told: int) -> None:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _keep_only(told, dm.control())
        if select.select([told], [], [], self._limit_seconds)[0] and os.read(told, 1):
            return
        # A suspension under way keeps the door to its device shut; the others must not wait for it.
        threads = [threading.Thread(target=release, args=([each],)) for each in self._devices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _keep_only(*kept: int) -> None:
    """Close everything else: a lock or a connection held here would outlive who holds it."""
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in kept:
            with suppress(OSError):  # the listing's own is closed already
                os.close(descriptor)


def _suspended(device: str) -> bool:
    found = dm.find(device)
    return found is not None and found.suspended
