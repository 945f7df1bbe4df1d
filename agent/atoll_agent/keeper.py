"""Which run holds this guest, and what became of the runs before."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from atoll_agent.application import Application
from atoll_agent.clock import Deadline
from atoll_agent.errors import AgentError, ApplicationError, ConflictError, HoldError
from atoll_agent.guard import Ending
from atoll_agent.hold import Held, Hold, Released
from atoll_agent.mounts import Mount
from atoll_agent.protocol import FreezeRequest
from atoll_agent.syncing import sync_filesystem

_REMEMBERED = 64
_PREPARE_SECONDS = 600.0
_MAX_THREADS = 8


@dataclass(frozen=True)
class State:
    """`state` is `idle`, `freezing`, `held` or `thawing`; `run` is whose, empty when idle."""

    state: str
    run: str


class Keeper:
    """The only holder of state in the agent; every call is thread-safe.

    `find_applications` and `find_mounts` look afresh for each run; the mounts
    come in the order in which to freeze them.
    """

    def __init__(
        self,
        find_applications: Callable[[], Sequence[Application]],
        find_mounts: Callable[[], Sequence[Mount]],
    ) -> None:
        self._find_applications = find_applications
        self._find_mounts = find_mounts
        self._changed = threading.Condition()
        self._state = State("idle", "")
        self._hold: Hold | None = None
        self._cancelled = False
        self._past: OrderedDict[str, Released] = OrderedDict()

    def prepare(self, run: str) -> None:
        """Flush file systems and applications while everything serves.

        Raises ConflictError while another run holds, HoldError when an
        application did not flush.
        """
        with self._changed:
            if self._state.state != "idle":
                raise self._conflict(run)
        for mount in self._find_mounts():
            # Gone since it was listed: there is nothing to flush.
            with suppress(FileNotFoundError):
                sync_filesystem(mount.mountpoint)
        deadline = Deadline(_PREPARE_SECONDS)
        applications = self._find_applications()
        if not applications:
            return
        with ThreadPoolExecutor(min(_MAX_THREADS, len(applications))) as pool:
            failed = [
                reason
                for reason in pool.map(lambda each: _prepare(each, deadline), applications)
                if reason
            ]
        if failed:
            raise HoldError(f"Not prepared: {'; '.join(failed)}.")

    def freeze(self, request: FreezeRequest) -> Held:
        """Hold the guest; while the same run holds it, answers the same again.

        Raises ConflictError when another run holds it, HoldError when it could
        not be held; then nothing is.
        """
        with self._changed:
            if self._state == State("held", request.run) and self._hold and self._hold.held:
                return self._hold.held
            if self._state.state != "idle":
                raise self._conflict(request.run)
            self._state = State("freezing", request.run)
            self._cancelled = False
            self._past.pop(request.run, None)
        hold: Hold | None = None
        try:
            hold = Hold(request, self._find_applications(), self._find_mounts(), self._broke)
            with self._changed:
                self._hold = hold
            held = hold.start(lambda: self._cancelled)
        except BaseException as error:
            reason = str(error) if isinstance(error, AgentError) else "the agent failed"
            self._settle(Released(request.run, False, reason, None, time.time()))
            raise
        with self._changed:
            self._state = State("held", request.run)
            self._changed.notify_all()
        return held

    def thaw(self, run: str) -> Released:
        """Let go of this run's hold and say whether it was unbroken; the same answer when repeated."""
        with self._changed:
            if self._state == State("freezing", run):
                self._cancelled = True
                self._changed.wait_for(lambda: self._state != State("freezing", run))
            self._changed.wait_for(lambda: self._state != State("thawing", run))
            if run in self._past:
                return self._past[run]
            if self._state != State("held", run) or self._hold is None:
                return Released(
                    run, False, f"this agent holds nothing for run {run}", None, time.time()
                )
            self._state = State("thawing", run)
            hold = self._hold
        released = hold.finish()
        self._settle(released)
        return released

    def state(self) -> State:
        """What is held now."""
        with self._changed:
            return self._state

    def stop(self) -> None:
        """Let go of whatever is held, because the agent ends."""
        state = self.state()
        if state.state != "idle":
            self.thaw(state.run)

    def _broke(self, hold: Hold, ending: Ending) -> None:
        """The watchdog let go by itself. Applications may still be locked if only it died."""
        with self._changed:
            # `held` follows from `freezing` at once; the end must not be judged before it.
            self._changed.wait_for(lambda: self._state.state != "freezing")
            if self._hold is not hold or self._state.state != "held":
                return
            self._state = State("thawing", hold.request.run)
        released = hold.finish()
        self._settle(released)

    def _settle(self, released: Released) -> None:
        with self._changed:
            self._past[released.run] = released
            while len(self._past) > _REMEMBERED:
                self._past.popitem(last=False)
            self._state = State("idle", "")
            self._hold = None
            self._changed.notify_all()

    def _conflict(self, run: str) -> ConflictError:
        return ConflictError(
            f"Run {run} cannot have this guest: run {self._state.run} is {self._state.state} here."
        )


def _prepare(application: Application, deadline: Deadline) -> str:
    try:
        application.prepare(deadline)
    except ApplicationError as error:
        return f"{application.kind} {application.name}: {error}"
    return ""
