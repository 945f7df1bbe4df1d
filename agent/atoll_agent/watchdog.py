"""The process that freezes and thaws the file systems and outlives the agent.

It alone issues FIFREEZE, so an agent that was stopped for a while cannot
freeze anything after its lease has ended. It thaws when it is asked, when the
lease or the budget ends, and when its standard input closes because the agent
died. It opens nothing, writes to pipes only and is locked in memory: nothing it
needs lies on what it froze.

It is started before it is needed, because starting takes a while, and waits
armed for the hold. Input is one line of JSON (`Orders`), then the lines `begin
BUDGET LEASE` (seconds; the budget counts from here), `freeze` and `thaw`.
Output is one JSON object a line:
`{"event": "ready" | "begun" | "frozen" | "failed" | "ended", …}`.
"""

import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from atoll_agent import freezing
from atoll_agent.clock import Deadline

_MCL_CURRENT, _MCL_FUTURE = 1, 2
# How long a check for the lease may be late when no event wakes us.
_TICK_SECONDS = 0.25
# Locked in memory, a thread's stack is filled page by page before it runs; the usual 8 MiB take
# milliseconds that every guest of the run waits for.
_STACK_BYTES = 128 << 10


@dataclass(frozen=True)
class Orders:
    """What to freeze when told to. `descriptors` and `sessions` (pidfds) were inherited.

    `sessions` are the database clients to end when the hold breaks, so that
    their locks go with it even if the agent hangs. `armed_seconds` is how long
    to wait for a hold to begin.
    """

    mountpoints: tuple[str, ...]
    descriptors: tuple[int, ...]
    sessions: tuple[int, ...]
    armed_seconds: float


class Frost:
    """The file systems in the order they freeze, and how far that has come."""

    def __init__(self, mountpoints: tuple[str, ...], descriptors: tuple[int, ...]) -> None:
        self._mounts = tuple(zip(mountpoints, descriptors, strict=True))
        self._lock = threading.Lock()
        self._frozen: list[tuple[str, int]] = []
        self._over = False

    def freeze(self) -> str:
        """Freeze all; returns an empty string or which failed and why. Undoes what comes too late."""
        for mountpoint, descriptor in self._mounts:
            with self._lock:
                if self._over:
                    return "the hold was over before all file systems were frozen"
            # Outside the lock: this waits for the disk, and the deadline must not wait with it.
            refusal = freezing.freeze(descriptor)
            if refusal:
                return f"{mountpoint} could not be frozen: {refusal}"
            with self._lock:
                self._frozen.append((mountpoint, descriptor))
                if self._over:
                    self._thaw_all()
        return ""

    def thaw(self) -> list[str]:
        """Thaw all, last frozen first; returns what was found not frozen."""
        with self._lock:
            self._over = True
            return self._thaw_all()

    def _thaw_all(self) -> list[str]:
        wrong = []
        while self._frozen:
            mountpoint, descriptor = self._frozen.pop()
            refusal = freezing.thaw(descriptor)
            if refusal:
                wrong.append(f"{mountpoint}: {refusal}")
        return wrong


