"""A guest agent without a guest: holds by the same rules, and fails when it is told to."""

import time
from dataclasses import dataclass, field

from atoll.guests.interface import (
    Findings,
    FoundApplication,
    FoundFilesystem,
    Frozen,
    GuestStatus,
    Thawed,
)
from atoll.model.consistency import ApplicationState
from atoll.model.errors import AgentUnavailableError, HoldFailedError


def held_application(name: str = "main", **changes: object) -> ApplicationState:
    """A PostgreSQL that was held."""
    fields: dict[str, object] = {
        "kind": "postgresql",
        "name": name,
        "held": True,
        "position": "0/3000060",
        "witness": "42",
        "flush_seconds": 0.1,
        "detail": "",
    }
    return ApplicationState(**{**fields, **changes})  # type: ignore[arg-type]


@dataclass
class FakeAgent:
    """Implements GuestAgent.

    `calls` are (method, run) in order. `absent` are methods that find nobody,
    `refuses` is why freeze cannot hold. `break_hold` ends a hold as a lease would.
    """

    name: str = "db1"
    applications: tuple[ApplicationState, ...] = (held_application(),)
    filesystems: tuple[str, ...] = ("/var/lib/postgresql", "/")
    absent: set[str] = field(default_factory=set)
    refuses: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    holding: Frozen | None = None
    _past: dict[str, Thawed] = field(default_factory=dict)
    _thawed: set[str] = field(default_factory=set)

    def prepare(self, run: str) -> None:
        self._enter("prepare", run)
        self._refuse_others(run)

    def freeze(self, run: str, lease_seconds: float, budget_seconds: float) -> Frozen:
        self._enter("freeze", run)
        self._refuse_others(run)
        if self.refuses:
            raise HoldFailedError(f"Guest {self.name} could not be held: {self.refuses}")
        if run in self._thawed:
            raise HoldFailedError(f"Guest {self.name} could not be held: {run} was thawed before.")
        if self.holding is None:
            self._past.pop(run, None)
            now = time.time()
            self.holding = Frozen(run, now, now, self.applications, self.filesystems, 0.0, 0.001)
        return self.holding

    def thaw(self, run: str, snapshot: bool | None = None) -> Thawed:
        self._enter("thaw", run)
        self._thawed.add(run)
        if run in self._past:
            return self._past[run]
        if self.holding is None or self.holding.run != run:
            return Thawed(run, False, f"this agent holds nothing for run {run}", None, time.time())
        return self._end(True, "")

    def status(self) -> GuestStatus:
        self._enter("status", "")
        run = self.holding.run if self.holding else ""
        state = "held" if self.holding else "idle"
        return GuestStatus("0", self.name, "", state, run, time.time(), 1.0, 0.0, 0.001)

    def look(self) -> Findings:
        self._enter("look", "")
        return Findings(
            tuple(FoundApplication(one.kind, one.name, "") for one in self.applications),
            tuple(FoundFilesystem(mount, "ext4", "/dev/sda1") for mount in self.filesystems),
        )

    def break_hold(self, reason: str) -> None:
        """The hold ends by itself, as when its lease is over."""
        self._end(False, reason)

    def _end(self, held: bool, reason: str) -> Thawed:
        assert self.holding is not None
        run, frozen_at = self.holding.run, self.holding.frozen_at
        self._past[run] = Thawed(run, held, reason, frozen_at, time.time())
        self.holding = None
        return self._past[run]

    def _enter(self, method: str, run: str) -> None:
        self.calls.append((method, run))
        if method in self.absent:
            raise AgentUnavailableError(f"The agent of {self.name} does not answer ({method}).")

    def _refuse_others(self, run: str) -> None:
        if self.holding is not None and self.holding.run != run:
            raise HoldFailedError(f"Guest {self.name} is held by run {self.holding.run}.")
