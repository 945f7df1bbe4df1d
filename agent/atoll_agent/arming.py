"""A guest made ready for one run's hold: sessions open and a watchdog waiting, nothing held.

Starting processes and connecting takes longer than holding. Whoever did it
before makes the hold short; until then it costs the guest some idle processes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from atoll_agent.application import Application, HeldApplication
from atoll_agent.clock import Deadline
from atoll_agent.errors import ApplicationError
from atoll_agent.mounts import Mount
from atoll_agent.system import this_system

ARMED_SECONDS = 120.0
"""How long an armed guest waits for its hold."""

# Longer than ours, so that the watchdog acts only when the agent does not.
_WATCHDOG_SECONDS = ARMED_SECONDS + 30.0
# Of the time to freeze, what may go into looking whether the arming is still good.
_CHECK_SHARE = 0.25
_MAX_THREADS = 8

_T = TypeVar("_T")


class Armed:
    """Opens the applications' sessions and starts the watchdog for one run.

    An application that cannot be opened is in `refused` and left out. Raises
    HoldError when the watchdog does not start; then nothing is left open.
    """

    def __init__(
        self,
        run: str,
        applications: Sequence[Application],
        mounts: Sequence[Mount],
        deadline: Deadline,
    ) -> None:
        self.run = run
        self.mounts = tuple(mounts)
        self.applications: tuple[Application, ...] = ()
        self.refused: tuple[HeldApplication, ...] = ()
        self._found = _names(applications)
        self._limit = Deadline(ARMED_SECONDS)
        try:
            sessions = self._open(applications, deadline)
            self.guard = this_system().guard(self.mounts, sessions, _WATCHDOG_SECONDS)
        except BaseException:
            self.close()
            raise

    def fits(
        self, applications: Sequence[Application], mounts: Sequence[Mount], deadline: Deadline
    ) -> bool:
        """Whether a hold of it would hold what is there now: nothing came, went, died or aged."""
        if self._limit.passed or not self.guard.alive:
            return False
        if self._found != _names(applications) or self.mounts != tuple(mounts):
            return False
        limit = deadline.within(deadline.remaining * _CHECK_SHARE)
        return all(self.each(lambda application: application.still_ready(limit)))

    def disarm(self) -> None:
        """End watchdog and sessions. Repeatable."""
        self.guard.thaw()
        self.close()

    def close(self) -> None:
        """End the sessions alone. Repeatable."""
        self.each(lambda application: application.close())

    def each(self, act: Callable[[Application], _T]) -> list[_T]:
        """What `act` makes of each application, all at once, in their order."""
        return in_parallel(self.applications, act)

    def _open(self, applications: Sequence[Application], deadline: Deadline) -> list[int]:
        def open_one(application: Application) -> list[int] | HeldApplication:
            try:
                return application.open(deadline)
            except ApplicationError as error:
                return _refused(application, str(error))

        # Known before they are opened, so that a failure half-way closes them too.
        self.applications = tuple(applications)
        answers = self.each(open_one)
        sessions: list[int] = []
        opened, refused = [], []
        for application, answer in zip(applications, answers, strict=True):
            if isinstance(answer, HeldApplication):
                refused.append(answer)
            else:
                opened.append(application)
                sessions += answer
        self.applications, self.refused = tuple(opened), tuple(refused)
        return sessions


def in_parallel(applications: Sequence[Application], act: Callable[[Application], _T]) -> list[_T]:
    """What `act` makes of each application, all at once, in their order."""
    if not applications:
        return []
    with ThreadPoolExecutor(min(_MAX_THREADS, len(applications))) as pool:
        return list(pool.map(act, applications))


def _names(applications: Sequence[Application]) -> tuple[tuple[str, str], ...]:
    return tuple((application.kind, application.name) for application in applications)


def _refused(application: Application, reason: str) -> HeldApplication:
    return HeldApplication(
        kind=application.kind,
        name=application.name,
        held=False,
        position="",
        witness=None,
        flush_seconds=0.0,
        detail=reason,
    )