def main() -> int:
    """Wait armed, then run one hold, from orders to thaw."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.write(wake_write, b"s"))
    orders, rest = _read_orders()
    stay_in_memory()
    threading.stack_size(_STACK_BYTES)
    frost = Frost(orders.mountpoints, orders.descriptors)
    _say(event="ready")
    return _Watch(orders, frost, wake_read, wake_write, rest).run()


class _Watch:
    """Waits for the first of: a command, the deadline, the agent's death, a signal."""

    def __init__(
        self, orders: Orders, frost: Frost, wake_read: int, wake_write: int, rest: bytes
    ) -> None:
        self._orders = orders
        self._frost = frost
        self._wake = (wake_read, wake_write)
        self._input = rest
        self._deadline = Deadline(orders.armed_seconds)
        self._limit = f"no hold began within {orders.armed_seconds:g} s"
        self._lease_seconds: float | None = None
        self._refusal: str | None = None
        self._freeze_seconds = 0.0
        self._freezer: threading.Thread | None = None

    def run(self) -> int:
        while True:
            while b"\n" in self._input:
                command, _, self._input = self._input.partition(b"\n")
                if command.startswith(b"begin ") and self._lease_seconds is None:
                    self._begin(*map(float, command.split()[1:]))
                elif command == b"freeze" and self._lease_seconds and self._freezer is None:
                    self._freezer = threading.Thread(target=self._freeze)
                    self._freezer.start()
                elif command == b"thaw":
                    # One who was kept from running may find both at once; then the time was over.
                    return self._end(self._limit if self._deadline.passed else "")
            if self._deadline.passed:
                return self._end(self._limit)
            timeout = min(self._deadline.remaining, _TICK_SECONDS)
            ready, _, _ = select.select([0, self._wake[0]], [], [], timeout)
            if self._wake[0] in ready and (reason := self._woken()):
                return self._end(reason)
            if 0 in ready:
                received = os.read(0, 4096)
                if not received:
                    return self._end("the agent died")
                self._input += received

    def _begin(self, budget_seconds: float, lease_seconds: float) -> None:
        self._deadline = Deadline(budget_seconds)
        self._limit = f"the budget of {budget_seconds:g} s to freeze ran out"
        self._lease_seconds = lease_seconds
        _say(event="begun")

    def _freeze(self) -> None:
        began = time.monotonic()
        refusal = self._frost.freeze()
        self._freeze_seconds = time.monotonic() - began
        self._refusal = refusal
        os.write(self._wake[1], b"f")

    def _woken(self) -> str:
        """Act on the freezer's end or a signal; returns why the hold is over, if it is."""
        signs = os.read(self._wake[0], 64)
        if b"s" in signs:
            return "the watchdog was told to stop"
        if self._refusal:
            _say(event="failed", reason=self._refusal)
            return self._refusal
        # Counted from here: the promise is a lease of that length once all is held.
        assert self._lease_seconds is not None
        self._deadline = Deadline(self._lease_seconds)
        self._limit = f"the lease of {self._lease_seconds:g} s ended"
        _say(event="frozen", at=time.time(), seconds=self._freeze_seconds)
        return ""

    def _end(self, reason: str) -> int:
        wrong = self._frost.thaw()
        still_freezing = self._freezer is not None and self._refusal is None
        if reason or still_freezing:
            # Before the wait below, which is for one disk and must not keep other disks' databases.
            for session in self._orders.sessions:
                # Gone already is what we want.
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(session, signal.SIGKILL)
        if self._freezer is not None:
            # It may still wait for the disk; leaving now would leave frozen what it freezes next.
            self._freezer.join()
        at = time.time()
        broken = "; ".join([*([reason] if reason else []), *wrong])
        # Nobody may be left to hear it, which must not keep us from ending.
        with suppress(BrokenPipeError):
            _say(event="ended", held=not broken, reason=broken, at=at)
        return 0


def _read_orders() -> tuple[Orders, bytes]:
    received = b""
    while b"\n" not in received:
        part = os.read(0, 65536)
        if not part:
            raise SystemExit(1)
        received += part
    line, _, rest = received.partition(b"\n")
    given = json.loads(line)
    return (
        Orders(
            mountpoints=tuple(given["mountpoints"]),
            descriptors=tuple(given["descriptors"]),
            sessions=tuple(given["sessions"]),
            armed_seconds=given["armed_seconds"],
        ),
        rest,
    )


def stay_in_memory() -> None:
    """Keep every page resident and be the last to be killed for want of memory, where allowed."""
    # Paging in from a frozen file system still works (reads are served), so a refusal
    # by a container's limits makes us slower, not unsafe.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlockall(_MCL_CURRENT | _MCL_FUTURE)
    try:
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    with suppress(PermissionError):
        os.write(descriptor, b"-1000")
    os.close(descriptor)


def _say(**event: Any) -> None:
    os.write(sys.stdout.fileno(), json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    # Without the interpreter's tidying: the guest's applications are waiting for their turn.
    os._exit(main())
