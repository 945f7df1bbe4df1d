"""Deadlines by a clock that only runs forward and counts suspended time."""

import time


def boottime() -> float:
    """Seconds since boot, suspension included (CLOCK_BOOTTIME; the only such clock of Windows)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Deadline:
    """A moment by the boot clock after which nobody waits any more."""

    def __init__(self, seconds: float) -> None:
        self._at = boottime() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._at - boottime())

    @property
    def passed(self) -> bool:
        """Whether the moment is over."""
        return self.remaining <= 0

    def within(self, seconds: float) -> "Deadline":
        """The sooner of this deadline and `seconds` from now."""
        return Deadline(min(seconds, self.remaining))
