"""One hold: every guest frozen, one snapshot of each LUN group, every guest let go.

From the first freeze on, each guest waits for the slowest. So the time to freeze
is one budget for all, nobody is waited for beyond it, the storage for no longer
than the lease, and nothing comes before letting go.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from atoll.director.policy import HoldPolicy
from atoll.director.proof import Release
from atoll.director.snapshots import AskedSnapshots
from atoll.guests.interface import Frozen, GuestAgent
from atoll.model.errors import AtollError, HoldFailedError
from atoll.model.progress import Progress
from atoll.storage.interface import StorageEngine

_LATE_SECONDS = 1.0
"""For an agent that used all of its budget to say so."""
_SHORTEST_BUDGET_SECONDS = 0.1
_THAW_STEP_SECONDS = 1.0
"""How long the next step waits for one that does not answer; its leases run."""


@dataclass(frozen=True, slots=True)
class Guests:
    """Who is to be held: channels by instance UUID, names for messages, and the freezing steps."""

    agents: Mapping[str, GuestAgent]
    names: Mapping[str, str]
    steps: Sequence[Sequence[str]]

    @property
    def uuids(self) -> list[str]:
        """All of them, in the order of the steps."""
        return [uuid for step in self.steps for uuid in step]

    def without(self, uuids: Collection[str]) -> "Guests":
        """The same without some."""
        steps = [[uuid for uuid in step if uuid not in uuids] for step in self.steps]
        return Guests(self.agents, self.names, steps)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a hold, by instance UUID.

    Without snapshots asked for it was called off because of `failures`. `taken`
    are the LUN groups whose snapshot was there before anybody was asked to thaw.
    `seconds` is from the first guest asked to freeze until the last one let go.
    """

    frozen: Mapping[str, Frozen]
    released: Mapping[str, Release]
    failures: Mapping[str, AtollError]
    asked: AskedSnapshots | None
    taken: frozenset[str]
    seconds: float


def hold_and_snapshot(
    guests: Guests,
    hold: str,
    engine: StorageEngine,
    groups: Sequence[str],
    name: str,
    policy: HoldPolicy,
    dispensable: Collection[str],
    progress: Progress,
) -> Outcome:
    """Freeze all, snapshot all groups as `name`, thaw all, in the reverse order.

    Goes on without those of `dispensable` that could not be held, and is called
    off when another could not. Whatever happens, every guest asked to freeze is
    asked to thaw: when all snapshots are there, one failed, or every lease has
    ended. What the storage says later is the outcome's to tell.
    """
    freezing = _Freezing(guests, hold, policy, dispensable)
    asked: AskedSnapshots | None = None
    taken: frozenset[str] = frozenset()
    started = time.monotonic()
    try:
        if freezing.freeze_all():
            # From here on no lease ends later: they began before we heard of it.
            limit = time.monotonic() + policy.lease_seconds
            progress.stage("", "snapshot")
            asked = AskedSnapshots(engine, groups, name)
            asked.wait(limit)
            taken = asked.taken
    finally:
        # Nothing, not even telling the watcher or a slower storage, comes before the guests.
        released = thaw_all(guests, hold, bool(groups) and taken == set(groups))
        seconds = time.monotonic() - started
        progress.stage("", "release")
    return Outcome(freezing.frozen, released, freezing.failures, asked, taken, seconds)


@dataclass(slots=True)
class _Freezing:
    """Step after step, until the budget is used up or somebody fails who must not."""

    guests: Guests
    hold: str
    policy: HoldPolicy
    dispensable: Collection[str]
    frozen: dict[str, Frozen] = field(default_factory=dict)
    failures: dict[str, AtollError] = field(default_factory=dict)

    def freeze_all(self) -> bool:
        """Freeze in steps; whether all are held who must be."""
        end = time.monotonic() + self.policy.budget_seconds
        # Not joined: who does not answer must not keep the others, and ends by its own limit.
        pool = ThreadPoolExecutor(max(1, len(self.guests.uuids)), thread_name_prefix="freeze")
        try:
            for step in self.guests.steps:
                self._freeze_step(step, end, pool)
                if self._called_off:
                    return False
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return True

    @property
    def _called_off(self) -> bool:
        return any(uuid not in self.dispensable for uuid in self.failures)

    def _freeze_step(self, step: Sequence[str], end: float, pool: ThreadPoolExecutor) -> None:
        remaining = end - time.monotonic()
        if remaining < _SHORTEST_BUDGET_SECONDS:
            self.failures.update({uuid: self._too_late(uuid) for uuid in step})
            return
        asked = {
            pool.submit(
                self.guests.agents[uuid].freeze, self.hold, self.policy.lease_seconds, remaining
            ): uuid
            for uuid in step
        }
        pending = set(asked)
        while pending and not self._called_off:
            left = end + _LATE_SECONDS - time.monotonic()
            done, pending = wait(pending, max(0.0, left), FIRST_COMPLETED)
            if not done:
                late = [asked[answer] for answer in pending]
                self.failures.update({uuid: self._too_late(uuid) for uuid in late})
                break
            for answer in done:
                try:
                    self.frozen[asked[answer]] = answer.result()
                except AtollError as error:
                    self.failures[asked[answer]] = error

    def _too_late(self, uuid: str) -> HoldFailedError:
        return HoldFailedError(
            f"Guest {self.guests.names[uuid]} was not held within the {self.policy.budget_seconds:g} s "
            "that all guests of a run have to freeze; see what its applications wait for, or raise "
            "budget_seconds."
        )


def thaw_all(guests: Guests, hold: str, snapshot: bool = False) -> dict[str, Release]:
    """Let all of them go, the last frozen first, and say what each answered.

    `snapshot` is whether there is one, for applications that keep a record of it.
    """
    answers = {}
    with ThreadPoolExecutor(max(1, len(guests.uuids)), thread_name_prefix="thaw") as pool:
        for step in reversed(guests.steps):
            asked = {uuid: pool.submit(guests.agents[uuid].thaw, hold, snapshot) for uuid in step}
            answers.update(asked)
            wait(asked.values(), _THAW_STEP_SECONDS)
    released: dict[str, Release] = {}
    for uuid, answer in answers.items():
        try:
            released[uuid] = Release(thawed=answer.result(), failure=None)
        except AtollError as error:
            # The guest's own lease thaws it; the point must not claim the hold.
            released[uuid] = Release(thawed=None, failure=error)
    return released
