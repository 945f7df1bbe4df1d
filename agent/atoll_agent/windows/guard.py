"""Times a hold on Windows, where no file system freezes and nothing outlives the agent that must end."""

import threading
import time
from collections.abc import Callable

from atoll_agent.clock import Deadline
from atoll_agent.errors import HoldError
from atoll_agent.guard import Ending


class TimedGuard:
    """One hold's clock in the agent itself, with the promises of `guard.Guard`.

    Should the agent die, a shadow copy is left, which stops nobody and which the
    next start deletes: no process needs to watch over it.
    """

    def __init__(self, armed_seconds: float) -> None:
        self._lock = threading.Lock()
        self._ending: Ending | None = None
        self._on_end: Callable[[Ending], None] | None = None
        self._lease_seconds = 0.0
        self._frozen = False
        self.freeze_seconds = 0.0
        self._timer = self._start(armed_seconds, f"no hold began within {armed_seconds:g} s")

    @property
    def alive(self) -> bool:
        with self._lock:
            return self._ending is None

    def begin(
        self, deadline: Deadline, lease_seconds: float, on_end: Callable[[Ending], None]
    ) -> bool:
        """Start the clock of the budget; False when the guard has ended."""
        with self._lock:
            if self._ending is not None:
                return False
            self._timer.cancel()
            self._on_end, self._lease_seconds = on_end, lease_seconds
            seconds = deadline.remaining
            self._timer = self._start(seconds, f"the budget of {seconds:g} s to freeze ran out")
            return True

    def freeze(self, deadline: Deadline) -> float:
        """Start the clock of the lease; freezes nothing. Returns when that was."""
        with self._lock:
            if self._ending is not None:
                raise HoldError(f"The guest could not be held: {self._ending.reason}.")
            self._timer.cancel()
            self._frozen = True
            seconds = self._lease_seconds
            self._timer = self._start(seconds, f"the lease of {seconds:g} s ended")
            return time.time()

    def thaw(self) -> Ending:
        """End the hold and say whether it was unbroken. Repeatable."""
        with self._lock:
            self._timer.cancel()
            if self._ending is None:
                self._ending = Ending(True, "", time.time())
            return self._ending

    def _start(self, seconds: float, reason: str) -> threading.Timer:
        timer = threading.Timer(seconds, self._run_out, (reason,))
        timer.daemon = True
        timer.start()
        return timer

    def _run_out(self, reason: str) -> None:
        with self._lock:
            if self._ending is not None:
                return
            self._ending = ending = Ending(False, reason, time.time())
            told = self._on_end if self._frozen else None
        if told is not None:
            told(ending)
