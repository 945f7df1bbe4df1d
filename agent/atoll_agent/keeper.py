"""Which run holds this guest or is about to, and what became of the runs before."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from atoll_agent.application import Application
from atoll_agent.arming import ARMED_SECONDS, Armed, in_parallel
from atoll_agent.clock import Deadline
from atoll_agent.errors import AgentError, ApplicationError, BusyError, ConflictError, HoldError
from atoll_agent.guard import Ending
from atoll_agent.hold import Held, Hold, Released
from atoll_agent.mounts import Mount
from atoll_agent.protocol import FreezeRequest
from atoll_agent.system import this_system

_T = TypeVar("_T")

_REMEMBERED = 64
PREPARE_SECONDS = 600.0
# Of the time to freeze, what applications may use to open their sessions when none were ready.
_ARM_SHARE = 0.5


@dataclass(frozen=True)
class State:
    """`state` is `idle`, `freezing`, `held` or `thawing`; `run` is whose, empty when idle.

    An armed guest is idle: nothing is held.
    """

    state: str
    run: str


class Keeper:
    """The only holder of state in the agent; every call is thread-safe.

    `find_applications` and `find_mounts` look afresh for each run; the mounts
    come in the order in which to freeze them. What `prepare` armed is let go
    after `armed_seconds`.
    """

    def __init__(
        self,
        find_applications: Callable[[], Sequence[Application]],
        find_mounts: Callable[[], Sequence[Mount]],
        armed_seconds: float = ARMED_SECONDS,
    ) -> None:
        self._find_applications = find_applications
        self._find_mounts = find_mounts
        self._armed_seconds = armed_seconds
        self._changed = threading.Condition()
        self._state = State("idle", "")
        self._hold: Hold | None = None
        self._armed: Armed | None = None
        self._disarming: threading.Timer | None = None
        self._cancelled = False
        self._past: OrderedDict[str, Released] = OrderedDict()
        self._called_off: OrderedDict[str, None] = OrderedDict()

    def prepare(self, run: str, seconds: float = PREPARE_SECONDS) -> None:
        """Flush file systems and applications while everything serves, then arm the guest.

        Applications may take `seconds` for it.

        What was armed before is disarmed. An application that does not flush is
        left to the hold, which tries again and tells. Raises ConflictError while
        another run holds, HoldError when no watchdog could be started.
        """
        with self._changed:
            if self._state.state != "idle":
                raise self._conflict(run)
        self._disarm()
        deadline = Deadline(seconds)
        mounts, applications = self._find_mounts(), self._find_applications()
        _sync(mounts)
        in_parallel(applications, _attempt(lambda each: each.prepare(deadline)))
        armed = Armed(run, applications, mounts, deadline)
        try:
            # Arming takes its time, and what was written meanwhile would be flushed under the hold.
            armed.each(_attempt(lambda each: each.flush_again(deadline)))
            _sync(mounts)
        except BaseException:
            armed.disarm()
            raise
        self._keep(armed)

    def freeze(self, request: FreezeRequest) -> Held:
        """Hold the guest; while the same run holds it, answers the same again.

        Quick when `prepare` armed the guest for this run, else arms it first. Asked
        again while it is under way, it answers as the first one does.
        Raises ConflictError when another run holds it, HoldError when it could
        not be held or was let go before it came; then nothing is.
        """
        deadline = Deadline(request.budget_seconds)
        under_way = State("freezing", request.run)
        with self._changed:
            again = self._state == under_way
            self._changed.wait_for(lambda: self._state != under_way, deadline.remaining)
            if self._state == State("held", request.run) and self._hold and self._hold.held:
                return self._hold.held
            if self._state.state != "idle":
                raise self._conflict(request.run)
            if again:
                # It failed, or was thawed meanwhile: nobody may want it held any more.
                reason = self._past[request.run].reason
                raise HoldError(reason or f"Run {request.run} was thawed meanwhile.")
            if request.run in self._called_off:
                raise HoldError(f"Run {request.run} was thawed before this freeze came.")
            self._state = State("freezing", request.run)
            self._cancelled = False
            self._past.pop(request.run, None)
        try:
            hold = self._begin(request, deadline)
            with self._changed:
                self._hold = hold
            held = hold.start(deadline, lambda: self._cancelled)
        except BaseException as error:
            reason = str(error) if isinstance(error, AgentError) else "the agent failed"
            self._settle(Released(request.run, False, reason, None, time.time()))
            raise
        with self._changed:
            self._state = State("held", request.run)
            self._changed.notify_all()
        return held

    def thaw(self, run: str, snapshot: bool | None = None) -> Released:
        """Let go of this run's hold and say whether it was unbroken; the same answer when repeated.

        `snapshot` is whether one was taken meanwhile, as far as it is known.
        A guest that was armed for this run and never held is disarmed. A freeze
        of this run that arrives later is refused.
        """
        with self._changed:
            if self._state == State("freezing", run):
                self._cancelled = True
                self._changed.wait_for(lambda: self._state != State("freezing", run))
            self._changed.wait_for(lambda: self._state != State("thawing", run))
            mine = self._state == State("held", run)
            armed = self._armed if self._armed is not None and self._armed.run == run else None
            hold = self._hold
            if mine:
                self._state = State("thawing", run)
            elif run in self._past:
                released = self._past[run]
            else:
                reason = f"this agent holds nothing for run {run}"
                released = Released(run, False, reason, None, time.time())
            # Who thaws wants it held no more, whatever freeze is still on its way.
            _remember(self._called_off, run, None)
        if mine and hold is not None:
            released = hold.finish(snapshot)
            self._settle(released)
        elif armed is not None:
            self._disarm(armed)
        return released

    def state(self) -> State:
        """What is held now."""
        with self._changed:
            return self._state

    def look(self) -> tuple[Sequence[Application], Sequence[Mount]]:
        """What a hold would hold now. Raises BusyError while one is under way."""
        with self.undisturbed():
            pass
        return self._find_applications(), self._find_mounts()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Keeps holds from beginning meanwhile. Raises BusyError while one is under way."""
        with self._changed:
            if self._state.state != "idle":
                raise BusyError(f"Run {self._state.run} holds this guest; ask again after it.")
            yield

    def stop(self) -> None:
        """Let go of whatever is held or armed, because the agent ends."""
        state = self.state()
        if state.state != "idle":
            self.thaw(state.run)
        self._disarm()

    def _begin(self, request: FreezeRequest, deadline: Deadline) -> Hold:
        """Begin a hold of what is armed if that fits the run and the guest, else arm now."""
        armed = self._take()
        try:
            applications, mounts = self._find_applications(), self._find_mounts()
            fits = armed is not None and armed.run == request.run
            if armed is not None and fits and armed.fits(applications, mounts, deadline):
                hold = Hold(request, armed, self._broke)
                if hold.begin(deadline):
                    return hold
        except BaseException:
            if armed is not None:
                armed.disarm()
            raise
        if armed is not None:
            armed.disarm()
        # One that hangs must not use up the time of those that do not.
        limit = deadline.within(deadline.remaining * _ARM_SHARE)
        armed = Armed(request.run, applications, mounts, limit)
        hold = Hold(request, armed, self._broke)
        if not hold.begin(deadline):
            armed.disarm()
            raise HoldError("The watchdog did not take up the hold; nothing was frozen.")
        return hold

    def _keep(self, armed: Armed) -> None:
        """Keep what was armed for its hold, unless somebody is holding by now."""
        with self._changed:
            # One that lacks an application is not kept: the freeze tries that one again.
            wanted = self._state.state == "idle" and not armed.refused
            superseded = self._take() if wanted else armed
            if wanted:
                self._armed = armed
                self._disarming = threading.Timer(self._armed_seconds, self._disarm, (armed,))
                self._disarming.daemon = True
                self._disarming.start()
        if superseded is not None:
            superseded.disarm()

    def _take(self, only: Armed | None = None) -> Armed | None:
        """Take over what is armed, if anything, or if it is this one."""
        with self._changed:
            if self._armed is None or (only is not None and self._armed is not only):
                return None
            assert self._disarming is not None
            self._disarming.cancel()
            armed, self._armed, self._disarming = self._armed, None, None
            return armed

    def _disarm(self, only: Armed | None = None) -> None:
        armed = self._take(only)
        if armed is not None:
            armed.disarm()

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
            _remember(self._past, released.run, released)
            self._state = State("idle", "")
            self._hold = None
            self._changed.notify_all()

    def _conflict(self, run: str) -> ConflictError:
        return ConflictError(
            f"Run {run} cannot have this guest: run {self._state.run} is {self._state.state} here."
        )


def _sync(mounts: Sequence[Mount]) -> None:
    for mount in mounts:
        # Gone since it was listed: there is nothing to flush.
        with suppress(FileNotFoundError):
            this_system().sync(mount.mountpoint)


def _attempt(flush: Callable[[Application], None]) -> Callable[[Application], None]:
    def attempt(application: Application) -> None:
        with suppress(ApplicationError):
            flush(application)

    return attempt


def _remember(memory: OrderedDict[str, _T], run: str, what: _T) -> None:
    memory[run] = what
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
