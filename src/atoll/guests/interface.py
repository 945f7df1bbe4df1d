"""What the director asks of a guest, whoever answers."""

from dataclasses import dataclass
from typing import Protocol

from atoll.model.consistency import ApplicationState


@dataclass(frozen=True, slots=True)
class Frozen:
    """A guest that is held. Times are seconds since the epoch by the guest's clock.

    `began_at` is just before its first application was asked to hold, `frozen_at`
    when the last file system was frozen. `filesystems` are the frozen mount
    points in the order they were frozen, `freeze_seconds` how long the guest's
    kernel took for that (0 from an older agent).
    `clock_offset_seconds` is guest minus director, wrong by at most
    `clock_error_seconds`. An application with `held` False still lies on frozen
    file systems: its point is filesystem-consistent.
    """

    run: str
    began_at: float
    frozen_at: float
    applications: tuple[ApplicationState, ...]
    filesystems: tuple[str, ...]
    clock_offset_seconds: float
    clock_error_seconds: float
    freeze_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Thawed:
    """What became of a hold.

    `held` is the agent's word that all it had held stayed held until it was
    asked to let go; otherwise `reason` says what broke it. `frozen_at` is None
    when the agent never held anything for that run. `thawed_at` is when all was
    let go, applications included, or when the hold broke.
    """

    run: str
    held: bool
    reason: str
    frozen_at: float | None
    thawed_at: float


@dataclass(frozen=True, slots=True)
class GuestStatus:
    """An agent's own account. `state` is `idle`, `freezing` or `held`; `run` is whose hold it is."""

    version: str
    name: str
    instance_uuid: str
    state: str
    run: str
    guest_time: float
    uptime_seconds: float
    clock_offset_seconds: float
    clock_error_seconds: float


@dataclass(frozen=True, slots=True)
class FoundApplication:
    """A server that runs in a guest; `remark` says what its admin should know, or is empty."""

    kind: str
    name: str
    remark: str


@dataclass(frozen=True, slots=True)
class FoundFilesystem:
    """A file system that a hold would freeze."""

    mount: str
    fstype: str
    source: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a hold of the guest would hold now, file systems in the order they would freeze."""

    applications: tuple[FoundApplication, ...]
    filesystems: tuple[FoundFilesystem, ...]


class GuestAgent(Protocol):
    """One guest's agent. All calls raise AgentUnavailableError when it does not answer in time.

    `run` matches `[A-Za-z0-9][A-Za-z0-9._-]{0,79}`. A guest is never left
    frozen: its lease thaws it whatever becomes of the director, the network or
    the agent itself.
    """

    def prepare(self, run: str) -> None:
        """Flush and make ready for the hold while everything serves, which may take minutes.

        Holds and blocks nothing. Harmless to repeat; left out, `freeze` takes
        longer. What was made ready is let go by `thaw`, by the next `prepare`,
        or by itself after two minutes.
        """
        ...

    def freeze(self, run: str, lease_seconds: float, budget_seconds: float) -> Frozen:
        """Hold applications, then file systems.

        Returns once all is held, at the latest after `budget_seconds`; the
        guest thaws by itself `lease_seconds` after that. The same run again
        while held answers the same and does not extend the lease. Raises
        HoldFailedError when the file systems could not be held or another run
        holds the guest; then this call left nothing held.
        """
        ...

    def thaw(self, run: str, snapshot: bool | None = None) -> Thawed:
        """Let go and say whether the hold was unbroken. Repeating gives the same answer.

        A freeze of this run that arrives later is refused. Never touches another
        run's hold. Also for a run that was prepared and then not held. `snapshot`
        is whether one was taken, for applications that keep a record of their
        backups; None when it is not known.
        """
        ...

    def vmware_account(self) -> str | None:
        """Its account of the last hold that VMware Tools asked for, None when there was none.

        JSON, not to be trusted: `atoll.guests.account` reads it.
        """
        ...

    def status(self) -> GuestStatus:
        """What the agent holds now and how its clock stands to ours."""
        ...

    def look(self) -> Findings:
        """What would be held; holds, blocks and changes nothing."""
        ...
