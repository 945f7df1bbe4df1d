"""One hold: its applications and file systems, from open to thaw."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from atoll_agent.application import Application, HeldApplication
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError, HoldError
from atoll_agent.guard import Ending, Guard
from atoll_agent.mounts import Mount
from atoll_agent.protocol import FreezeRequest

# Of the budget, what applications may use; the rest is for the file systems.
_APPLICATION_SHARE = 0.75
_CHECK_SECONDS = 5.0
_MAX_THREADS = 8

_T = TypeVar("_T")


@dataclass(frozen=True)
class Held:
    """The answer to a freeze that succeeded."""

    run: str
    frozen_at: float
    applications: tuple[HeldApplication, ...]
    filesystems: tuple[str, ...]


@dataclass(frozen=True)
class Released:
    """The answer to a thaw. `frozen_at` None: nothing was ever held for this run."""

    run: str
    held: bool
    reason: str
    frozen_at: float | None
    thawed_at: float


class Hold:
    """Applications, then file systems, under one watchdog.

    `on_end` is called from another thread when the hold ends by itself.
    """

    def __init__(
        self,
        request: FreezeRequest,
        applications: Sequence[Application],
        mounts: Sequence[Mount],
        on_end: Callable[["Hold", Ending], None],
    ) -> None:
        self.request = request
        self.held: Held | None = None
        self._applications = tuple(applications)
        self._mounts = tuple(mounts)
        self._on_end = on_end
        self._guard: Guard | None = None

    def start(self, cancelled: Callable[[], bool]) -> Held:
        """Hold everything within the budget. HoldError when file systems refuse; then nothing is held."""
        deadline = Deadline(self.request.budget_seconds)
        try:
            opened, refused = self._open(deadline)
            self._guard = Guard(
                self._mounts,
                [pid for _, pids in opened for pid in pids],
                deadline.remaining,
                self.request.lease_seconds,
                lambda ending: self._on_end(self, ending),
            )
            states = self._hold([application for application, _ in opened], deadline)
            frozen_at = self._freeze(self._guard, deadline, cancelled)
        except BaseException:
            if self._guard is not None:
                self._guard.thaw()
            self._close()
            raise
        self.held = Held(
            run=self.request.run,
            frozen_at=frozen_at,
            applications=(*states, *refused),
            filesystems=tuple(mount.mountpoint for mount in self._mounts),
        )
        return self.held

    def finish(self) -> Released:
        """Thaw file systems, then applications, and say whether all was held until now."""
        assert self._guard is not None
        assert self.held is not None
        ending = self._guard.thaw()
        # Locks cannot be lost and had again, so asking now speaks for the whole hold.
        lost = [reason for reason in self._each(self._still_held) if reason]
        self._close()
        return Released(
            run=self.request.run,
            held=ending.held and not lost,
            reason="; ".join(([ending.reason] if ending.reason else []) + lost),
            frozen_at=self.held.frozen_at,
            thawed_at=ending.at or time.time(),
        )

    def _open(
        self, deadline: Deadline
    ) -> tuple[list[tuple[Application, list[int]]], list[HeldApplication]]:
        opened, refused = [], []
        for application in self._applications:
            try:
                opened.append((application, application.open(deadline)))
            except ApplicationError as error:
                refused.append(
                    HeldApplication(
                        kind=application.kind,
                        name=application.name,
                        held=False,
                        position="",
                        witness=None,
                        flush_seconds=0.0,
                        detail=str(error),
                    )
                )
        return opened, refused

    def _hold(
        self, applications: Sequence[Application], deadline: Deadline
    ) -> list[HeldApplication]:
        limit = deadline.within(deadline.remaining * _APPLICATION_SHARE)
        return _in_parallel(applications, lambda application: application.hold(limit))

    def _freeze(self, guard: Guard, deadline: Deadline, cancelled: Callable[[], bool]) -> float:
        if cancelled():
            raise HoldError("It was thawed before it was held.")
        return guard.freeze(deadline)

    def _still_held(self, application: Application) -> str:
        return application.still_held(Deadline(_CHECK_SECONDS))

    def _close(self) -> None:
        self._each(lambda application: application.close())

    def _each(self, act: Callable[[Application], _T]) -> list[_T]:
        return _in_parallel(self._applications, act)


def _in_parallel(applications: Sequence[Application], act: Callable[[Application], _T]) -> list[_T]:
    if not applications:
        return []
    with ThreadPoolExecutor(min(_MAX_THREADS, len(applications))) as pool:
        return list(pool.map(act, applications))
