"""The agent's end of its watchdog: starts it, talks to it, and steps in if it dies."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll_agent import freezing
from atoll_agent.clock import Deadline
from atoll_agent.errors import HoldError
from atoll_agent.mounts import Mount

_START_SECONDS = 30.0
_BEGIN_SECONDS = 2.0
_THAW_SECONDS = 5.0
# After the lease, for a watchdog that is late because the guest is busy.
_OVERDUE_SECONDS = 5.0


@dataclass(frozen=True)
class Ending:
    """How a hold of file systems ended; `at` is seconds since the epoch, 0 when nobody knows."""

    held: bool
    reason: str
    at: float


class Guard:
    """One hold's watchdog process, which waits armed until the hold begins.

    Raises HoldError when it cannot be started. It ends by itself, with the
    sessions, when no hold begins within `armed_seconds`. `freeze_seconds` is how
    long the kernel took to freeze, once it has.
    """

    def __init__(
        self,
        mounts: Sequence[Mount],
        sessions: Sequence[int],
        armed_seconds: float,
    ) -> None:
        self._mounts = tuple(mounts)
        self._on_end: Callable[[Ending], None] | None = None
        self._changed = threading.Condition()
        self._ready = self._begun = self._told_to_freeze = False
        self._frozen_at: float | None = None
        self.freeze_seconds = 0.0
        self._refusal = ""
        self._ending: Ending | None = None
        self._asked = False
        self._lease_seconds = 0.0
        self._overdue: threading.Timer | None = None
        self._hung = False
        self._descriptors: list[int] = []
        pidfds: list[int] = []
        try:
            for mount in self._mounts:
                self._descriptors.append(
                    os.open(mount.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                )
            for pid in sessions:
                with suppress(ProcessLookupError):
                    pidfds.append(os.pidfd_open(pid))
            self._process = self._start((*self._descriptors, *pidfds))
            self._send_orders(pidfds, armed_seconds)
        except OSError as error:
            self._close_descriptors()
            raise HoldError(f"The watchdog could not be started: {error}.") from error
        finally:
            for descriptor in pidfds:
                os.close(descriptor)
        threading.Thread(target=self._listen, name="guard", daemon=True).start()
        self._wait(lambda: self._ready, _START_SECONDS)
        if not self._ready:
            self.thaw()
            raise HoldError("The watchdog did not start; nothing was frozen.")

    @property
    def alive(self) -> bool:
        """Whether the watchdog still waits or holds."""
        with self._changed:
            return self._ending is None

    def begin(
        self, deadline: Deadline, lease_seconds: float, on_end: Callable[[Ending], None]
    ) -> bool:
        """Start the clock of the budget; False when the watchdog is not there to keep it.

        `on_end` is called once, from a thread of its own, when what `freeze`
        froze is let go without `thaw` having been called.
        """
        self._on_end = on_end
        self._lease_seconds = lease_seconds
        self._command(f"begin {deadline.remaining!r} {lease_seconds!r}\n".encode())
        self._wait(lambda: self._begun, min(_BEGIN_SECONDS, deadline.remaining))
        with self._changed:
            return self._begun and self._ending is None

    def freeze(self, deadline: Deadline) -> float:
        """Freeze all file systems; returns when that was, by the guest's clock.

        Must follow `begin`. Raises HoldError, with nothing left frozen, when one of them refuses or
        the time runs out.
        """
        self._watch_the_watchdog(deadline.remaining + self._lease_seconds + _OVERDUE_SECONDS)
        self._told_to_freeze = True
        self._command(b"freeze\n")
        self._wait(lambda: self._frozen_at is not None, deadline.remaining)
        if self._frozen_at is None or self._ending is not None:
            ending = self.thaw()
            reason = self._refusal or ending.reason or "the file systems took too long to freeze"
            raise HoldError(f"The file systems could not be held: {reason}.")
        return self._frozen_at

    def thaw(self) -> Ending:
        """Let go of all file systems and say whether they were held until now. Repeatable.

        Before `freeze`, ends the watchdog without touching anything.
        """
        with self._changed:
            self._asked = True
        self._command(b"thaw\n")
        self._wait(lambda: False, _THAW_SECONDS)
        if self._ending is None:
            # Killed before we thaw ourselves, so that it cannot wake up and thaw a later hold.
            # The end may take as long as the disk takes to finish a freeze that has begun.
            self._process.kill()
            with self._changed:
                self._changed.wait_for(lambda: self._ending is not None)
        assert self._ending is not None
        return self._ending

    def _start(self, descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
        source = str(Path(__file__).parent.parent)
        return subprocess.Popen(
            # Not by way of the agent's own command, which loads all that only the agent needs.
            [sys.executable, "-B", "-s", "-m", "atoll_agent.watchdog"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            cwd="/",
            # The package lies in a directory or in the zipapp; both are importable like this.
            env={"PYTHONPATH": source, "PATH": os.environ.get("PATH", os.defpath)},
            # Not in our process group: what is sent to stop us must not stop it.
            start_new_session=True,
        )

    def _send_orders(self, pidfds: list[int], armed_seconds: float) -> None:
        orders = {
            "mountpoints": [mount.mountpoint for mount in self._mounts],
            "descriptors": self._descriptors,
            "sessions": pidfds,
            "armed_seconds": armed_seconds,
        }
        self._command(json.dumps(orders).encode() + b"\n")

    def _command(self, line: bytes) -> None:
        assert self._process.stdin is not None
        # A watchdog that is gone has thawed; _listen tells how it ended.
        with self._changed, suppress(BrokenPipeError, ValueError):
            os.write(self._process.stdin.fileno(), line)

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ending is not None or condition(), seconds)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._note(json.loads(line))
        self._process.wait()
        if self.alive:
            self._end(self._end_ourselves())
        self._close_descriptors()
        with self._changed:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()

    def _note(self, event: dict[str, Any]) -> None:
        if event["event"] == "ended":
            # All is thawed when it says so; that its process leaves takes longer.
            self._end(Ending(event["held"], event["reason"], event["at"]))
            return
        with self._changed:
            if event["event"] == "ready":
                self._ready = True
            elif event["event"] == "begun":
                self._begun = True
            elif event["event"] == "frozen":
                self._frozen_at = event["at"]
                self.freeze_seconds = event["seconds"]
            elif event["event"] == "failed":
                self._refusal = event["reason"]
            self._changed.notify_all()

    def _end(self, ending: Ending) -> None:
        with self._changed:
            if self._overdue is not None:
                self._overdue.cancel()
            self._ending = ending
            asked = self._asked
            self._changed.notify_all()
        if not asked and self._frozen_at is not None and self._on_end is not None:
            threading.Thread(target=self._on_end, args=(ending,), name="broke", daemon=True).start()

    def _watch_the_watchdog(self, seconds: float) -> None:
        """Should it hang, its lease would never end."""
        self._overdue = threading.Timer(seconds, self._end_the_watchdog)
        self._overdue.daemon = True
        self._overdue.start()

    def _end_the_watchdog(self) -> None:
        self._hung = True
        self._process.kill()

    def _end_ourselves(self) -> Ending:
        # What was never told to freeze is frozen by somebody else if it is at all.
        if self._told_to_freeze:
            for descriptor in reversed(self._descriptors):
                freezing.thaw(descriptor)
        status = self._process.returncode
        if self._hung:
            return Ending(False, "the watchdog hung, and the agent ended it", 0.0)
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return Ending(False, f"the watchdog died ({how})", 0.0)

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
