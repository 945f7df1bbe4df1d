"""One hold: its applications and file systems, from begin to thaw."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from atoll_agent.application import Application, HeldApplication, KeepsRecord
from atoll_agent.arming import Armed
from atoll_agent.clock import Deadline
from atoll_agent.errors import HoldError
from atoll_agent.guard import Ending
from atoll_agent.protocol import FreezeRequest

# Of the budget, what applications may use; the rest is for the file systems.
_APPLICATION_SHARE = 0.75
_CHECK_SECONDS = 5.0


@dataclass(frozen=True)
class Held:
    """The answer to a freeze that succeeded. Times are seconds since the epoch.

    `began_at` is just before the first application was asked to hold,
    `frozen_at` when the last file system was frozen; of the time between,
    `freeze_seconds` passed in the kernel, which freezes them.
    """

    run: str
    began_at: float
    frozen_at: float
    applications: tuple[HeldApplication, ...]
    filesystems: tuple[str, ...]
    freeze_seconds: float


@dataclass(frozen=True)
class Released:
    """The answer to a thaw. `frozen_at` None: nothing was ever held for this run.

    `thawed_at` is when the last application was let go, or when the hold broke.
    """

    run: str
    held: bool
    reason: str
    frozen_at: float | None
    thawed_at: float


class Hold:
    """Applications, then file systems, of an armed guest under its watchdog.

    The hold owns what was armed from here on. `on_end` is called from another
    thread when the hold ends by itself.
    """

    def __init__(
        self,
        request: FreezeRequest,
        armed: Armed,
        on_end: Callable[["Hold", Ending], None],
    ) -> None:
        self.request = request
        self.held: Held | None = None
        self._armed = armed
        self._on_end = on_end

    def begin(self, deadline: Deadline) -> bool:
        """Start the watchdog's clock; False when it is no longer there. Holds nothing yet."""
        return self._armed.guard.begin(
            deadline, self.request.lease_seconds, lambda ending: self._on_end(self, ending)
        )

    def start(self, deadline: Deadline, cancelled: Callable[[], bool]) -> Held:
        """Hold everything by the deadline, after `begin`.

        Raises HoldError when file systems refuse; then nothing is held.
        """
        armed = self._armed
        try:
            began_at = time.time()
            limit = deadline.within(deadline.remaining * _APPLICATION_SHARE)
            states = armed.each(lambda application: application.hold(limit))
            frozen_at = self._freeze(deadline, cancelled)
        except BaseException:
            armed.disarm()
            raise
        self.held = Held(
            run=self.request.run,
            began_at=began_at,
            frozen_at=frozen_at,
            applications=(*states, *armed.refused),
            filesystems=tuple(mount.mountpoint for mount in armed.mounts),
            freeze_seconds=armed.guard.freeze_seconds,
        )
        return self.held

    def finish(self, snapshot: bool | None = None) -> Released:
        """Thaw file systems, then applications, and say whether all was held until now.

        `snapshot` is whether one was taken, for applications that keep a record of it.
        """
        assert self.held is not None
        ending = self._armed.guard.thaw()

        def let_go(application: Application) -> str:
            if snapshot is not None and isinstance(application, KeepsRecord):
                application.note_snapshot(snapshot)
            return _let_go(application)

        # Locks cannot be lost and had again, so asking now speaks for the whole hold.
        lost = [reason for reason in self._armed.each(let_go) if reason]
        now = time.time()
        return Released(
            run=self.request.run,
            held=ending.held and not lost,
            reason="; ".join(([ending.reason] if ending.reason else []) + lost),
            frozen_at=self.held.frozen_at,
            thawed_at=now if ending.held else ending.at or now,
        )

    def _freeze(self, deadline: Deadline, cancelled: Callable[[], bool]) -> float:
        if cancelled():
            raise HoldError("It was thawed before it was held.")
        return self._armed.guard.freeze(deadline)


def _let_go(application: Application) -> str:
    try:
        return application.still_held(Deadline(_CHECK_SECONDS))
    finally:
        application.close()
