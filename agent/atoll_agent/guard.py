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

_START_SECONDS = 15.0
_THAW_SECONDS = 5.0


@dataclass(frozen=True)
class Ending:
    """How a hold of file systems ended; `at` is seconds since the epoch, 0 when nobody knows."""

    held: bool
    reason: str
    at: float


class Guard:
    """One hold's watchdog process.

    `on_end` is called once, from a thread of its own, when the hold ends
    without `thaw` having been called.
    """

    def __init__(
        self,
        mounts: Sequence[Mount],
        sessions: Sequence[int],
        budget_seconds: float,
        lease_seconds: float,
        on_end: Callable[[Ending], None],
    ) -> None:
        self._mounts = tuple(mounts)
        self._on_end = on_end
        self._changed = threading.Condition()
        self._ready = False
        self._frozen_at: float | None = None
        self._refusal = ""
        self._ending: Ending | None = None
        self._asked = False
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
            self._send_orders(pidfds, budget_seconds, lease_seconds)
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

    def freeze(self, deadline: Deadline) -> float:
        """Freeze all file systems; returns when that was, by the guest's clock.

        Raises HoldError, with nothing left frozen, when one of them refuses or
        the time runs out.
        """
        self._command(b"freeze\n")
        self._wait(lambda: self._frozen_at is not None, deadline.remaining)
        if self._frozen_at is None or self._ending is not None:
            ending = self.thaw()
            reason = self._refusal or ending.reason or "the file systems took too long to freeze"
            raise HoldError(f"The file systems could not be held: {reason}.")
        return self._frozen_at

    def thaw(self) -> Ending:
        """Let go of all file systems and say whether they were held until now. Repeatable."""
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
            [sys.executable, "-B", "-s", "-m", "atoll_agent", "watchdog"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            cwd="/",
            # The package lies in a directory or in the zipapp; both are importable like this.
            env={"PYTHONPATH": source, "PATH": os.environ.get("PATH", os.defpath)},
            # Not in our process group: what is sent to stop us must not stop it.
            start_new_session=True,
        )

    def _send_orders(self, pidfds: list[int], budget: float, lease: float) -> None:
        orders = {
            "mountpoints": [mount.mountpoint for mount in self._mounts],
            "descriptors": self._descriptors,
            "sessions": pidfds,
            "budget_seconds": budget,
            "lease_seconds": lease,
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
        ending: Ending | None = None
        for line in self._process.stdout:
            ending = self._note(json.loads(line)) or ending
        self._process.wait()
        if ending is None or self._process.returncode != 0:
            ending = self._thaw_ourselves()
        self._close_descriptors()
        with self._changed:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
            self._ending = ending
            asked = self._asked
            self._changed.notify_all()
        if not asked and self._frozen_at is not None:
            self._on_end(ending)

    def _note(self, event: dict[str, Any]) -> Ending | None:
        with self._changed:
            if event["event"] == "ready":
                self._ready = True
            elif event["event"] == "frozen":
                self._frozen_at = event["at"]
            elif event["event"] == "failed":
                self._refusal = event["reason"]
            elif event["event"] == "ended":
                return Ending(event["held"], event["reason"], event["at"])
            self._changed.notify_all()
        return None

    def _thaw_ourselves(self) -> Ending:
        for descriptor in reversed(self._descriptors):
            freezing.thaw(descriptor)
        status = self._process.returncode
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return Ending(False, f"the watchdog died ({how})", 0.0)

    def _close_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())
